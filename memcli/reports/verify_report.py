"""A verification as tables and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console

from memcli.formats.wording import first_of
from memcli.reports.tables import add_folded, clip, facts, mib, new_table
from memcli.reports.workers_report import split_json, worker_json, workers_facts, workers_table
from memcli.workflow.verifying import Compared, Run, StageMeasured, Verified


def _finite(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else str(value)


def _compared_json(part: Compared, *, relative: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "compared": part.compared,
        "bit_equal": part.bit_equal,
        "max_abs_diff": _finite(part.max_abs_diff),
    }
    if relative:
        result["max_rel_diff"] = _finite(part.max_rel_diff)
    if part.different:
        result["different"] = part.different[:20]
    return result


def verify_json(verified: Verified) -> dict[str, Any]:
    """The object of ``verify --json`` (see the command line's contract)."""
    result = {
        "schema": 1,
        "engine": verified.engine,
        "device": verified.device,
        "planned_path": verified.planned_path,
        "original": verified.original,
        "shapes": verified.shapes,
        "seed": verified.seed,
        "scaled": verified.scaled,
        "baseline": asdict(verified.baseline),
        "planned": asdict(verified.planned),
        "outputs": _compared_json(verified.outputs, relative=False),
        "gradients": _compared_json(verified.gradients, relative=True),
        "states": _compared_json(verified.states, relative=False),
        "stages": [_stage_json(stage) for stage in verified.stages],
        "memory_method": verified.method,
        "notes": verified.notes,
        "ok": verified.ok,
    }
    if verified.split is not None:
        result["split"] = split_json(verified.split)
        result["workers"] = [
            worker_json(worker, lambda part: _compared_json(part, relative=True))
            for worker in verified.workers
        ]
    return result


def _stage_json(stage: StageMeasured) -> dict[str, Any]:
    return {
        "index": stage.index,
        "first": stage.first,
        "last": stage.last,
        "operators": stage.operators,
        "estimated_bytes": stage.estimated_bytes,
        "measured_bytes": stage.measured_bytes,
        "forward_estimated_bytes": stage.estimated_forward,
        "forward_measured_bytes": stage.measured_forward,
    }


def _off(estimated: int, measured: int | None) -> str:
    if measured is None or not measured:
        return "-"
    return f"{(estimated - measured) / measured:+.1%}"


def print_verified(console: Console, verified: Verified) -> None:
    """The whole report of ``memcli verify`` but its last line."""
    table = new_table(
        "Memory by stage of the planned graph, MiB (est: model; meas: really allocated)",
        [
            ("#", "right"), ("from", "left"), ("to", "left"), ("fwd est", "right"),
            ("fwd meas", "right"), ("bwd est", "right"), ("bwd meas", "right"), ("off", "right"),
        ],
    )  # fmt: skip
    rows = [
        [
            str(s.index),
            clip(s.first, 11),
            clip(s.last, 11),
            mib(s.estimated_forward),
            mib(s.measured_forward),
            mib(s.estimated_bytes),
            mib(s.measured_bytes),
            _off(s.estimated_bytes, s.measured_bytes),
        ]
        for s in verified.stages
    ]
    if rows:
        add_folded(table, rows)
        console.print(table)
    most = ", the most of any worker" if verified.split is not None else ""
    totals = new_table(
        f"Whole step: feature maps and their gradients, MiB{most}",
        [
            ("graph", "left"), ("estimated", "right"), ("measured", "right"), ("off", "right"),
            ("workspace", "right"), ("step", "right"),
        ],
    )  # fmt: skip
    for name, run in (("original", verified.baseline), ("planned", verified.planned)):
        totals.add_row(name, *_total_row(run))
    console.print(totals)
    shared = []
    if verified.split is not None:
        workers_table(console, verified.workers, _off)
        shared = workers_facts(verified.split, verified.workers)
    facts(
        console,
        [
            *shared,
            ("outputs", _equal(verified.outputs)),
            ("gradients", _equal(verified.gradients)),
            ("states", _equal(verified.states)),
            ("device", f"{verified.device}; memory by {verified.method}"),
            ("original", verified.original),
        ],
    )


def _total_row(run: Run) -> list[str]:
    return [
        mib(run.estimated_bytes),
        mib(run.measured_bytes),
        _off(run.estimated_bytes, run.measured_bytes),
        mib(run.workspace_bytes),
        f"{run.step_seconds:.2f} s",
    ]


def _equal(part: Compared) -> str:
    if not part.compared:
        return "none to compare"
    if part.compared == part.bit_equal:
        return f"{part.bit_equal} of {part.compared} equal to the bit"
    names = first_of(part.different)
    return (
        f"{part.bit_equal} of {part.compared} equal to the bit; largest difference "
        f"{part.max_abs_diff:.3g} ({names})"
    )
