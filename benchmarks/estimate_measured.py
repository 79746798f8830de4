"""Memory estimated against measured: of every MXNet symbol in a folder, per stage and in total.

    python benchmarks/estimate_measured.py FOLDER [--batch N] [--shapes INDEX.tsv] [--limit SECONDS]

Each file is planned (``--strategy``, 20 s of search by default) and verified on MXNet's plain
kernels, as ``memcli verify`` does it: the batch is scaled down where a step does not fit here. The
estimate is the model's, the measurement is the engine's own allocations. A row for each file:
estimated and measured bytes of baseline and plan, how far they are apart, and the stage that is
furthest. ``--shapes``: a table with the columns ``path`` and ``inputs`` ({name: shape} as JSON).

Exit status 1 where any of them is further apart than ``--within`` (1%).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memcli.choices import PLAIN
from memcli.commands.plan import make_plan
from memcli.engines.mxnet.verifying import verify
from memcli.errors import MemcliError
from memcli.formats.detect import read_source
from memcli.request import ShapeRequest
from memcli.results.verified import Verified
from memcli.search.base import Settings
from memcli.units import MIB

# Bytes that are apart without any meaning: the C library's books, the executor's small arrays.
_NOISE = 64 << 10


def apart(estimated: int, measured: int | None) -> float:
    """The measurement over the estimate as a part of it; nothing within what cannot be told."""
    if measured is None or abs(measured - estimated) <= _NOISE:
        return 0.0
    return measured / max(estimated, 1) - 1


def worst_stage(found: Verified) -> tuple[float, str]:
    """How far the stage is off that is off most, and which."""
    rows = [(0.0, "-")]
    for stage in found.stages:
        pairs = (
            ("forward", stage.estimated_forward, stage.measured_forward),
            ("backward", stage.estimated_bytes, stage.measured_bytes),
        )
        rows += [(apart(e, m), f"{stage.index} {part}") for part, e, m in pairs]
    return max(rows, key=lambda row: abs(row[0]))


def measured(path: Path, request: ShapeRequest, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "planned.json")
        settings = Settings(time_limit=options.limit)
        make_plan(str(path), request, options.strategy, settings, out=out)
        found = verify(out, original=str(path), steps=0, kernels=PLAIN)
    stage, where = worst_stage(found)
    return {
        "path": path.name,
        "batch": found.scaled["to_batch"] if found.scaled else None,
        "baseline": [found.baseline.estimated_bytes, found.baseline.measured_bytes],
        "planned": [found.planned.estimated_bytes, found.planned.measured_bytes],
        "stage": stage,
        "where": where,
        "ok": found.ok,
    }


def requests(options: argparse.Namespace) -> Iterator[tuple[Path, ShapeRequest]]:
    """The symbols of the folder, with the shapes to plan them at."""
    table: dict[str, str] = {}
    if options.shapes:
        with open(options.shapes, newline="") as file:
            table = {row["path"]: row["inputs"] for row in csv.DictReader(file, delimiter="\t")}
    for path in sorted(Path(options.folder).iterdir()):
        if options.only and not any(part in path.name for part in options.only):
            continue
        if not path.name.endswith((".json", ".json.gz")):
            continue
        try:
            if read_source(path).kind.engine != "mxnet":
                continue
        except MemcliError:
            continue
        given = json.loads(table.get(path.name) or "{}")
        yield path, ShapeRequest(shapes=given, batch=None if given else options.batch)


def main() -> int:
    """Print the table; 1 where a row is beyond ``--within``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--shapes", metavar="INDEX.tsv")
    parser.add_argument("--only", nargs="*", help="files whose name has one of these in it")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of search")
    parser.add_argument("--within", type=float, default=0.01)
    options = parser.parse_args()
    head = f"{'file':44} {'base est':>9} {'meas':>9} {'off':>7} {'plan est':>9} {'meas':>9}"
    print(f"{head} {'off':>7} {'stage':>7}  where", flush=True)
    beyond = failed = rows = 0
    for path, request in requests(options):
        try:
            row = measured(path, request, options)
        except Exception as error:  # a fault of memcli's: the others are measured all the same
            failed += 1
            said = error.message if isinstance(error, MemcliError) else repr(error)
            print(f"{path.name[:44]:44} {said[:100]}", flush=True)
            continue
        rows += 1
        parts = [apart(*row["baseline"]), apart(*row["planned"])]
        cells = [
            f"{e / MIB:9.2f} {m / MIB:9.2f} {off:+7.2%}"
            for (e, m), off in zip((row["baseline"], row["planned"]), parts, strict=True)
        ]
        far = max(abs(off) for off in (*parts, row["stage"])) > options.within
        beyond += far
        notes = [row["where"], f"batch {row['batch']}" if row["batch"] else ""]
        notes += ["" if row["ok"] else "BITS DIFFER", "BEYOND" if far else ""]
        text = " ".join(note for note in notes if note)
        print(f"{path.name[:44]:44} {' '.join(cells)} {row['stage']:+7.2%}  {text}", flush=True)
    print(f"{rows} measured, {beyond} beyond {options.within:.0%}, {failed} not run")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
