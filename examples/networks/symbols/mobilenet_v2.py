"""MobileNetV2 (arXiv 1801.04381).

Seventeen inverted bottlenecks: a 1x1 convolution widens, a 3x3 one works on each channel alone,
a 1x1 one narrows again; where nothing changes size, the input is added. The activation is ReLU6
(``clip``).
"""

from __future__ import annotations

from typing import Any

from networks.sizes import MobileNetV2
from networks.symbols.base import dropped, image, marked, mx


def convolution(
    data: Any,
    filters: int,
    name: str,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    active: bool = True,
) -> Any:
    """Convolution and normalisation, and ReLU6 where ``active``."""
    pad = kernel // 2
    data = mx.sym.Convolution(
        data,
        num_filter=filters,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(pad, pad),
        num_group=groups,
        no_bias=True,
        name=name,
    )
    data = mx.sym.BatchNorm(data, eps=1e-5, momentum=0.9, fix_gamma=False, name=f"{name}_bn")
    return mx.sym.clip(data, a_min=0, a_max=6, name=f"{name}_relu6") if active else data


def bottleneck(data: Any, channels: int, widen: int, filters: int, stride: int, name: str) -> Any:
    """One inverted bottleneck from ``channels`` to ``filters`` channels."""
    inner = channels * widen
    out = convolution(data, inner, f"{name}_expand")
    out = convolution(out, inner, f"{name}_depth", kernel=3, stride=stride, groups=inner)
    out = convolution(out, filters, f"{name}_project", active=False)
    if stride == 1 and channels == filters:
        out = mx.sym.elemwise_add(out, data, name=f"{name}_sum")
    return out


def mobilenet_v2(size: MobileNetV2, *, marks: bool = True) -> Any:
    """The whole network; with ``marks`` the output of each bottleneck carries ``mirror_stage``."""
    channels = size.first
    data = convolution(image(size.side), channels, "conv0", kernel=3, stride=2)
    for index, (widen, filters, stride) in enumerate(size.bottlenecks):
        data = bottleneck(data, channels, widen, filters, stride, f"block{index}")
        channels = filters
        if marks:
            data = marked(data)
    data = convolution(data, size.last, "conv1")
    data = mx.sym.Pooling(data, global_pool=True, kernel=(1, 1), pool_type="avg", name="pool")
    data = dropped(data, size.dropout, "dropout")
    data = mx.sym.Convolution(
        data, num_filter=size.classes, kernel=(1, 1), no_bias=True, name="pred"
    )
    data = mx.sym.Flatten(data, name="flatten")
    return mx.sym.SoftmaxOutput(data, name="softmax")
