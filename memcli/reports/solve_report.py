"""A schedule as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from memcli.reports.tables import add_folded, clip, facts, new_table
from memcli.results.solved import Solved
from memcli.units import format_size


def solve_json(solved: Solved) -> dict[str, Any]:
    """The object of ``solve --json`` (see the command line's contract)."""
    return {
        "schema": 1,
        "schedule": solved.ids,
        "peak": solved.peak,
        "plain_peak": solved.plain_peak,
        "overhead_percent": solved.overhead_percent,
        "proven": solved.proven,
        "lower_bound_percent": solved.lower_bound_percent,
        "seconds": solved.seconds,
        "found_after_seconds": solved.found_after,
        "found_by": solved.found_by,
        "budget": solved.budget,
        "peak_lower_bound": solved.peak_bound,
        "nodes": solved.graph.n,
        "recomputations": len(solved.schedule) - solved.graph.n,
        "path": solved.path,
    }


def print_solved(console: Console, solved: Solved) -> None:
    """The recomputations, and what the schedule takes."""
    graph = solved.graph
    table = new_table(
        "Recomputed",
        [
            ("step", "right"),
            ("node", "left"),
            ("just before", "left"),
            ("size", "right"),
            ("extra time", "right"),
        ],
    )
    rows: list[list[str]] = []
    seen = 0
    for step, v in enumerate(solved.schedule):
        if v == seen:
            seen += 1
            continue
        share = 100 * graph.seconds[v] / graph.plain_seconds if graph.plain_seconds else 0.0
        before = str(graph.ids[seen]) if seen < graph.n else "-"
        rows.append(
            [
                str(step),
                clip(str(graph.ids[v]), 24),
                clip(before, 24),
                format_size(int(graph.sizes[v])),
                f"{share:.3f}%",
            ]
        )
    if rows:
        add_folded(table, rows)
        console.print(table)
    part = solved.peak / solved.plain_peak if solved.plain_peak else 1.0
    if solved.proven:
        known = "proven: no schedule takes less"
    elif solved.lower_bound_percent > 0:
        known = f"not proven; no schedule takes less than {solved.lower_bound_percent:.3f}%"
    else:
        known = "not proven"
    budget = "none: the least peak" if solved.budget is None else format_size(solved.budget)
    facts(
        console,
        [
            ("graph", f"{graph.n} nodes, {len(graph.reads)} reads"),
            ("plain peak", format_size(solved.plain_peak)),
            ("budget", budget),
            ("peak", f"{format_size(solved.peak)} = {part:.1%} of plain"),
            ("extra time", f"{solved.overhead_percent:.3f}% for {len(rows)} recomputations"),
            ("optimality", known),
            (
                "search",
                f"{solved.seconds:.1f} s; found after {solved.found_after:.2f} s "
                f"({solved.found_by})",
            ),
        ],
    )
