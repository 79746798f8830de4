"""Strategies side by side: memory, recomputation and seconds of each on each network.

    python benchmarks/strategies.py [FILE_OR_FOLDER ...] [--strategy NAME ...] [--batch N]
                                    [--bound SECONDS] [--environment best|default]

The examples where no file is named. A folder stands for the symbol files in it; what cannot be
planned as it is (no shapes, not a symbol) is named and left out. Memory is MXNet's pool in MiB,
recomputation in percent of one forward pass. The last lines of a network are bounds that hold for
every plan: from steps and paths, and with --bound also from the mixed-integer program, which is
given that many seconds; "proven" says how much of the best plan's live peak the bound reaches.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from memcli.engines.mxnet.memory.bounds import best_lower_bound
from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.reserving import allow_reservation
from memcli.errors import MemcliError
from memcli.reports.tables import mib, new_table
from memcli.request import ShapeRequest
from memcli.search.base import Settings
from memcli.search.over_forms import search_plan
from memcli.search.registry import STRATEGIES

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def files(paths: list[Path]) -> list[Path]:
    """The files named, and those in the folders named."""
    result: list[Path] = []
    for path in paths:
        found = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        result += [p for p in found if not path.is_dir() or ".json" in p.suffixes]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[EXAMPLES])
    parser.add_argument("--strategy", action="append", choices=list(STRATEGIES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--bound", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--environment", choices=["best", "default"], default="best")
    parser.add_argument("--time-limit", type=float, help="seconds for each strategy")
    options = parser.parse_args()
    console = Console(highlight=False)
    for path in files(options.paths):
        try:
            analysis = analyze(read_symbol(str(path)).raw, ShapeRequest(batch=options.batch))
        except MemcliError as error:
            console.print(f"{path.name}: left out ({error})", markup=False)
            continue
        compare(console, path.name, analysis, options)


def compare(console: Console, name: str, analysis: Analysis, options: argparse.Namespace) -> None:
    """The table of one network."""
    graph, model = analysis.graph, analysis.model
    allow_reservation(analysis)
    columns = [
        ("strategy", "left"),
        ("MiB", "right"),
        ("live MiB", "right"),
        ("%", "right"),
        ("again %", "right"),
        ("range", "right"),
        ("s", "right"),
    ]
    table = new_table(f"{name}: {graph.n_nodes} nodes", columns)
    whole = model.evaluate(model.none())
    least = whole.pool_bytes
    for strategy in options.strategy or list(STRATEGIES):
        started = time.monotonic()
        settings = Settings(environment=options.environment, time_limit=options.time_limit)
        found, search = search_plan(analysis.search_space(), strategy, settings)
        seconds = time.monotonic() - started
        least = min([least, *(f.cost.pool_bytes for f in search.tried)])
        table.add_row(
            strategy,
            mib(found.cost.pool_bytes),
            mib(found.cost.live_peak_bytes),
            f"{found.cost.pool_bytes / max(1, whole.pool_bytes):.1%}",
            f"{found.cost.recompute_fraction:.1%}",
            str(found.plan.match_range),
            f"{seconds:.1f}",
        )
    for limit in dict.fromkeys([0.0, options.bound]):
        started = time.monotonic()
        bound = best_lower_bound(graph, model, limit, least)
        seconds = time.monotonic() - started
        table.add_row(f"bound: {bound.source}", "", mib(bound.bytes), "", "", "", f"{seconds:.1f}")
        part = bound.bytes / max(1, least)
        table.caption = f"proven: {part:.1%} of the least pool found"
    console.print(table)


if __name__ == "__main__":
    main()
