"""What ``memcli inspect`` found, as tables and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console

from memcli.quoting import printable
from memcli.reports.inspect_facts import model_facts, shape_text, short_facts
from memcli.reports.inspect_json import recomputed_part
from memcli.reports.model_facts import ending
from memcli.reports.models_report import models_table
from memcli.reports.plan_report import LIVE_STAGES, stage_table
from memcli.reports.tables import add_folded, clip, facts, flops, mib, new_table, percent
from memcli.results.inspected import Figures, Inspected, LargeTensor, NodeRow, OperatorKind
from memcli.results.live_peak import PeakParts
from memcli.units import format_size

# Rows of a table of inputs or operator kinds before its middle is folded.
_FEW_ROWS = 12
# Rows of each table where the report is to fit one screen.
_SCREEN_ROWS = 5


def next_step(inspected: Inspected) -> str:
    """The last line: which command comes next."""
    path = shlex.quote(printable(inspected.path))
    if inspected.baseline is None:
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


def print_inspected(
    console: Console,
    inspected: Inspected,
    *,
    nodes: bool = False,
    full: bool = False,
    top: int | None = None,
) -> None:
    """The report of ``memcli inspect`` but its last line.

    Args:
        console: where to.
        inspected: what was found.
        nodes: with every operator of the file.
        full: every table; without, what fits one screen.
        top: how many of the largest tensors; None: as many as fit, with ``full`` all there are.
    """
    if full or inspected.baseline is None:
        _print_full(console, inspected)
    else:
        facts(console, short_facts(inspected))
        step_table(console, inspected, inspected.baseline)
        live_operator_table(console, inspected, _SCREEN_ROWS)
        largest_table(console, inspected.largest[: _SCREEN_ROWS if top is None else top])
    if inspected.under_models is not None:
        models_table(console, inspected.under_models)
    if nodes:
        node_table(console, inspected.listed)


def _print_full(console: Console, inspected: Inspected) -> None:
    """Every table."""
    facts(console, model_facts(inspected))
    tensor_table(console, inspected)
    kind_table(console, inspected)
    if inspected.baseline is not None:
        step_table(console, inspected, inspected.baseline)
        live_operator_table(console, inspected)
        live_stage_table(console, inspected)
        if inspected.stages:
            title = {"title": LIVE_STAGES} if inspected.engine == "torch" else {}
            stage_table(console, inspected.stages, **title)
        largest_table(console, inspected.largest)


def tensor_table(console: Console, inspected: Inspected) -> None:
    """Inputs and outputs."""
    table = new_table(
        "Inputs and outputs",
        [("", "left"), ("name", "left"), ("shape", "left"), ("type", "left"), ("", "left")],
    )
    inputs = [
        [t.role, t.name, shape_text(t.shape), t.dtype, "assumed" if t.assumed else ""]
        for t in inspected.inputs
    ]
    outputs = [["output", t.name, shape_text(t.shape), t.dtype, ""] for t in inspected.outputs]
    for rows in (inputs, outputs):
        if rows:
            add_folded(table, rows, _FEW_ROWS // 2, names=(1,), width=console.width)
    console.print(table)


def kind_table(console: Console, inspected: Inspected) -> None:
    """Operators by kind."""
    if inspected.baseline is None:
        count_table(console, inspected.kinds)
        return
    columns = [
        ("operator", "left"),
        ("count", "right"),
        ("FLOPs", "right"),
        ("outputs", "right"),
        ("kept", "right"),
    ]
    title = "Operators (MiB; kept: of the outputs, what the backward pass reads)"
    if inspected.planned is not None:
        columns += [("planned", "right"), ("recomputed", "right")]
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
            kind.op,
            str(kind.count),
            flops(kind.flops),
            mib(kind.output_bytes),
            mib(kind.kept_bytes),
        ]
        if inspected.planned is not None:
            row += [mib(kind.planned_kept_bytes), str(kind.recomputed)]
        if folds:
            row.append(str(kind.folded or "-"))
        rows.append(row)
    if rows:
        add_folded(table, rows, names=(0,), width=console.width)
        console.print(table)


def count_table(console: Console, kinds: list[OperatorKind]) -> None:
    """Operators by kind where nothing but their number is known."""
    table = new_table("Operators", [("operator", "left"), ("count", "right")])
    if kinds:
        rows = [[kind.op, str(kind.count)] for kind in kinds]
        add_folded(table, rows, names=(0,), width=console.width)
        console.print(table)


def step_table(console: Console, inspected: Inspected, baseline: Figures) -> None:
    """The memory of a step, baseline and planned side by side."""
    sides = [baseline] + ([inspected.planned] if inspected.planned else [])
    columns = [("memory of a training step, MiB", "left"), ("baseline", "right")]
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
    row(
        "  gradients and temporaries" if torch else "  gradients",
        [s.split.gradients for s in sides],
    )
    if inspected.planned is not None:
        row("  recomputed copies", [s.split.recomputed for s in sides])
    if torch:
        row(
            "live peak with parameters' gradients",
            [s.with_parameter_gradients or 0 for s in sides],
            compared=True,
        )
    row("kept for the backward pass", [s.kept_bytes for s in sides], compared=True)
    row("lower bound of every plan", [inspected.lower_bound] * len(sides))
    if inspected.planned is not None:
        again = flops(inspected.planned.recompute_flops)
        part = percent(recomputed_part(inspected))
        rows.append(["recomputed, FLOPs (part: of a forward)", "0", again, part])
    add_folded(table, rows)
    console.print(table)
    peaks = [("live peak at", _at(baseline))]
    if inspected.planned is not None:
        peaks = [
            ("baseline peak at", _at(baseline)),
            ("planned peak at", _at(inspected.planned)),
        ]
    facts(console, peaks)


def _at(figures: Figures) -> str:
    return f"{clip(figures.peak_at, 40)} ({figures.peak_in})" if figures.peak_at else "-"


_LIVE_COLUMNS = [("feature maps", "right"), ("gradients", "right")]


def _live_columns(inspected: Inspected) -> list[tuple[str, str]]:
    if inspected.planned is None:
        return [*_LIVE_COLUMNS, ("total", "right")]
    return [*_LIVE_COLUMNS, ("recomputed", "right"), ("total", "right"), ("baseline", "right")]


def _live_cells(inspected: Inspected, split: PeakParts, baseline: PeakParts) -> list[str]:
    cells = [mib(split.feature_maps), mib(split.gradients)]
    if inspected.planned is not None:
        return [*cells, mib(split.recomputed), mib(split.total), mib(baseline.total)]
    return [*cells, mib(split.total)]


def live_operator_table(console: Console, inspected: Inspected, most: int = _FEW_ROWS) -> None:
    """What is alive at the live peak, by the operator that it belongs to, in ``most`` rows."""
    table = new_table(
        "At the live peak by operator, MiB (gradients: by what they go back through)",
        [("operator", "left"), *_live_columns(inspected)],
    )
    shown = inspected.shown.by_operator if inspected.shown else {}
    before = inspected.baseline.by_operator if inspected.baseline else {}
    groups = {
        op: (shown.get(op, PeakParts()), before.get(op, PeakParts())) for op in [*shown, *before]
    }
    if most < len(groups):  # the largest, and the others in one row
        largest = sorted(groups, key=lambda op: -max(split.total for split in groups[op]))[:most]
        others = [groups[op] for op in groups if op not in largest]
        label = f"{len(others)} others"
        groups = {op: groups[op] for op in groups if op in largest}
        now, then = zip(*others, strict=True)
        groups[label] = (_added(now), _added(then))
    rows = [[op, *_live_cells(inspected, *splits)] for op, splits in groups.items()]
    if rows:
        add_folded(table, rows, len(rows), names=(0,), width=console.width)
        console.print(table)


def _added(splits: Sequence[PeakParts]) -> PeakParts:
    return PeakParts(
        sum(split.feature_maps for split in splits),
        sum(split.gradients for split in splits),
        sum(split.recomputed for split in splits),
    )


def live_stage_table(console: Console, inspected: Inspected) -> None:
    """What is alive at the live peak, by stage."""
    table = new_table(
        "At the live peak by stage, MiB",
        [("#", "right"), ("up to", "left"), *_live_columns(inspected)],
    )
    shown = inspected.shown.by_stage if inspected.shown else []
    before = inspected.baseline.by_stage if inspected.baseline else []
    rows = [
        [str(stage.index), stage.last, *_live_cells(inspected, now, then)]
        for stage, now, then in zip(inspected.stages, shown, before, strict=True)
    ]
    if rows:
        add_folded(table, rows, names=(1,), width=console.width)
        console.print(table)


def largest_table(console: Console, tensors: list[LargeTensor]) -> None:
    """The largest tensors of the pool."""
    table = new_table(
        "Largest tensors (B: bytes of an element)",
        [
            ("tensor", "left"),
            ("operator", "left"),
            ("shape", "left"),
            ("B", "right"),
            ("MiB", "right"),
            ("", "left"),
        ],
    )
    rows = [
        [
            t.name,
            t.op,
            shape_text(t.shape),
            "-" if t.itemsize is None else str(t.itemsize),
            mib(t.size),
            t.state,
        ]
        for t in tensors
    ]
    if rows:
        add_folded(table, rows, len(rows), names=(0, 1), width=console.width)
        console.print(table)


def node_table(console: Console, rows: list[NodeRow]) -> None:
    """Every operator, with its whole name, because options take names."""
    table = new_table(
        "Operators of the file",
        [
            ("#", "right"),
            ("name", "left"),
            ("op", "left"),
            ("output", "left"),
            ("size", "right"),
            ("", "left"),
        ],
    )
    for column in table.columns[1:4]:
        column.overflow = "fold"
    cells = [
        [
            str(row.index),
            clip(row.name, 200),
            clip(row.op, 60),
            shape_text(row.shape),
            "-" if row.size is None else format_size(row.size),
            row.mark,
        ]
        for row in rows
    ]
    if cells:
        add_folded(table, cells, len(cells))
        console.print(table)
