"""What ``memcli inspect`` found, as tables and as JSON."""

from __future__ import annotations

import shlex

from rich.console import Console

from memcli.formats.wording import shown_path
from memcli.memory.breakdown import Split
from memcli.reports.inspect_facts import model_facts, shape_text
from memcli.reports.inspect_json import recomputed_part
from memcli.reports.model_facts import ending
from memcli.reports.models_report import models_table
from memcli.reports.plan_report import LIVE_STAGES, stage_table
from memcli.reports.tables import add_folded, clip, facts, flops, mib, new_table, percent
from memcli.units import format_size
from memcli.workflow.inspected import Figures, Inspected, LargeTensor, NodeRow, OperatorKind

# Rows of a table of inputs or operator kinds before its middle is folded.
_FEW_ROWS = 12


def next_step(inspected: Inspected) -> str:
    """The last line: which command comes next."""
    path = shlex.quote(shown_path(inspected.path))
    if inspected.unplanned is None:
        return "no figures: standard error says what stands in their way"
    if inspected.plan is None:
        onnx = inspected.onnx
        if onnx is None:
            return f"next: memcli plan {path} -o planned.json"
        restore = any("--as-training" in loss.text for loss in onnx.losses)
        out = f"planned.{ending(inspected.format)}"
        return f"next: memcli plan {path}{' --as-training' if restore else ''} -o {out}"
    if inspected.plan.record is None:
        return f"next: memcli verify {path}, or a better plan: memcli plan {path} -o planned.json"
    return f"next: memcli verify {path}"


def print_inspected(console: Console, inspected: Inspected, *, nodes: bool = False) -> None:
    """The whole report of ``memcli inspect`` but its last line."""
    facts(console, model_facts(inspected))
    tensor_table(console, inspected)
    kind_table(console, inspected)
    if inspected.unplanned is not None:
        step_table(console, inspected, inspected.unplanned)
        live_operator_table(console, inspected)
        live_stage_table(console, inspected)
        if inspected.stages:
            title = {"title": LIVE_STAGES} if inspected.engine == "torch" else {}
            stage_table(console, inspected.stages, **title)
        largest_table(console, inspected.largest)
    if inspected.under_models is not None:
        models_table(console, inspected.under_models)
    if nodes:
        node_table(console, inspected.listed)


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
    if inspected.unplanned is None:
        count_table(console, inspected.kinds)
        return
    columns = [
        ("operator", "left"), ("count", "right"), ("FLOPs", "right"), ("outputs", "right"),
        ("kept", "right"),
    ]  # fmt: skip
    title = "Operators (MiB; kept: of the outputs, what the backward pass reads)"
    if inspected.planned is not None:
        columns += [("planned", "right"), ("run again", "right")]
        title = "Operators (MiB; kept: read by the backward; planned: under the plan)"
    if inspected.engine == "torch":  # whose operators keep more than their outputs
        title = "Operators (MiB; kept for the backward pass, with masks, indices, statistics)"
    folds = any(kind.folded for kind in inspected.kinds)
    if folds:
        columns.append(("folded", "right"))
    table = new_table(title, columns)
    rows = []
    for kind in inspected.kinds:
        row = [
            clip(kind.op, 24), str(kind.count), flops(kind.flops), mib(kind.output_bytes),
            mib(kind.kept_bytes),
        ]  # fmt: skip
        if inspected.planned is not None:
            row += [mib(kind.planned_kept_bytes), str(kind.recomputed)]
        if folds:
            row.append(str(kind.folded or "-"))
        rows.append(row)
    if rows:
        add_folded(table, rows)
        console.print(table)


def count_table(console: Console, kinds: list[OperatorKind]) -> None:
    """Operators by kind where nothing but their number is known."""
    table = new_table("Operators", [("operator", "left"), ("count", "right")])
    if kinds:
        add_folded(table, [[clip(kind.op, 48), str(kind.count)] for kind in kinds])
        console.print(table)


def step_table(console: Console, inspected: Inspected, unplanned: Figures) -> None:
    """The memory of a step, unplanned and planned side by side."""
    sides = [unplanned] + ([inspected.planned] if inspected.planned else [])
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

    torch = inspected.engine == "torch"
    if not torch:  # PyTorch's figure is the live peak itself
        row("allocated by MXNet (the pool)", [s.pool_bytes for s in sides], compared=True)
    row("live peak", [s.live_peak_bytes for s in sides], compared=True)
    row("  feature maps", [s.split.feature_maps for s in sides])
    row("  gradients and temporaries" if torch else "  gradients",
        [s.split.gradients for s in sides])  # fmt: skip
    if inspected.planned is not None:
        row("  recomputed copies", [s.split.recomputed for s in sides])
    if torch:
        row("live peak with parameters' gradients",
            [s.with_parameter_gradients or 0 for s in sides], compared=True)  # fmt: skip
    row("kept for the backward pass", [s.kept_bytes for s in sides], compared=True)
    row("lower bound of every plan", [inspected.lower_bound] * len(sides))
    if inspected.planned is not None:
        again = flops(inspected.planned.recompute_flops)
        part = percent(recomputed_part(inspected))
        rows.append(["recomputed, FLOPs (part: of a forward)", "0", again, part])
    add_folded(table, rows)
    console.print(table)
    peaks = [("live peak at", _at(unplanned))]
    if inspected.planned is not None:
        peaks = [
            ("unplanned peak at", _at(unplanned)),
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
    shown = inspected.shown.by_operator if inspected.shown else {}
    before = inspected.unplanned.by_operator if inspected.unplanned else {}
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
    shown = inspected.shown.by_stage if inspected.shown else []
    before = inspected.unplanned.by_stage if inspected.unplanned else []
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
        [clip(t.name, 21), clip(t.op, 13), shape_text(t.shape),
         "-" if t.itemsize is None else str(t.itemsize), mib(t.size), t.state]
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
