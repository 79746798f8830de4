"""A verification as tables and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console

from memcli.choices import DEFAULT, PLAIN
from memcli.quoting import first_of
from memcli.reports.tables import add_folded, facts, mib, new_table, step_time
from memcli.reports.workers_report import split_json, worker_json, workers_facts, workers_table
from memcli.results.verified import (
    BASELINE,
    MOST_OVER,
    PLANNED,
    Compared,
    KernelRun,
    KernelRuns,
    Run,
    StageMeasured,
    Verified,
)
from memcli.units import format_size


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
        "memory_ok": verified.memory_ok,
        "memory_faults": verified.memory_faults(),
    }
    if verified.kernels:
        result["kernels"] = {kind: _kernels_json(runs) for kind, runs in verified.kernels.items()}
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


def _kernels_json(runs: KernelRuns) -> dict[str, Any]:
    return {
        "baseline": asdict(runs.baseline) if runs.baseline else None,
        "planned": asdict(runs.planned) if runs.planned else None,
        "bits_equal": runs.bits_equal,
        "left_out": runs.left_out or None,
    }


def _over(estimated: int, measured: int | None) -> str:
    if not measured or not estimated:
        return "-"
    return f"{measured / estimated - 1:+.1%}"


def print_verified(console: Console, verified: Verified) -> None:
    """The whole report of ``memcli verify`` but its last line."""
    table = new_table(
        "Memory by stage of the planned graph, MiB (est: model; meas: really allocated)",
        [
            ("#", "right"),
            ("from", "left"),
            ("to", "left"),
            ("fwd est", "right"),
            ("fwd meas", "right"),
            ("bwd est", "right"),
            ("bwd meas", "right"),
            ("over", "right"),
        ],
    )
    rows = [
        [
            str(s.index),
            s.first,
            s.last,
            mib(s.estimated_forward),
            mib(s.measured_forward),
            mib(s.estimated_bytes),
            mib(s.measured_bytes),
            _over(s.estimated_bytes, s.measured_bytes),
        ]
        for s in verified.stages
    ]
    if rows:
        add_folded(table, rows, names=(1, 2), width=console.width)
        console.print(table)
    most = ", the most of any worker" if verified.split is not None else ""
    totals = new_table(
        f"Whole step: feature maps and their gradients, MiB{most}",
        [
            ("graph", "left"),
            ("estimated", "right"),
            ("measured", "right"),
            ("over", "right"),
            ("workspace", "right"),
            ("step", "right"),
        ],
    )
    for name, run in ((BASELINE, verified.baseline), (PLANNED, verified.planned)):
        totals.add_row(name, *_total_row(run))
    console.print(totals)
    kernels_table(console, verified.kernels)
    shared = []
    if verified.split is not None:
        workers_table(console, verified.workers, _over)
        shared = workers_facts(verified.split, verified.workers)
    facts(
        console,
        [
            *shared,
            *_bits(verified),
            ("memory", _memory(verified)),
            *_reserved(verified),
            *_default_kernels(verified.kernels),
            ("device", f"{verified.device}; memory by {verified.method}"),
            ("original", verified.original),
        ],
    )


def _bits(verified: Verified) -> list[tuple[str, str]]:
    kinds = {
        "outputs": verified.outputs,
        "gradients": verified.gradients,
        "states": verified.states,
    }
    if verified.simulated:
        return [("bits", "not compared: a simulated card computes nothing")]
    if verified.ok:
        counted = ", ".join(f"{part.compared} {kind}" for kind, part in kinds.items())
        return [("bits", f"equal: {counted}")]
    different = [kind for kind, part in kinds.items() if part.different]
    rows = [(kind, _equal(part)) for kind, part in kinds.items()]
    return [*rows, ("bits", f"DIFFERENT in {' and '.join(different)}")]


def _memory(verified: Verified) -> str:
    if not verified.memory_ok:
        return f"MORE THAN ESTIMATED: {'; '.join(verified.memory_faults())}"
    runs = ((PLANNED, verified.planned), (BASELINE, verified.baseline))
    rows = ", ".join(f"{name} {run.over:+.1%}" for name, run in runs)
    return f"as estimated: {rows} (up to {MOST_OVER:+.0%} is)"


def _reserved(verified: Verified) -> list[tuple[str, str]]:
    """What CUDA's allocator takes from the card, parameters and all, by its emulation beside."""
    rows = [
        f"{name} {format_size(run.estimated_reserved_bytes)} estimated, "
        f"{format_size(run.reserved_bytes)} measured"
        for name, run in ((BASELINE, verified.baseline), (PLANNED, verified.planned))
        if run.reserved_bytes and run.estimated_reserved_bytes
    ]
    return [("reserved", "; ".join(rows))] if rows else []


_KERNEL_NAMES = {PLAIN: "plain (as planned)", DEFAULT: "oneDNN (as MXNet starts)"}


def kernels_table(console: Console, kernels: dict[str, KernelRuns]) -> None:
    """Both graphs on MXNet's kernels of both kinds, where there is something to compare."""
    if len(kernels) < 2:
        return
    table = new_table(
        "Kernels: feature maps, gradients and buffers of kernels, measured, MiB",
        [
            ("graph", "left"),
            ("kernels", "left"),
            ("measured", "right"),
            ("workspace", "right"),
            ("step", "right"),
        ],
    )
    for graph in (BASELINE, PLANNED):
        for kind, runs in kernels.items():
            run: KernelRun | None = getattr(runs, graph)
            cells = ["not run", "-", "-"]
            if run is not None:
                cells = [
                    mib(run.measured_bytes),
                    mib(run.workspace_bytes),
                    step_time(run.step_seconds),
                ]
            table.add_row(graph, _KERNEL_NAMES[kind], *cells)
    console.print(table)


def _default_kernels(kernels: dict[str, KernelRuns]) -> list[tuple[str, str]]:
    """What training without the plan's variables comes to."""
    plain, default = kernels.get(PLAIN), kernels.get(DEFAULT)
    if plain is None or default is None:
        return []
    if default.planned is None or plain.planned is None:
        return [("as started", f"with oneDNN nothing was run: {default.left_out}")]
    taken, planned = default.planned.measured_bytes, plain.planned.measured_bytes
    bits = "the same bits" if default.bits_equal else "OTHER bits than the baseline so"
    text = (
        f"with oneDNN and none of the plan's variables planned takes {format_size(taken)}, "
        f"{taken / max(1, planned):.1f} times as planned, and gives {bits}"
    )
    if taken > (1 + MOST_OVER) * planned:
        text += "; MXNET_MKLDNN_ENABLED=0 trains as planned"
    return [("as started", text)]


def _total_row(run: Run) -> list[str]:
    return [
        mib(run.estimated_bytes),
        mib(run.measured_bytes),
        _over(run.estimated_bytes, run.measured_bytes),
        mib(run.workspace_bytes),
        step_time(run.step_seconds),
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
