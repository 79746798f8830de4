"""Writes resnet-50-symbol.json: a residual network for 224 x 224 images, ready for training.

Four stages of bottleneck units (3, 4, 6 and 3 of them), each convolution followed by BatchNorm
and LeakyReLU, with SoftmaxOutput as the loss. The shortcut of each unit carries
``mirror_stage``, the mark by which the classic memory planner knows where it may cut.

Needs MXNet: pip install 'memcli[mxnet]'. Memory at batch 32, as MXNet says: 4899 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from memcli.engines.mxnet_shim import import_mxnet

mx = import_mxnet()


def convolution(data: Any, filters: int, kernel: int, stride: int = 1) -> Any:
    """Convolution, normalisation, activation; padded so that stride 1 keeps the size."""
    pad = kernel // 2
    data = mx.sym.Convolution(
        data,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(pad, pad),
        num_filter=filters,
    )
    data = mx.sym.BatchNorm(data, fix_gamma=True)
    return mx.sym.LeakyReLU(data, act_type="leaky")


def unit(data: Any, filters: int, stride: int, first: bool) -> Any:
    """One bottleneck unit; the first of a stage has a convolution on its shortcut."""
    branch = convolution(data, filters, kernel=1)
    branch = convolution(branch, filters, kernel=3, stride=stride)
    branch = convolution(branch, 4 * filters, kernel=1)
    if first:
        data = convolution(data, 4 * filters, kernel=1, stride=stride)
    # The mark goes on what the unit adds to, as in the classic planner's own example: the sum
    # before it, or the convolution on the shortcut.
    data._set_attr(mirror_stage="True")
    return data + branch


def resnet(units: list[int], classes: int = 1000) -> Any:
    """The whole network; ``units`` holds the number of units of each stage."""
    data = convolution(mx.sym.Variable("data"), 64, kernel=7, stride=2)
    data = mx.sym.Pooling(data, pool_type="max", kernel=(3, 3), stride=(2, 2))
    for stage, count in enumerate(units):
        for index in range(count):
            first = index == 0
            data = unit(data, 64 << stage, stride=2 if first and stage else 1, first=first)
    data = mx.sym.Pooling(data, pool_type="avg", kernel=(7, 7), stride=(1, 1), name="global_pool")
    data = mx.sym.Flatten(data, name="flatten")
    data = mx.sym.FullyConnected(data, num_hidden=classes, name="fc1")
    return mx.sym.SoftmaxOutput(data, name="softmax")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--units", type=int, nargs=4, default=[3, 4, 6, 3], help="units per stage (3 4 6 3)"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("resnet-50-symbol.json"))
    args = parser.parse_args()
    with mx.name.NameManager():
        symbol = resnet(args.units)
    args.output.write_text(symbol.tojson() + "\n")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
