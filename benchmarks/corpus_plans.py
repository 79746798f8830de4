"""What ``auto`` reaches over a folder of symbol files, against the classic search and MXNet.

    python benchmarks/corpus_plans.py FOLDER [--only GLOB ...] [--most-nodes N] [--workers 1]
                                      [--log rows.jsonl] [--plot scale.svg]

For each file: the baseline's memory, under the classic search on the file's own stage marks where
it has some (the memonger strategy, which equals the original; ``benchmarks/original_search.py``
compares the two), and under ``auto``; then the planned graph is written, bound by MXNet with the
environment that the plan names, and MXNet's own ``Total`` compared with the plan's. Rows are
printed as they come, and appended to ``--log``, so that a run can be continued. The summary has the
median of memory and how near the proven bound is, whether ``auto`` is worse than the classic search
anywhere, and how the time to plan grows with the nodes: the exponent of a line through log nodes
and log seconds (``--plot`` draws it; needs matplotlib).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from estimate_corpus import index_shapes

from memcli.engines.costs import set_costs
from memcli.engines.mxnet.forms import analyze_forms
from memcli.engines.mxnet.memory.bounds import reported_bound
from memcli.engines.mxnet.planning import environment_of, marked_file, read_symbol, search_forms
from memcli.engines.mxnet.record import ask_mxnet
from memcli.errors import MemcliError
from memcli.formats.symbol.file import SymbolFile
from memcli.request import ShapeRequest
from memcli.search.base import Settings
from memcli.search.over_forms import search_spaces


def check(path: Path, shapes: dict[str, list[int]]) -> dict[str, Any]:
    """All figures of one file."""
    row: dict[str, Any] = {"path": path.name}
    try:
        source = read_symbol(str(path))
        request = ShapeRequest(shapes=dict(shapes))
        sidecar = path.with_name(path.name.split(".json")[0] + ".shapes.json")
        if sidecar.exists():
            request.shapes = json.loads(sidecar.read_text())
        row["operators"] = source.operator_count
        started = time.monotonic()
        graphs = analyze_forms(source, request, rewrite=True, environment="best")
        analysis = graphs[0].analysis
        set_costs(graphs, "roofline", "cpu")
        base = analysis.model.evaluate(analysis.model.none())
        row["nodes"] = source.node_count
        row["joint_nodes"] = analysis.graph.n_nodes
        row["analysis_seconds"] = time.monotonic() - started
        row["unplanned_mb"] = base.total_bytes / 2**20
        if analysis.graph.stage_at:
            classic, _, _ = search_spaces(
                [analysis.search_space()], "memonger", Settings(environment="default")
            )
            row["classic_mb"] = classic.cost.total_bytes / 2**20
            row["classic_recompute"] = classic.cost.recompute_fraction
        pairs = [(v.analysis.graph, v.analysis.model) for v in graphs]
        began = time.monotonic()
        variant, found, _ = search_forms(graphs, "auto", Settings())
        row["search_seconds"] = time.monotonic() - began
        row["auto_mb"] = found.cost.total_bytes / 2**20
        row["auto_recompute"] = found.cost.recompute_fraction
        began = time.monotonic()
        bound = reported_bound(pairs, found.cost.pool_bytes)
        row["bound_seconds"] = time.monotonic() - began
        row["bound_mb"] = bound / 2**20
        row["pool_mb"] = found.cost.pool_bytes / 2**20
        row["rewrites"] = variant.rewrites
        row["barriers"] = int((found.plan.recompute == 2).sum())
        row["environment"] = environment_of(found.plan, variant.analysis)
        written = SymbolFile.from_bytes(marked_file(variant, found.plan), str(path), source.sha256)
        with tempfile.TemporaryDirectory() as folder:
            result, _ = ask_mxnet(
                written.raw,
                analysis.request(),
                Path(folder),
                marked=None,
                environment=row["environment"],
            )
        row["mxnet_mb"] = result["total_mb"]
        row["exact"] = result["total_mb"] == found.cost.total_mb
    except MemcliError as error:
        row["error"] = f"{type(error).__name__}: {error.message}"
    except Exception as error:
        row["error"] = f"BUG {type(error).__name__}: {error}"
    return row


def show(row: dict[str, Any]) -> None:
    """One line."""
    name = row["path"][:44]
    if "error" in row:
        print(f"{name:44s} {row['error'][:100]}", flush=True)
        return
    classic = f"{row['classic_mb']:9.1f}" if "classic_mb" in row else f"{'-':>9s}"
    print(
        f"{name:44s} {row['operators']:6d} ops {row['unplanned_mb']:9.1f} {classic} "
        f"{row['auto_mb']:9.1f} MB {row['auto_recompute']:5.0%} "
        f"{row['search_seconds']:6.1f} s{'' if row['exact'] else '  NOT EXACT: MXNet '}"
        f"{'' if row['exact'] else row['mxnet_mb']}",
        flush=True,
    )


def summary(rows: list[dict[str, Any]], plot: str | None) -> None:
    """What all rows say together."""
    good = [r for r in rows if "error" not in r and r["unplanned_mb"] > 0]
    large = [r for r in good if r["operators"] > 100]
    exact = sum(r["exact"] for r in good)
    print(f"\n{len(rows)} files, {len(good)} planned; MXNet's Total as planned: {exact}")
    for text, some in (("all", good), ("more than 100 operators", large)):
        if some:
            part = np.median([r["auto_mb"] / r["unplanned_mb"] for r in some])
            again = np.median([r["auto_recompute"] for r in some])
            print(
                f"{text}: {len(some)} graphs, median memory {part:.1%} of the baseline, median "
                f"recomputation {again:.0%} of a forward pass"
            )
            near = [r["bound_mb"] / r["pool_mb"] for r in some if r["pool_mb"]]
            print(
                f"{text}: no plan takes less than {np.median(near):.0%} of it (median); "
                f"proven best: {sum(n >= 1 for n in near)}, contradicted by a plan: "
                f"{sum(n > 1 for n in near)}"
            )
    marked = [r for r in good if "classic_mb" in r]
    worse = [r["path"] for r in marked if r["auto_mb"] > r["classic_mb"] + 1e-6]
    print(f"with stage marks: {len(marked)}; worse than the classic search: {worse or 'none'}")
    timed = [r for r in good if r["joint_nodes"] >= 50]
    if len(timed) > 2:
        nodes = np.log10([r["joint_nodes"] for r in timed])
        for what in ("analysis_seconds", "search_seconds"):
            seconds = np.log10([max(1e-3, r[what]) for r in timed])
            slope, offset = np.polyfit(nodes, seconds, 1)
            print(f"{what}: about {10**offset:.3g} x nodes^{slope:.2f} over {len(timed)} graphs")
    if plot and timed:
        draw(timed, plot)


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Nodes against seconds, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    nodes = [r["joint_nodes"] for r in rows]
    axes.loglog(nodes, [r["analysis_seconds"] for r in rows], "o", ms=3, label="MXNet's analysis")
    axes.loglog(nodes, [r["search_seconds"] for r in rows], "s", ms=3, label="search")
    axes.set_xlabel("nodes of the training graph")
    axes.set_ylabel("seconds")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", metavar="GLOB", help="these files; repeatable")
    parser.add_argument("--most-nodes", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--log", type=Path, help="append rows, and skip the files that are in it")
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args()
    shapes = index_shapes(options.folder)
    rows: list[dict[str, Any]] = []
    if options.log and options.log.exists():
        rows = [json.loads(line) for line in options.log.read_text().splitlines()]
    done = {row["path"] for row in rows}
    paths = [
        p
        for p in options.folder.iterdir()
        if p.name.endswith((".json", ".json.gz"))
        and not p.name.endswith(".shapes.json")
        and p.name not in done
        and any(fnmatch.fnmatch(p.name, glob) for glob in options.only or ["*"])
        and read_count(p) <= options.most_nodes
    ]
    paths.sort(key=lambda p: (p.stat().st_size, p.name))
    with ThreadPoolExecutor(options.workers) as pool:
        running = [pool.submit(check, p, shapes.get(p.name, {})) for p in paths]
        for future in as_completed(running):
            rows.append(future.result())
            show(rows[-1])
            if options.log:
                with options.log.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    summary(rows, options.plot)


def read_count(path: Path) -> int:
    """Nodes of a file; 0 for one that cannot be read, which ``check`` then reports."""
    try:
        return read_symbol(str(path)).node_count
    except MemcliError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
