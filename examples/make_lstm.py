"""Writes lstm-symbol.json: an LSTM unrolled over time, with a cross entropy at every step.

Inputs are ``t0_data``, ``t1_data``, ... with labels ``t0_label``, ..., and the initial states of
each layer; their shapes stand in the file (``__shape__``), so that planning needs no option.
The cell and hidden state of each step carry ``mirror_stage`` with the step's number: for the
classic memory planner, nodes of one number are one place to cut at.

Needs MXNet: pip install 'memcli[mxnet]'. With --layers 4 --hidden 1024 --steps 200 --batch 64
MXNet says 3972 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from networks.options import add_lstm_options, lstm_of
from networks.symbols import symbol


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_lstm_options(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("lstm-symbol.json"))
    args = parser.parse_args()
    args.output.write_text(symbol(lstm_of(args)).tojson() + "\n")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
