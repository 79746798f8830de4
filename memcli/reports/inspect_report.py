"""What ``memcli inspect`` found, as tables and as JSON."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from memcli.formats.wording import shown_path
from memcli.memory.breakdown import Split
from memcli.reports.plan_report import stage_json, stage_table
from memcli.reports.tables import add_folded, clip, facts, flops, mib, new_table, percent
from memcli.units import format_size
from memcli.workflow.inspecting import Figures, Inspected, LargeTensor, NodeRow, PlanFacts

# Rows of a table of inputs or operator kinds before its middle is folded.
_FEW_ROWS = 12


def next_step(inspected: Inspected) -> str:
    """The last line: which command comes next."""
    path = shlex.quote(shown_path(inspected.path))
    if inspected.plan is None:
        return f"next: memcli plan {path} -o planned.json"
    if inspected.plan.record is None:
        return f"next: memcli verify {path}, or a better plan: memcli plan {path} -o planned.json"
    return f"next: memcli verify {path}"


def inspect_json(inspected: Inspected, *, nodes: bool = False) -> dict[str, Any]:
    """The object of ``inspect --json``. Sizes in bytes; ``nodes``: with all operator nodes."""
    planned, unplanned = inspected.planned, inspected.unplanned
    result: dict[str, Any] = {
        "schema": 1,
        "model": {
            "path": inspected.path,
            "format": "mxnet-symbol",
            "sha256": inspected.sha256,
            "nodes": inspected.nodes,
            "operators": inspected.operators,
        },
        "shapes": {t.name: t.shape for t in inspected.inputs},
        "assumed_shapes": [t.name for t in inspected.inputs if t.assumed],
        "dtype": inspected.dtype,
        "loss_added": inspected.loss_added,
        "inputs": [dataclasses.asdict(t) for t in inspected.inputs],
        "outputs": [
            {"name": t.name, "shape": t.shape, "dtype": t.dtype} for t in inspected.outputs
        ],
        "plan": _plan_json(inspected.plan),
        "memory": {
            "baseline_bytes": unplanned.pool_bytes,
            "planned_bytes": planned.pool_bytes if planned else None,
            "live_peak_bytes": (planned or unplanned).live_peak_bytes,
            "lower_bound_bytes": inspected.lower_bound,
            "baseline_live_peak_bytes": unplanned.live_peak_bytes,
            "baseline_kept_bytes": unplanned.kept_bytes,
            "kept_bytes": (planned or unplanned).kept_bytes,
            "parameter_bytes": inspected.parameter_bytes,
            "parameter_gradient_bytes": inspected.parameter_bytes,
            "state_bytes": inspected.state_bytes,
        },
        "recompute": {
            "flops": planned.recompute_flops if planned else 0.0,
            "forward_flops": inspected.forward_flops,
            "fraction": _recomputed_part(inspected),
        },
        "live_peak": {
            "baseline": _figures_json(unplanned),
            "planned": _figures_json(planned) if planned else None,
        },
        "operators": [dataclasses.asdict(kind) for kind in inspected.kinds],
        "stages": [stage_json(stage) for stage in inspected.stages],
        "largest_tensors": [_tensor_json(tensor) for tensor in inspected.largest],
        "stage_marks": inspected.stage_marks,
        "notes": inspected.notes,
    }
    if nodes:
        result["nodes"] = [dataclasses.asdict(row) for row in inspected.listed]
    return result


def _plan_json(plan: PlanFacts | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    result: dict[str, Any] = {
        "strategy": plan.strategy,
        "environment": plan.environment,
        "marked": plan.marked,
        "recomputed": plan.recomputed,
        "by_memcli": plan.record is not None,
    }
    if plan.record is not None:
        record = plan.record
        result |= {
            "memcli_version": record.memcli_version,
            "original": {"name": record.original_name, "sha256": record.original_sha256},
            "shapes": record.shapes,
            "dtype": record.dtype,
            "memory": record.memory,
            "recompute": record.recompute,
        }
    return result


def _split_json(split: Split) -> dict[str, int]:
    return {
        "feature_map_bytes": split.feature_maps,
        "gradient_bytes": split.gradients,
        "recomputed_bytes": split.recomputed,
        "bytes": split.total,
    }


def _figures_json(figures: Figures) -> dict[str, Any]:
    return {
        **_split_json(figures.split),
        "at": figures.peak_at,
        "during": figures.peak_in,
        "operators": [{"op": op, **_split_json(s)} for op, s in figures.by_operator.items()],
        "stages": [{"index": i, **_split_json(s)} for i, s in enumerate(figures.by_stage)],
    }


def _tensor_json(tensor: LargeTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "op": tensor.op,
        "shape": list(tensor.shape),
        "itemsize": tensor.itemsize,
        "bytes": tensor.size,
        "state": tensor.state,
    }


def _recomputed_part(inspected: Inspected) -> float:
    if inspected.planned is None or not inspected.forward_flops:
        return 0.0
    return inspected.planned.recompute_flops / inspected.forward_flops


def print_inspected(console: Console, inspected: Inspected, *, nodes: bool = False) -> None:
    """The whole report of ``memcli inspect`` but its last line."""
    facts(console, _model_facts(inspected))
    tensor_table(console, inspected)
    kind_table(console, inspected)
    step_table(console, inspected)
    live_operator_table(console, inspected)
    live_stage_table(console, inspected)
    if inspected.stages:
        stage_table(console, inspected.stages)
    largest_table(console, inspected.largest)
    if nodes:
        node_table(console, inspected.listed)


def shape_text(shape: Sequence[int] | None) -> str:
    """Dimensions as ``--shape`` takes them; a scalar has none."""
    if shape is None:
        return "-"
    return ",".join(map(str, shape)) or "scalar"


def _model_facts(inspected: Inspected) -> list[tuple[str, str]]:
    parameters = format_size(inspected.parameter_bytes)
    pairs = [
        ("model", f"{inspected.path}: MXNet symbol, {inspected.nodes} nodes, of which "
                  f"{inspected.operators} operators"),
        ("SHA-256", inspected.sha256),
        ("dtype", inspected.dtype),
        ("parameters", f"{parameters}; their gradients {parameters}; states "
                       f"{format_size(inspected.state_bytes)}: not in the memory below"),
        ("forward", f"{flops(inspected.forward_flops)}FLOP"),
    ]  # fmt: skip
    if inspected.loss_added:
        pairs.append(("loss", "none in the graph; seen under the sum of its outputs"))
    if inspected.stage_marks:
        total = sum(inspected.stage_marks.values())
        values = len(inspected.stage_marks)
        what = "value" if values == 1 else "values"
        pairs.append(("stage marks", f"{total} nodes carry mirror_stage, {values} {what}"))
    plan = inspected.plan
    if plan is None:
        pairs.append(("plan", "none: nothing is recomputed"))
        return pairs
    ran = f"{plan.marked} nodes marked, {plan.recomputed} operators run again"
    if plan.record is None:
        pairs.append(("plan", f"marks of the file, not made by memcli: {ran}"))
        return pairs
    record = plan.record
    pairs += [
        ("plan", f"{plan.strategy}, by memcli {record.memcli_version}: {ran}"),
        ("original", f"{record.original_name}, SHA-256 {record.original_sha256[:16]}..."),
        ("made for", f"{_shapes(record.shapes)} ({record.dtype})"),
        ("its figures", _record_figures(record.memory, record.recompute)),
    ]
    if plan.environment:
        text = " ".join(f"{k}={v}" for k, v in plan.environment.items())
        pairs.append(("environment", f"{text} (run with it to get the planned memory)"))
    return pairs


def _shapes(shapes: dict[str, list[int]]) -> str:
    shown = [f"{name} {shape_text(shape)}" for name, shape in shapes.items()]
    more = [f"and {len(shown) - 3} more"] if len(shown) > 3 else []
    return "; ".join(shown[:3] + more)


def _record_figures(memory: dict[str, int], recompute: dict[str, int | float]) -> str:
    words = {
        "baseline_bytes": "as saved",
        "planned_bytes": "planned",
        "live_peak_bytes": "live peak",
        "lower_bound_bytes": "lower bound",
    }
    shown = [f"{word} {format_size(memory[k])}" for k, word in words.items() if k in memory]
    if "fraction" in recompute:
        shown.append(f"recomputed {percent(float(recompute['fraction']))}")
    return ", ".join(shown) or "none"


def tensor_table(console: Console, inspected: Inspected) -> None:
    """Inputs and outputs."""
    table = new_table(
        "Inputs and outputs",
        [("", "left"), ("name", "left"), ("shape", "left"), ("type", "left"), ("", "left")],
    )
    inputs = [
        [t.role, clip(t.name, 28), shape_text(t.shape), t.dtype, "assumed" if t.assumed else ""]
        for t in inspected.inputs
    ]
    outputs = [
        ["output", clip(t.name, 28), shape_text(t.shape), t.dtype, ""] for t in inspected.outputs
    ]
    for rows in (inputs, outputs):
        if rows:
            add_folded(table, rows, _FEW_ROWS // 2)
    console.print(table)


def kind_table(console: Console, inspected: Inspected) -> None:
    """Operators by kind."""
    columns = [
        ("operator", "left"), ("count", "right"), ("FLOPs", "right"), ("outputs", "right"),
        ("kept", "right"),
    ]  # fmt: skip
    title = "Operators (MiB; kept: of the outputs, what the backward pass reads)"
    if inspected.planned is not None:
        columns += [("planned", "right"), ("run again", "right")]
        title = "Operators (MiB; kept: read by the backward; planned: under the plan)"
    table = new_table(title, columns)
    rows = []
    for kind in inspected.kinds:
        row = [
            clip(kind.op, 24), str(kind.count), flops(kind.flops), mib(kind.output_bytes),
            mib(kind.kept_bytes),
        ]  # fmt: skip
        if inspected.planned is not None:
            row += [mib(kind.planned_kept_bytes), str(kind.recomputed)]
        rows.append(row)
    if rows:
        add_folded(table, rows)
        console.print(table)


def step_table(console: Console, inspected: Inspected) -> None:
    """The memory of a step, unplanned and planned side by side."""
    sides = [inspected.unplanned] + ([inspected.planned] if inspected.planned else [])
    columns = [("memory of a training step, MiB", "left"), ("unplanned", "right")]
    if inspected.planned is not None:
        columns += [("planned", "right"), ("part", "right")]
    table = new_table("", columns)
    table.title = None  # its first heading says what it is

    rows: list[list[str]] = []

    def row(label: str, values: list[int], *, compared: bool = False) -> None:
        cells = [mib(value) for value in values]
        if len(values) == 2:
            cells.append(percent(values[1] / values[0]) if compared and values[0] else "")
        rows.append([label, *cells])

    row("allocated by MXNet (the pool)", [s.pool_bytes for s in sides], compared=True)
    row("live peak", [s.live_peak_bytes for s in sides], compared=True)
    row("  feature maps", [s.split.feature_maps for s in sides])
    row("  gradients", [s.split.gradients for s in sides])
    if inspected.planned is not None:
        row("  recomputed copies", [s.split.recomputed for s in sides])
    row("kept for the backward pass", [s.kept_bytes for s in sides], compared=True)
    row("lower bound of every plan", [inspected.lower_bound] * len(sides))
    if inspected.planned is not None:
        again = flops(inspected.planned.recompute_flops)
        part = percent(_recomputed_part(inspected))
        rows.append(["recomputed, FLOPs (part: of a forward)", "0", again, part])
    add_folded(table, rows)
    console.print(table)
    peaks = [("live peak at", _at(inspected.unplanned))]
    if inspected.planned is not None:
        peaks = [
            ("unplanned peak at", _at(inspected.unplanned)),
            ("planned peak at", _at(inspected.planned)),
        ]
    facts(console, peaks)


def _at(figures: Figures) -> str:
    return f"{clip(figures.peak_at, 40)} ({figures.peak_in})" if figures.peak_at else "-"


_LIVE_COLUMNS = [("feature maps", "right"), ("gradients", "right")]


def _live_columns(inspected: Inspected) -> list[tuple[str, str]]:
    if inspected.planned is None:
        return [*_LIVE_COLUMNS, ("total", "right")]
    return [*_LIVE_COLUMNS, ("recomputed", "right"), ("total", "right"), ("unplanned", "right")]


def _live_cells(inspected: Inspected, split: Split, unplanned: Split) -> list[str]:
    cells = [mib(split.feature_maps), mib(split.gradients)]
    if inspected.planned is not None:
        return [*cells, mib(split.recomputed), mib(split.total), mib(unplanned.total)]
    return [*cells, mib(split.total)]


def live_operator_table(console: Console, inspected: Inspected) -> None:
    """What is alive at the live peak, by the operator that it belongs to."""
    table = new_table(
        "At the live peak by operator, MiB (gradients: by what they go back through)",
        [("operator", "left"), *_live_columns(inspected)],
    )
    shown = (inspected.planned or inspected.unplanned).by_operator
    before = inspected.unplanned.by_operator
    names = [*shown, *(op for op in before if op not in shown)]
    rows = [
        [clip(op, 20), *_live_cells(inspected, shown.get(op, Split()), before.get(op, Split()))]
        for op in names
    ]
    if rows:
        add_folded(table, rows, _FEW_ROWS)
        console.print(table)


def live_stage_table(console: Console, inspected: Inspected) -> None:
    """What is alive at the live peak, by stage."""
    table = new_table(
        "At the live peak by stage, MiB",
        [("#", "right"), ("up to", "left"), *_live_columns(inspected)],
    )
    shown = (inspected.planned or inspected.unplanned).by_stage
    before = inspected.unplanned.by_stage
    rows = [
        [str(stage.index), clip(stage.last, 13), *_live_cells(inspected, now, then)]
        for stage, now, then in zip(inspected.stages, shown, before, strict=True)
    ]
    if rows:
        add_folded(table, rows)
        console.print(table)


def largest_table(console: Console, tensors: list[LargeTensor]) -> None:
    """The largest tensors of the pool."""
    table = new_table(
        "Largest tensors (B: bytes of an element)",
        [
            ("tensor", "left"), ("operator", "left"), ("shape", "left"), ("B", "right"),
            ("MiB", "right"), ("", "left"),
        ],
    )  # fmt: skip
    rows = [
        [clip(t.name, 21), clip(t.op, 13), shape_text(t.shape), str(t.itemsize), mib(t.size),
         t.state]
        for t in tensors
    ]  # fmt: skip
    if rows:
        add_folded(table, rows, len(rows))
        console.print(table)


def node_table(console: Console, rows: list[NodeRow]) -> None:
    """Every operator, with its whole name, because options take names."""
    table = new_table(
        "Operators of the file",
        [
            ("#", "right"), ("name", "left"), ("op", "left"), ("output", "left"),
            ("size", "right"), ("", "left"),
        ],
    )  # fmt: skip
    for column in table.columns[1:4]:
        column.overflow = "fold"
    cells = [
        [
            str(row.index), shown_path(row.name), row.op, shape_text(row.shape),
            "-" if row.size is None else format_size(row.size), row.mark,
        ]
        for row in rows
    ]  # fmt: skip
    if cells:
        add_folded(table, cells, len(cells))
        console.print(table)
