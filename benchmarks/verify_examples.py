"""Plans and verifies every example for real: estimated against measured memory, bit equality.

    python benchmarks/verify_examples.py [--batch resnet-50=4 ...] [--strategy auto] [--only NAME]

Each example is planned, and one step of the original and of the planned graph is trained on the
CPU. Prints a row for each, with the largest gap between estimate and measurement of any stage.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console

from memcli.commands.plan import make_plan
from memcli.engines.mxnet.verifying import verify
from memcli.reports.tables import mib, new_table
from memcli.request import ShapeRequest
from memcli.search.base import Settings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BATCHES = {"resnet-50": 8, "densenet-201": 4, "mobilenet-v2": 16, "lstm": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", action="append", default=[], metavar="NAME=N")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--only", choices=list(BATCHES), help="this example alone")
    options = parser.parse_args()
    batches = dict(BATCHES)
    for text in options.batch:
        name, _, number = text.partition("=")
        batches[name] = int(number)
    table = new_table(
        "Measured on the CPU, MiB (est: model; meas: really allocated)",
        [
            ("example, batch", "left"),
            ("saved est", "right"),
            ("meas", "right"),
            ("planned est", "right"),
            ("meas", "right"),
            ("worst stage", "right"),
            ("equal to the bit", "right"),
            ("s", "right"),
        ],
    )
    for name, batch in batches.items():
        if options.only not in (None, name):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "planned.json")
            model = str(EXAMPLES / f"{name}-symbol.json")
            request = ShapeRequest(batch=batch)
            make_plan(model, request, options.strategy, Settings(), out=out)
            result = verify(out, original=model)
        worst = max(
            abs(s.estimated_bytes - s.measured_bytes) / s.measured_bytes
            for s in result.stages
            if s.measured_bytes
        )
        parts = (result.outputs, result.gradients, result.states)
        equal = sum(p.bit_equal for p in parts)
        table.add_row(
            f"{name}, {batch}",
            mib(result.baseline.estimated_bytes),
            mib(result.baseline.measured_bytes),
            mib(result.planned.estimated_bytes),
            mib(result.planned.measured_bytes),
            f"{worst:.1%}",
            f"{equal} of {sum(p.compared for p in parts)}",
            f"{time.monotonic() - started:.0f}",
        )
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
