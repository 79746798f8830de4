"""Densely connected networks (arXiv 1608.06993).

Each layer appends its channels to all those before it (Concat), so that memory grows with the
square of the depth unless the Concats are computed again.
"""

from __future__ import annotations

from typing import Any

from networks.sizes import DenseNet
from networks.symbols.base import classified, dropped, image, marked, mx


def normalised(size: DenseNet, data: Any, name: str, bn_name: str) -> Any:
    """BatchNorm and ReLU."""
    eps = 2e-5 if size.classic else 1e-5
    data = mx.sym.BatchNorm(data, eps=eps, momentum=0.9, fix_gamma=False, name=bn_name)
    return mx.sym.Activation(data, act_type="relu", name=name)


def convolution(data: Any, filters: int, kernel: int, name: str) -> Any:
    """Without bias, padded to keep the size."""
    pad = kernel // 2
    return mx.sym.Convolution(
        data,
        num_filter=filters,
        kernel=(kernel, kernel),
        stride=(1, 1),
        pad=(pad, pad),
        no_bias=True,
        workspace=64,
        name=name,
    )


def layer(size: DenseNet, data: Any, place: str) -> Any:
    """``data`` with ``growth`` new channels; ``place`` is like '2_1': block and layer."""
    new = normalised(size, data, f"relu{place}_x1", f"conv{place}_x1_bn")
    if size.bottleneck:
        new = convolution(new, 4 * size.growth, 1, f"conv{place}_x1")
        new = dropped(new, size.dropout, f"dropout{place}_x1")
        new = normalised(size, new, f"relu{place}_x2", f"conv{place}_x2_bn")
    new = convolution(new, size.growth, 3, f"conv{place}_x2")
    new = dropped(new, size.dropout, f"dropout{place}_x2")
    return marked(mx.sym.Concat(data, new, name=f"concat_{place}"))


def large_stem(size: DenseNet, data: Any) -> Any:
    """What brings a large image down to a quarter of its side."""
    data = mx.sym.Convolution(
        data,
        num_filter=size.first,
        kernel=(7, 7),
        stride=(2, 2),
        pad=(3, 3),
        no_bias=True,
        name="conv1",
    )
    # The classic form has MXNet's own defaults here: the scale is fixed.
    kept = {"eps": 2e-5} if size.classic else {"eps": 1e-5, "momentum": 0.9, "fix_gamma": False}
    data = mx.sym.BatchNorm(data, **kept, name="conv1_bn")
    data = mx.sym.Activation(data, act_type="relu", name="relu1")
    pad = {} if size.classic else {"pad": (1, 1)}
    data = mx.sym.Pooling(
        data, global_pool=False, kernel=(3, 3), stride=(2, 2), pool_type="max", name="pool1", **pad
    )
    return marked(data)


def densenet(size: DenseNet) -> Any:
    """The whole network; the Concats and the first pooling carry ``mirror_stage``."""
    data = image(size.side)
    data = convolution(data, size.first, 3, "conv1") if size.small else large_stem(size, data)
    channels = size.first
    for block, count in enumerate(size.layers, start=2):
        for index in range(1, count + 1):
            data = layer(size, data, f"{block}_{index}")
        channels += size.growth * count
        place = f"{block}_{count}"
        data = normalised(size, data, f"relu{place}_blk", f"conv{place}_blk_bn")
        if block - 1 < len(size.layers):
            channels = size.compressed(channels)
            data = convolution(data, channels, 1, f"conv{place}_blk")
            data = dropped(data, size.dropout, f"dropout{place}_blk")
            data = mx.sym.Pooling(
                data,
                global_pool=False,
                kernel=(2, 2),
                stride=(2, 2),
                pool_type="avg",
                name=f"pool{place}",
            )
    data = mx.sym.Pooling(data, global_pool=True, kernel=(8, 8), pool_type="avg", name="pool5")
    return classified(mx.sym.Flatten(data, name="flatten0"), size.classes)
