"""Writes resnet-50-symbol.json: a residual network for 224 x 224 images, ready for training.

It has the form of the classic memory planner's example: four stages of bottleneck units, each
convolution followed by BatchNorm and LeakyReLU, with SoftmaxOutput as the loss. The shortcut of
each unit carries ``mirror_stage``, the mark by which that planner knows where it may cut.
``make_network.py resnet`` writes the usual form, any depth, and PyTorch's.

Needs MXNet: pip install 'memcli[mxnet]'. Memory at batch 32, as MXNet says: 4899 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from networks.sizes import ResNet
from networks.symbols import symbol


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--units", type=int, nargs=4, default=[3, 4, 6, 3], help="units per stage (3 4 6 3)"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("resnet-50-symbol.json"))
    args = parser.parse_args()
    network = symbol(ResNet(tuple(args.units), classic=True))
    args.output.write_text(network.tojson() + "\n")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
