"""The hand-made systems that memcli stands in for: what each published, and the same here.

    python benchmarks/seed_systems.py [--only NAME ...] [--no-verify] [--json] [--log rows.jsonl]

A block for each system: the figures that it published, and here, on the same network at the same
batch: memory of the baseline, under the system's own technique, and under ``auto``. MXNet rows are
MXNet's own ``Total`` for the written file, bound in a fresh process; PyTorch rows are measured in
a real step on the CPU (``--no-verify``: estimates alone). Cards and versions of frameworks differ,
so it is ratios that are compared. Exit status 1 where one of memcli's own goals is not met.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from seed_commands import Outcome, Workbench
from seed_mxnet import MXNET_SYSTEMS
from seed_torch import TORCH_SYSTEMS

from memcli.reports.console import notes_console
from memcli.reports.tables import mib, new_table

SYSTEMS = {**MXNET_SYSTEMS, **TORCH_SYSTEMS}


def print_outcome(outcome: Outcome, console: Console) -> None:
    """A block: the title, what was published, a row for each technique, the goal."""
    table = new_table(
        f"{outcome.system}: {outcome.network}",
        [
            ("technique", "left"),
            ("estimated MiB", "right"),
            ("measured MiB", "right"),
            ("ratio", "right"),
            ("again", "right"),
            ("step s", "right"),
            ("time", "right"),
            ("bits", "left"),
            ("published", "right"),
        ],
    )
    base = outcome.lines[0]
    for line in outcome.lines:
        timed = line.step_seconds is not None and base.step_seconds
        table.add_row(
            line.technique,
            mib(line.estimated),
            mib(line.measured),
            f"{outcome.ratio(line):.3f}",
            "" if line.again is None else f"{line.again:.0%}",
            f"{line.step_seconds:.2f}" if line.step_seconds is not None else "",
            f"{line.step_seconds / base.step_seconds - 1:+.0%}" if timed else "",
            {True: "equal", False: "DIFFER", None: ""}[line.bits_equal],
            f"{line.published:.3f}" if line.published is not None else "",
        )
    console.print(table)
    console.print(f"published: {outcome.published}")
    for goal in outcome.goals:
        console.print(f"{'met' if goal.met else 'NOT MET'}: {goal.text}")
    console.print()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        choices=list(SYSTEMS),
        action="append",
        metavar="NAME",
        help=f"repeatable: {', '.join(SYSTEMS)}",
    )
    parser.add_argument("--no-verify", action="store_true", help="PyTorch rows: estimates alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--log", type=Path, help="append each block as a line of JSON")
    options = parser.parse_args()
    notes, console = notes_console(), Console(width=130, highlight=False)
    outcomes: list[dict[str, Any]] = []
    for name in options.only or SYSTEMS:
        with tempfile.TemporaryDirectory(prefix="seed-systems-") as folder:
            bench = Workbench(Path(folder), lambda text: notes.print(text, highlight=False))
            outcome = SYSTEMS[name](bench, not options.no_verify)
        row = {"name": name, **asdict(outcome)}
        outcomes.append(row)
        if options.log:
            with options.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
        if not options.json:
            print_outcome(outcome, console)
    if options.json:
        print(json.dumps({"schema": 1, "systems": outcomes}))
    sys.exit(0 if all(goal["met"] for row in outcomes for goal in row["goals"]) else 1)


if __name__ == "__main__":
    main()
