"""What training takes in all, as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from memcli.reports.tables import add_folded, mib, new_table
from memcli.results.step_total import Breakdown, StepTotal


def breakdown_json(parts: Breakdown) -> dict[str, int]:
    """Bytes by what they are for; their sum is the total.

    ``update_bytes``: so much more than the activations the optimizer's own step takes.
    """
    return {
        "parameter_bytes": parts.parameters,
        "parameter_gradient_bytes": parts.gradients,
        "optimizer_bytes": parts.optimizer,
        "state_bytes": parts.states,
        "input_bytes": parts.inputs,
        "input_gradient_bytes": parts.input_gradients,
        "pool_bytes": parts.pool,
        "update_bytes": max(0, parts.update - parts.pool),
    }


def step_total_json(total: StepTotal) -> dict[str, Any]:
    """The whole step in bytes; ``memory_bytes`` and ``card`` are null where nobody said them."""
    return {
        "optimizer": total.optimizer,
        "baseline_bytes": total.baseline_bytes,
        "planned_bytes": total.planned_bytes,
        "baseline": breakdown_json(total.baseline),
        "planned": breakdown_json(total.planned),
        "baseline_slack_bytes": total.baseline_slack,
        "planned_slack_bytes": total.planned_slack,
        "reserve_bytes": total.reserve,
        "reserve_assumed": total.reserve_assumed or None,
        "memory_bytes": total.memory,
        "card": total.card or None,
    }


def step_total_table(console: Console, total: StepTotal) -> None:
    """The parts of the whole step side by side, and their sum against what there is."""
    table = new_table(
        "The whole training step (MiB)",
        [("", "left"), ("baseline", "right"), ("planned", "right")],
    )
    sides = (total.baseline, total.planned)
    held = "parameters, gradients, states"
    rows = [
        [held, *(mib(p.parameters + p.gradients + p.states) for p in sides)],
        [f"optimizer ({total.optimizer})", *(mib(p.optimizer) for p in sides)],
        ["inputs", *(mib(p.inputs + p.input_gradients) for p in sides)],
        ["activations at the peak", *(mib(p.pool) for p in sides)],
    ]
    if any(p.update > p.pool for p in sides):
        rows.append(["or temporaries of the optimizer's step", *(mib(p.update) for p in sides)])
    if total.baseline_slack or total.planned_slack:
        gaps = (total.baseline_slack, total.planned_slack)
        rows.append(["gaps in what the allocator reserves", *map(mib, gaps)])
    assumed = " (assumed)" if total.reserve_assumed else ""
    whose = "CUDA's context, libraries" if total.on_card else "the process itself"
    rows.append([f"{whose}{assumed}", *[mib(total.reserve)] * 2])
    rows.append(["sum", mib(total.baseline_bytes), mib(total.planned_bytes)])
    if total.memory is not None:
        rows.append([total.card or "memory", *[mib(total.memory)] * 2])
    add_folded(table, rows)
    console.print(table)
