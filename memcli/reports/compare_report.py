"""All strategies and budgets side by side: a table and JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from memcli.reports.model_facts import COST_WORDS, engine_json, model_json, shown_inputs
from memcli.reports.tables import add_folded, clip, facts, mib, new_table, percent
from memcli.results.compared import Comparison, Row
from memcli.units import format_size

COLUMNS = [
    ("", "left"),
    ("strategy", "left"),
    ("budget", "right"),
    ("MiB", "right"),
    ("part", "right"),
    ("live peak", "right"),
    ("FLOPs", "right"),
    ("cost", "right"),
    ("s", "right"),
    ("", "left"),
]
# Rows that a table shows before its middle is folded; nobody asks for this many.
_MOST_ROWS = 100


def compare_json(compared: Comparison, plot: str | None = None) -> dict[str, Any]:
    """The object of ``compare --json``. Sizes in bytes, times in seconds.

    Args:
        compared: what is shown.
        plot: the file that the plot was written to.
    """
    analysis = compared.analysis
    return {
        "schema": 1,
        "model": model_json(compared.source, compared.sha256, compared.operator_count),
        "shapes": analysis.inputs,
        "assumed_shapes": analysis.assumed,
        "dtype": analysis.dtype,
        "loss_added": analysis.loss_heads > 0,
        "baseline_bytes": compared.baseline.pool_bytes,
        "baseline_live_peak_bytes": compared.baseline.live_peak_bytes,
        "lower_bound_bytes": compared.lower_bound,
        "forward_flops": compared.baseline.forward_flops,
        "rows": [_row_json(row) for row in compared.rows],
        "cost": {"kind": compared.cost_of},
        "plot": plot,
        "notes": compared.notes,
        **engine_json(compared.device, compared.restored),
    }


def _row_json(row: Row) -> dict[str, Any]:
    ran = row.recompute_flops is not None
    return {
        "strategy": row.strategy,
        "budget": row.budget,
        "budget_bytes": row.budget_bytes,
        "found_by": row.found_by,
        "planned_bytes": row.planned_bytes,
        "live_peak_bytes": row.live_peak_bytes,
        "recompute": {
            "flops": row.recompute_flops,
            "fraction": row.recompute_fraction,
            "time_fraction": row.time_fraction,
        }
        if ran
        else None,
        "seconds": row.seconds,
        "environment": row.environment,
        "on_frontier": row.on_frontier,
        "feasible": row.feasible,
        "problem": row.problem or None,
    }


def cells(row: Row, baseline_bytes: int, notes: list[str]) -> list[str]:
    """A row's cells, in the order of :data:`COLUMNS`.

    What is too long for a cell (a variable to train with, a reason) is added to ``notes``, and
    the cell has its number.
    """
    said = []
    if row.problem:
        said.append(f"failed {_number(f'{row.label}: {row.problem}', notes)}")
    elif not row.feasible:
        said.append("does not fit")
    if row.environment:
        needed = " ".join(f"{k}={v}" for k, v in row.environment.items())
        said.append(_number(f"train with {needed}, or compare --environment default", notes))
    size = row.planned_bytes
    part = row.recompute_fraction
    return [
        "*" if row.on_frontier else "",
        clip(row.strategy, 12),
        row.budget or "",
        mib(size),
        "-" if size is None or not baseline_bytes else percent(size / baseline_bytes),
        mib(row.live_peak_bytes),
        "-" if part is None else percent(part),
        "-" if row.time_fraction is None else percent(row.time_fraction),
        f"{row.seconds:.1f}",
        " ".join(said),
    ]


def _number(text: str, notes: list[str]) -> str:
    if text not in notes:
        notes.append(text)
    return f"[{notes.index(text) + 1}]"


def comparison_facts(compared: Comparison) -> list[tuple[str, str]]:
    """What all rows share."""
    base = compared.baseline
    live = f" (live peak {format_size(base.live_peak_bytes)})"
    pairs = [
        ("inputs", shown_inputs(compared.analysis)),
        ("baseline", f"{format_size(base.pool_bytes)}{'' if compared.device else live}"),
        ("lower bound", f"{format_size(compared.lower_bound)} (of every plan of this kind)"),
    ]
    pairs.append(
        (
            "cost",
            f"{COST_WORDS[compared.cost_of]}, of recomputing operators: what plans "
            "within a budget minimize",
        )
    )
    if compared.device:
        pairs.insert(1, ("device", f"{compared.device} (PyTorch)"))
    return pairs


def print_comparison(console: Console, compared: Comparison) -> None:
    """The whole report of ``memcli compare`` but its last line."""
    table = new_table(
        "Memory and recomputation (part: of baseline; FLOPs, cost: of a forward pass)", COLUMNS
    )
    notes: list[str] = []
    rows = [cells(row, compared.baseline.pool_bytes, notes) for row in compared.rows]
    if rows:
        add_folded(table, rows, _MOST_ROWS)
        console.print(table)
    pairs = comparison_facts(compared)
    pairs.append(("*", "no other row has less memory without more cost, or the reverse"))
    if any(not row.feasible and not row.problem for row in compared.rows):
        pairs.append(("does not fit", "no plan found fits the budget; the row is the nearest one"))
    pairs += [(f"[{number}]", text) for number, text in enumerate(notes, 1)]
    facts(console, pairs)
