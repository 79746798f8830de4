"""Residual networks (arXiv 1512.03385), and the classic memory planner's form of them."""

from __future__ import annotations

from typing import Any

from networks.sizes import ResNet
from networks.symbols.base import classified, image, marked, mx


def convolution(
    size: ResNet,
    data: Any,
    filters: int,
    kernel: int,
    name: str,
    *,
    stride: int = 1,
    active: bool = True,
) -> Any:
    """Convolution, normalisation, activation; padded so that stride 1 keeps the size.

    The classic form is always active, and leaves the names to MXNet.
    """
    shape = {
        "kernel": (kernel, kernel),
        "stride": (stride, stride),
        "pad": (kernel // 2, kernel // 2),
        "num_filter": filters,
    }
    if size.classic:
        data = mx.sym.Convolution(data, **shape)
        data = mx.sym.BatchNorm(data, fix_gamma=True)
        return mx.sym.LeakyReLU(data, act_type="leaky")
    data = mx.sym.Convolution(data, **shape, no_bias=True, name=name)
    data = mx.sym.BatchNorm(data, eps=1e-5, momentum=0.9, fix_gamma=False, name=f"{name}_bn")
    return mx.sym.Activation(data, act_type="relu", name=f"{name}_relu") if active else data


def unit(
    size: ResNet, data: Any, channels: int, width: int, stride: int, name: str, *, first: bool
) -> Any:
    """One unit on ``channels``; the first of a stage may have a convolution on its shortcut."""
    out = width * size.expansion
    if size.bottleneck:
        branch = convolution(size, data, width, 1, f"{name}_conv1")
        branch = convolution(size, branch, width, 3, f"{name}_conv2", stride=stride)
        branch = convolution(size, branch, out, 1, f"{name}_conv3", active=False)
    else:
        branch = convolution(size, data, width, 3, f"{name}_conv1", stride=stride)
        branch = convolution(size, branch, out, 3, f"{name}_conv2", active=False)
    if first and (stride != 1 or channels != out):
        data = convolution(size, data, out, 1, f"{name}_shortcut", stride=stride, active=False)
    # The mark goes on what the unit adds to, as in the classic planner's own example: the sum
    # before it, or the convolution on the shortcut.
    total = marked(data) + branch
    if size.classic:
        return total
    return mx.sym.Activation(total, act_type="relu", name=f"{name}_out")


def resnet(size: ResNet) -> Any:
    """The whole network; the input of each unit carries ``mirror_stage``."""
    data = image(size.side)
    if size.small:
        data = convolution(size, data, size.width, 3, "conv0")
    else:
        data = convolution(size, data, size.width, 7, "conv0", stride=2)
        pad = {} if size.classic else {"pad": (1, 1)}
        data = mx.sym.Pooling(data, pool_type="max", kernel=(3, 3), stride=(2, 2), **pad)
    channels = size.width
    for stage, count in enumerate(size.units):
        width = size.width << stage
        for index in range(count):
            first = index == 0
            stride = 2 if first and stage else 1
            name = f"stage{stage + 1}_unit{index + 1}"
            data = unit(size, data, channels, width, stride, name, first=first)
            channels = width * size.expansion
    last = size.last_side
    data = mx.sym.Pooling(
        data, pool_type="avg", kernel=(last, last), stride=(1, 1), name="global_pool"
    )
    return classified(mx.sym.Flatten(data, name="flatten"), size.classes)
