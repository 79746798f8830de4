"""Writes mobilenet-v2-symbol.json: MobileNetV2 for 224 x 224 images, without any marks.

Seventeen inverted bottlenecks: a 1x1 convolution widens, a 3x3 one works on each channel alone,
a 1x1 one narrows again; where nothing changes size, the input is added. The activation is ReLU6
(``clip``), the loss SoftmaxOutput.

Needs MXNet: pip install 'memcli[mxnet]'. Memory at batch 64, as MXNet says: 5340 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from memcli.engines.mxnet_shim import import_mxnet

mx = import_mxnet()

# (how much wider inside, channels out, number of bottlenecks, stride of the first)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


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


def mobilenet_v2(classes: int = 1000) -> Any:
    """The whole network."""
    channels = 32
    data = convolution(mx.sym.Variable("data"), channels, "conv0", kernel=3, stride=2)
    index = 0
    for widen, filters, count, first_stride in STAGES:
        for i in range(count):
            stride = first_stride if i == 0 else 1
            data = bottleneck(data, channels, widen, filters, stride, f"block{index}")
            channels = filters
            index += 1
    data = convolution(data, 1280, "conv1")
    data = mx.sym.Pooling(data, global_pool=True, kernel=(1, 1), pool_type="avg", name="pool")
    data = mx.sym.Convolution(data, num_filter=classes, kernel=(1, 1), no_bias=True, name="pred")
    data = mx.sym.Flatten(data, name="flatten")
    return mx.sym.SoftmaxOutput(data, name="softmax")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("mobilenet-v2-symbol.json"))
    args = parser.parse_args()
    args.output.write_text(mobilenet_v2().tojson() + "\n")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
