"""The largest batch that trains, as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from memcli.reports.model_facts import engine_json, model_json, shown_inputs, time_share
from memcli.reports.step_total import breakdown_json
from memcli.reports.tables import add_folded, facts, mib, new_table, percent
from memcli.results.fitted import Fitted, Side
from memcli.units import distinct_sizes, format_size


def fit_json(fitted: Fitted) -> dict[str, Any]:
    """The object of ``fit --json``. Sizes in bytes, times in seconds.

    Where no batch of the baseline fits, that side's ``batch`` is 0, its figures are those of batch
    1, and ``ratio`` is null.
    """
    cost = fitted.planned.cost
    return {
        "schema": 1,
        "model": model_json(fitted.source, fitted.sha256, fitted.operator_count),
        "shapes": fitted.analysis.inputs,
        "dtype": fitted.analysis.dtype,
        "memory_bytes": fitted.memory,
        "reserve_bytes": fitted.reserve,
        "reserve_assumed": fitted.reserve_assumed or None,
        "optimizer": fitted.optimizer,
        "strategy": fitted.strategy,
        "unplanned": _side_json(fitted.baseline),
        "planned": _side_json(fitted.planned)
        | {
            "found_by": fitted.plan.strategy,
            "recompute": {
                "flops": cost.recompute_flops,
                "forward_flops": cost.forward_flops,
                "fraction": cost.recompute_fraction,
            },
            "cost": {"kind": fitted.cost_of, "fraction": cost.time_fraction},
            "environment": fitted.environment,
        },
        "ratio": fitted.ratio,
        "output": fitted.output,
        "search": {
            "plans": fitted.searches,
            "batches": fitted.batches,
            "seconds": fitted.seconds,
        },
        "notes": fitted.notes,
        **engine_json(fitted.device, fitted.restored),
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "batch": side.batch,
        "bytes": side.breakdown.total,
        "breakdown": breakdown_json(side.breakdown),
        "live_peak_bytes": side.cost.live_peak_bytes,
        "next_bytes": side.next_bytes,
        "next_problem": side.next_problem or None,
    }


def breakdown_table(console: Console, fitted: Fitted) -> None:
    """Where the memory goes at the largest batch, baseline and planned."""
    table = new_table(
        "The largest batch, and where its memory goes (MiB)",
        [("", "left"), ("baseline", "right"), ("planned", "right")],
    )
    sides = [fitted.baseline, fitted.planned]
    rows = [["batch", *(f"{s.batch:,}" if s.fits else "1 (does not fit)" for s in sides)]]

    def row(label: str, sizes: list[int]) -> None:
        rows.append([label, *map(mib, sizes)])

    parts = [side.breakdown for side in sides]
    row("parameters", [p.parameters for p in parts])
    row("their gradients", [p.gradients for p in parts])
    row(f"optimizer ({fitted.optimizer})", [p.optimizer for p in parts])
    if fitted.device:
        row("states and constants", [p.states for p in parts])
        row("inputs", [p.inputs for p in parts])
        row("feature maps and their gradients", [p.pool for p in parts])
    else:
        row("auxiliary states", [p.states for p in parts])
        row("inputs", [p.inputs for p in parts])
        row("their gradients", [p.input_gradients for p in parts])
        row("feature maps and their gradients (the pool)", [p.pool for p in parts])
    if any(p.update for p in parts):
        row(
            "temporaries of the optimizer's step, when activations are gone",
            [p.update for p in parts],
        )
    row("sum", [p.total for p in parts])
    if fitted.reserve:
        row("reserve (assumed)" if fitted.reserve_assumed else "reserve", [fitted.reserve] * 2)
    row("memory", [fitted.memory] * 2)
    add_folded(table, rows)
    console.print(table)


def print_fitted(console: Console, fitted: Fitted) -> None:
    """The whole report of ``memcli fit`` but its last line."""
    breakdown_table(console, fitted)
    sides = {"baseline": fitted.baseline, "planned": fitted.planned}
    if fitted.ratio is None:
        batch = f"{fitted.planned.batch:,} planned; baseline not even 1"
    else:
        batch = (
            f"{fitted.planned.batch:,} planned, {fitted.baseline.batch:,} baseline: "
            f"{fitted.ratio:.2f} times"
        )
    strategy = fitted.strategy
    if fitted.plan.strategy != strategy:
        strategy += f": {fitted.plan.strategy}"
    cost = fitted.planned.cost
    engine = fitted.engine
    pairs = [
        ("batch", batch),
        (
            "one more",
            "; ".join(f"{k}, {_one_more(v, engine, fitted.available)}" for k, v in sides.items()),
        ),
        ("inputs", shown_inputs(fitted.analysis)),
        (
            "recomputed",
            f"{percent(cost.recompute_fraction)} of one forward pass"
            f"{time_share(cost, fitted.cost_of)}",
        ),
        (
            "strategy",
            f"{strategy} ({fitted.searches} searches and {fitted.batches} batches in "
            f"{fitted.seconds:.1f} s)",
        ),
        (
            "reserve",
            f"{format_size(fitted.reserve)} assumed: {fitted.reserve_assumed} (--reserve "
            "SIZE says otherwise)",
        )
        if fitted.reserve_assumed
        else ("not counted", _NOT_COUNTED.get(fitted.device, _NOT_COUNTED[""])),
    ]
    if fitted.device:
        how = "blocks of its allocator; --cpu for the CPU" if fitted.device == "cuda" else "bytes"
        pairs.insert(2, ("device", f"{fitted.device} (PyTorch, in {how})"))
    if fitted.environment:
        text = " ".join(f"{k}={v}" for k, v in fitted.environment.items())
        pairs.append(("environment", f"{text} (train with it, or fit --environment default)"))
    facts(console, pairs)


_NOT_COUNTED = {
    "": "what the engine and its libraries take for themselves (--reserve)",
    "cuda": "CUDA's context, libraries' workspaces, gaps between the allocator's blocks "
    "(--reserve)",
}


def _one_more(side: Side, engine: str, available: int) -> str:
    if side.next_bytes is None:
        return f"{engine} refuses {side.batch + 1:,}: {side.next_problem}"
    return f"{side.batch + 1:,} needs {distinct_sizes(side.next_bytes, available)[0]}"
