"""Writes densenet-201-symbol.json: a densely connected network for 224 x 224 images.

It has the form in which the classic memory planner was shown with it; ``make_network.py
densenet-bc`` writes the usual form, small images, any depth and growth, and PyTorch's. The Concats
and the first pooling carry ``mirror_stage``, the mark of that planner.

Needs MXNet: pip install 'memcli[mxnet]'. Memory at batch 64, as MXNet says: 11449 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from networks.sizes import large_densenet
from networks.symbols import symbol


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, choices=(121, 169, 201, 264), default=201)
    parser.add_argument("-o", "--output", type=Path, help="default: densenet-DEPTH-symbol.json")
    args = parser.parse_args()
    output = args.output or Path(f"densenet-{args.depth}-symbol.json")
    output.write_text(symbol(large_densenet(args.depth, classic=True)).tojson() + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
