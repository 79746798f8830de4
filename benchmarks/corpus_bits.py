"""Trains planned graphs of a folder of MXNet symbol files, and compares every bit.

    python benchmarks/corpus_bits.py FOLDER [--only GLOB ...] [--all] [--most-nodes 2500]
                                     [--strategy auto ...] [--halve]
                                     [--plan-seconds 10] [--seconds 300] [--part K/N]
                                     [--log rows.jsonl]

For each file and strategy ``memcli plan`` and ``memcli verify``, the real commands: one training
step of the baseline and of the planned one by MXNet on the CPU, each in a process of its
own. By default the smallest files that together have every operator of the folder; ``--all``
takes all up to ``--most-nodes``. Shapes come from an ``index.tsv`` in the folder where there is
one, and ``--halve`` tries pictures of half the width and height first. ``--plan-seconds`` is the
limit of each search. Columns: memory of the plan, recomputation, outputs, gradients and states
that are equal, and the largest deviation of measured from estimated memory, of both graphs.
What is refused, or takes more than ``--seconds``, is listed with the reason. Rows are appended to
``--log``, to go on from there.
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estimate_corpus import index_shapes

PARTS = ("outputs", "gradients", "states")


def operators(path: Path) -> tuple[frozenset[str], int]:
    """The operators of a symbol file, and how many nodes it has; none of what is no symbol."""
    try:
        data = path.read_bytes()
        nodes = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["nodes"]
        return frozenset(node["op"] for node in nodes) - {"null"}, len(nodes)
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset(), 0


def covering(paths: Sequence[Path]) -> list[Path]:
    """The smallest files first, those that have operators which none before has."""
    found = {path: operators(path) for path in paths}
    left = frozenset().union(*(ops for ops, _ in found.values()))
    chosen = []
    for path in sorted(paths, key=lambda p: found[p][1]):
        if found[path][0] & left:
            chosen.append(path)
            left -= found[path][0]
    return chosen


def shape_options(path: Path, shapes: dict[str, Any]) -> list[str]:
    """``--shape`` for each input that the index or the file beside it tells."""
    beside = path.with_name(path.name.split(".json")[0] + ".shapes.json")
    if beside.exists():
        shapes = json.loads(beside.read_text())
    sizes = {name: ",".join(map(str, shape)) for name, shape in shapes.items() if shape}
    return [f"--shape={name}={size}" for name, size in sizes.items()]


def halved(shapes: dict[str, Any]) -> dict[str, Any]:
    """The shapes with pictures of half the width and height, where they are large."""
    return {
        name: [*shape[:2], *(d // 2 if d >= 96 else d for d in shape[2:])]
        if len(shape) == 4
        else shape
        for name, shape in shapes.items()
    }


def command(arguments: Sequence[str], seconds: float) -> tuple[int, dict[str, Any], str]:
    """Exit status, the JSON object, and what was said of a failure."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "memcli", *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return 3, {}, f"took more than {seconds:.0f} s"
    said = [line for line in done.stderr.splitlines() if line.startswith("memcli:")]
    found = json.loads(done.stdout) if done.stdout.strip() else {}
    return done.returncode, found, " ".join(said)


def check(
    path: Path, strategy: str, choices: Sequence[list[str]], plan_seconds: float, seconds: float
) -> dict[str, Any]:
    """One row, at the first of some choices of shapes that the graph takes."""
    row: dict[str, Any] = {"path": path.name, "strategy": strategy}
    with tempfile.TemporaryDirectory() as folder:
        planned = f"{folder}/planned.json"
        options = ["--strategy", strategy, "-o", planned, "--time-limit", f"{plan_seconds}"]
        for shapes in choices:
            status, plan, said = command(["plan", str(path), *options, *shapes], seconds)
            if status != 2:
                break
        if status:
            return row | {"status": status, "problem": f"plan: {said}"}
        status, found, said = command(
            ["verify", planned, "--original", str(path), "--kernels", "plain", "--steps", "0"],
            seconds,
        )
    if status > 1 or not found:
        return row | {"status": status, "problem": f"verify: {said}"}
    return row | {
        "status": 0 if found["ok"] else 1,
        "memory": plan["memory"]["planned_bytes"] / max(1, plan["memory"]["baseline_bytes"]),
        "recompute": plan["recompute"]["fraction"],
        "over": max(
            (
                found[side]["measured_bytes"] / max(1, found[side]["estimated_bytes"]) - 1
                for side in ("baseline", "planned")
            ),
            key=abs,
        ),
        "megabytes": found["planned"]["measured_bytes"] >> 20,
        "rewrites": plan["rewrites"],
        "environment": plan["environment"],
        "equal": {part: (found[part]["bit_equal"], found[part]["compared"]) for part in PARTS},
        "repeats": not any("not deterministic" in note for note in found["notes"]),
    }


def shown(row: dict[str, Any]) -> str:
    """A row as a line."""
    name = f"{row['path'][:56]:56} {row['strategy']:8}"
    if "problem" in row:
        return f"{name} not compared ({row['status']}): {row['problem'][:200]}"
    equal = " ".join(f"{good:5}/{of:<5}" for good, of in row["equal"].values())
    same = "" if row["status"] == 0 else "  DIFFERENT"
    same += "" if row["repeats"] else " (and from step to step)"
    over = f"{row['over']:+7.2%} of {row['megabytes']} MB"
    return f"{name} {row['memory']:6.0%} {row['recompute']:6.0%} {equal}{over}{same}"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="GLOB")
    parser.add_argument("--all", action="store_true", help="not only what covers the operators")
    parser.add_argument("--most-nodes", type=int, default=2500)
    parser.add_argument("--strategy", action="append", metavar="NAME")
    parser.add_argument("--halve", action="store_true", help="pictures of half the size first")
    parser.add_argument("--plan-seconds", type=float, default=10)
    parser.add_argument("--part", default="1/1", metavar="K/N", help="each N-th file from the K-th")
    parser.add_argument("--seconds", type=float, default=300, help="for each command")
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    paths = [p for p in sorted(options.folder.glob("*.json*")) if ".shapes." not in p.name]
    if options.only:
        paths = [p for p in paths if any(fnmatch.fnmatch(p.name, glob) for glob in options.only)]
    paths = [p for p in paths if 0 < operators(p)[1] <= options.most_nodes]
    if not options.all and not options.only:
        paths = covering(paths)
    part, parts = map(int, options.part.split("/"))
    paths = sorted(paths, key=lambda path: path.stat().st_size)[part - 1 :: parts]
    known = index_shapes(options.folder)
    rows = []
    if options.log and options.log.exists():
        rows = [json.loads(line) for line in options.log.read_text().splitlines()]
    have = {(row["path"], row["strategy"]) for row in rows}
    print(f"{'file':56} strategy memory  again {'  '.join(PARTS)}")
    for row in rows:
        print(shown(row))
    for path in paths:
        shapes = known.get(path.name, {})
        choices = [shape_options(path, shapes)]
        if options.halve and halved(shapes) != shapes:
            choices.insert(0, shape_options(path, halved(shapes)))
        for strategy in options.strategy or ["auto"]:
            if (path.name, strategy) in have:
                continue
            rows.append(check(path, strategy, choices, options.plan_seconds, options.seconds))
            print(shown(rows[-1]), flush=True)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(rows[-1]) + "\n")
    compared = [row for row in rows if "problem" not in row]
    good = sum(row["status"] == 0 for row in compared)
    print(f"\n{len(rows)} plans: {len(compared)} trained and compared, {good} equal to the bit")


if __name__ == "__main__":
    main()
