"""Writes densenet-201-symbol.json: a densely connected network for 224 x 224 images.

Each layer appends its 32 channels to all those before it (Concat), so that memory grows with
the square of the depth unless the Concats are computed again. The Concats and the first pooling
carry ``mirror_stage``, the mark of the classic memory planner.

Needs MXNet: pip install 'memcli[mxnet]'. Memory at batch 64, as MXNet says: 11449 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from memcli.engines.mxnet_shim import import_mxnet

mx = import_mxnet()

GROWTH = 32
LAYERS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 264: (6, 12, 64, 48)}


def normalised(data: Any, name: str, bn_name: str) -> Any:
    data = mx.sym.BatchNorm(data, eps=2e-5, momentum=0.9, fix_gamma=False, name=bn_name)
    return mx.sym.Activation(data, act_type="relu", name=name)


def convolution(data: Any, filters: int, kernel: int, name: str) -> Any:
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


def layer(data: Any, place: str) -> Any:
    """``data`` with ``GROWTH`` new channels; ``place`` is like '2_1': block and layer."""
    new = normalised(data, f"relu{place}_x1", f"conv{place}_x1_bn")
    new = convolution(new, 4 * GROWTH, 1, f"conv{place}_x1")
    new = normalised(new, f"relu{place}_x2", f"conv{place}_x2_bn")
    new = convolution(new, GROWTH, 3, f"conv{place}_x2")
    joined = mx.sym.Concat(data, new, name=f"concat_{place}")
    joined._set_attr(mirror_stage="True")
    return joined


def densenet(layers: tuple[int, ...], classes: int = 1000) -> Any:
    """The whole network; ``layers`` holds the number of layers of each block."""
    channels = 2 * GROWTH
    data = mx.sym.Convolution(
        mx.sym.Variable("data"),
        num_filter=channels,
        kernel=(7, 7),
        stride=(2, 2),
        pad=(3, 3),
        no_bias=True,
        name="conv1",
    )
    data = mx.sym.BatchNorm(data, eps=2e-5, name="conv1_bn")
    data = mx.sym.Activation(data, act_type="relu", name="relu1")
    data = mx.sym.Pooling(
        data, global_pool=False, kernel=(3, 3), stride=(2, 2), pool_type="max", name="pool1"
    )
    data._set_attr(mirror_stage="True")
    for block, count in enumerate(layers, start=2):
        for index in range(1, count + 1):
            data = layer(data, f"{block}_{index}")
        channels += GROWTH * count
        place = f"{block}_{count}"
        data = normalised(data, f"relu{place}_blk", f"conv{place}_blk_bn")
        if block - 1 < len(layers):
            channels //= 2
            data = convolution(data, channels, 1, f"conv{place}_blk")
            data = mx.sym.Pooling(
                data,
                global_pool=False,
                kernel=(2, 2),
                stride=(2, 2),
                pool_type="avg",
                name=f"pool{place}",
            )
    data = mx.sym.Pooling(data, global_pool=True, kernel=(8, 8), pool_type="avg", name="pool5")
    data = mx.sym.Flatten(data, name="flatten0")
    data = mx.sym.FullyConnected(data, num_hidden=classes, name="fc1")
    return mx.sym.SoftmaxOutput(data, name="softmax")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, choices=sorted(LAYERS), default=201)
    parser.add_argument("-o", "--output", type=Path, help="default: densenet-DEPTH-symbol.json")
    args = parser.parse_args()
    output = args.output or Path(f"densenet-{args.depth}-symbol.json")
    output.write_text(densenet(LAYERS[args.depth]).tojson() + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
