"""Writes mobilenet-v2-symbol.json: MobileNetV2 for 224 x 224 images, without any marks.

``make_network.py mobilenet-v2`` writes it with marks, other widths and sides, and PyTorch's.

Needs MXNet: pip install 'memcli[mxnet]'. Memory at batch 64, as MXNet says: 5340 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from networks.sizes import MobileNetV2
from networks.symbols.mobilenet_v2 import mobilenet_v2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("mobilenet-v2-symbol.json"))
    args = parser.parse_args()
    args.output.write_text(mobilenet_v2(MobileNetV2(), marks=False).tojson() + "\n")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
