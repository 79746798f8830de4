"""Estimate against MXNet over a folder of symbol files: the baseline, and under plans.

    python benchmarks/estimate_corpus.py FOLDER [--plans 2] [--only GLOB ...] [--batch N]

For each file: one bind without marks gives the training graph; the memory model's figure for it
is compared with MXNet's ``Total N MB``. Then plans (the classic search's, and random ones) are
estimated without binding and compared with a real bind of the marked graph. Input shapes come
from an ``index.tsv`` in the folder where there is one, else as for ``memcli plan``.
Prints a row for each file that is not exact, and the summary.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.mxnet.forms import marked_positions
from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import analyze, ask_mxnet
from memcli.errors import MemcliError
from memcli.request import ShapeRequest
from memcli.search.base import Settings
from memcli.search.over_forms import search_plan


def index_shapes(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Shapes by file name from an index, empty where there is none."""
    path = folder / "index.tsv"
    if not path.exists():
        return {}
    csv.field_size_limit(1 << 30)
    result = {}
    with path.open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            try:
                result[row["path"]] = json.loads(row["inputs"])
            except ValueError:
                continue
    return result


def check(path: Path, shapes: dict[str, list[int]], options: argparse.Namespace) -> dict[str, Any]:
    """All comparisons of one file."""
    plans, batch = options.plans, options.batch
    row: dict[str, Any] = {"path": path.name, "compared": []}
    try:
        source = read_symbol(str(path))
        sidecar = path.with_name(path.name.split(".json")[0] + ".shapes.json")
        request = ShapeRequest(shapes=dict(shapes))
        if sidecar.exists():
            request.shapes = json.loads(sidecar.read_text())
        if batch is not None:
            old = {s[0] for s in request.shapes.values() if s}
            if len(old) == 1:
                request.shapes = {k: [batch, *s[1:]] for k, s in request.shapes.items()}
        analysis = analyze(source.raw, request)
        model = analysis.model
        base = model.evaluate(model.none())
        started = time.perf_counter()
        model.evaluate(analysis.graph.can_recompute)
        row["evaluate_part"] = (time.perf_counter() - started) / analysis.bind_seconds
        row["nodes"] = source.node_count
        row["operators"] = source.operator_count
        row["compared"].append(("unplanned", base.total_mb, analysis.bound_total_mb))
        candidates = []
        if plans:
            found, _ = search_plan(
                analysis.search_space(), options.strategy, Settings(environment="default")
            )
            candidates.append((options.strategy, found.plan.recompute))
            row["planned_mb"] = found.cost.total_mb
        chance = random.Random(path.name)
        for number in range(plans - 1):
            flags = np.array(
                [chance.random() < 0.7 for _ in range(analysis.graph.n_forward)], np.uint8
            )
            candidates.append((f"random{number}", flags & analysis.graph.can_recompute))
        for name, flags in candidates:
            cost = model.evaluate(flags)
            with tempfile.TemporaryDirectory() as folder:
                result, _ = ask_mxnet(
                    source.raw,
                    request,
                    Path(folder),
                    marked=marked_positions(analysis, flags),
                )
            row["compared"].append((name, cost.total_mb, result["total_mb"]))
    except MemcliError as error:
        row["error"] = f"{type(error).__name__}: {error.message}"
    except Exception as error:
        row["error"] = f"BUG {type(error).__name__}: {error}"
    return row


def show(row: dict[str, Any]) -> None:
    """A line for a file that is not exact or was refused."""
    for name, estimate, real in row["compared"]:
        if estimate != real:
            print(f"off   {row['path']} {name}: estimate {estimate}, MXNet {real}", flush=True)
    if "error" in row:
        print(f"error {row['path']}: {row['error']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plans", type=int, default=2)
    parser.add_argument("--only", action="append", metavar="GLOB", help="these files; repeatable")
    parser.add_argument("--strategy", default="memonger", help="of the first plan")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    shapes = index_shapes(options.folder)
    paths = sorted(
        p
        for p in options.folder.iterdir()
        if p.name.endswith((".json", ".json.gz"))
        and not p.name.endswith(".shapes.json")
        and any(fnmatch.fnmatch(p.name, glob) for glob in options.only or ["*"])
    )
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.workers) as pool:
        running = [pool.submit(check, p, shapes.get(p.name, {}), options) for p in paths]
        for done in as_completed(running):
            rows.append(done.result())
            show(rows[-1])
    errors = [r for r in rows if "error" in r]
    bound = [r for r in rows if r["compared"]]
    exact = {True: 0, False: 0}
    for row in bound:
        for _, estimate, real in row["compared"]:
            exact[estimate == real] += 1
    all_exact = sum(all(e == m for _, e, m in r["compared"]) for r in bound)
    print(
        f"{len(rows)} files, {len(bound)} bound, {len(errors)} refused; graphs exact in all "
        f"comparisons: {all_exact}; comparisons exact: {exact[True]} of {sum(exact.values())}"
    )
    parts = [r["evaluate_part"] for r in bound]
    if parts:
        print(
            f"evaluating a plan, as a part of one bind: median {np.median(parts):.3f}, "
            f"largest {max(parts):.3f}"
        )
    ratios = [
        r["planned_mb"] / max(1, r["compared"][0][1])
        for r in bound
        if "planned_mb" in r and r["operators"] > 100
    ]
    if ratios:
        print(f"median planned / unplanned, graphs of over 100 operators: {np.median(ratios):.2f}")
    sys.exit(1 if exact[False] else 0)


if __name__ == "__main__":
    main()
