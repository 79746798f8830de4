"""What a graph holds and where its training memory goes. Reads, asks MXNet, writes nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from memcli.engines.memory_models import under_models_in_mxnet
from memcli.engines.mxnet.memory.bounds import reported_bound
from memcli.engines.mxnet.memory.breakdown import forward_op, live_at_peak
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.mxnet.memory.stages import kept_entries, stages
from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import Analysis, analyze, graph_environment
from memcli.engines.mxnet.rewrites.registry import changes_tensors
from memcli.engines.mxnet.verifying import plan_of_file, save_barriers
from memcli.engines.verification import record_notes, shapes_to_verify
from memcli.errors import BadInput
from memcli.formats.detect import Model
from memcli.formats.symbol.edits import own_positions
from memcli.formats.symbol.file import SymbolFile
from memcli.formats.symbol.record import PlanRecord
from memcli.frameworks.figures import NO_MODELS, ModelRequest
from memcli.graph.stages import with_gradients
from memcli.graph.training import Flags, Ints, Plan, TrainingGraph
from memcli.request import Progress, ShapeRequest
from memcli.results.inspected import (
    Figures,
    Inspected,
    LargeTensor,
    NamedTensor,
    NodeRow,
    OperatorKind,
    PlanFacts,
)
from memcli.results.live_peak import PeakParts

# Attributes of the classic planner's cut candidates; the second one is how old files spell it.
_STAGE_KEYS = ("__mirror_stage__", "mirror_stage")


def inspect(
    model_file: Model,
    request: ShapeRequest | None = None,
    *,
    dtype: str | None = None,
    top: int = 10,
    models: ModelRequest = NO_MODELS,
    on_progress: Progress | None = None,
) -> Inspected:
    """Look into a saved or planned graph; a planned one is seen at its plan's shapes.

    Args:
        model_file: its path, or what was read.
        request: shapes in place of those of the file or plan.
        dtype: the same for the type.
        top: how many of the largest tensors.
        models: other frameworks' buffers to show, for the network without its plan.
        on_progress: told what is going on.

    Raises:
        BadInput: no such graph, or its shapes cannot be told.
        EngineFailed: MXNet is missing or crashed.
    """
    source = read_symbol(model_file)
    record = source.plan()
    shapes = shapes_to_verify(record, request)
    shapes = dataclasses.replace(shapes, dtype=dtype or (record.dtype if record else "float32"))
    environment = graph_environment(record.environment) if record else {}
    analysis = analyze(source.raw, shapes, environment=environment, on_progress=on_progress)
    if on_progress:
        on_progress("compiling the memory model (first run only)", None)
    model = analysis.model
    plan = plan_of_file(analysis, source)
    has_plan = record is not None or bool(source.marked())
    # What MXNet never recomputes stays kept, marked or not.
    plan = dataclasses.replace(plan, recompute=(plan.recompute & model.markable).astype(np.uint8))
    no_plan = Plan("none", model.none(), plan.cuts)
    shown = plan if has_plan else no_plan
    barriers = save_barriers(analysis, source)
    listed, timeline, stage_of = stages(model, shown, barriers=barriers)
    order = timeline.order
    recomputed = np.zeros(analysis.graph.n_nodes, bool)
    recomputed[order[order >= analysis.graph.n_nodes] - analysis.graph.n_nodes] = True
    # what is reserved is the plan's, as its marks are
    unreserved = MXNetModel(analysis.graph.without_reserved_blocks())
    kept = kept_entries(unreserved.graph, no_plan.recompute)
    planned_kept = kept_entries(analysis.graph, plan.recompute) if has_plan else None
    forms = [(unreserved.graph, unreserved)]
    original = _baseline_model(source, shapes) if record is not None else None
    if original is None:
        baseline = figures(unreserved, no_plan, kept, stage_of, len(listed))
    else:
        # rewrites are the plan's, too
        baseline_stages = _stage_of_baseline(original.graph, analysis.graph, stage_of, source)
        plain = Plan("none", original.none())
        baseline_kept = kept_entries(original.graph, plain.recompute)
        baseline = figures(original, plain, baseline_kept, baseline_stages, len(listed))
        forms.append((original.graph, original))
    bound = reported_bound(forms, unreserved.plan_cost(shown).pool_bytes)
    planned, facts = None, None
    reserved = reserved_blocks(analysis.graph)
    if planned_kept is not None:
        planned = figures(model, plan, planned_kept, stage_of, len(listed))
        facts = PlanFacts(
            strategy=plan.strategy,
            environment=dict(record.environment) if record else {},
            marked=len(source.marked()),
            recomputed=int(recomputed.sum()),
            record=record,
            reserved_blocks=len(reserved),
            reserved_bytes=int(sum(reserved)),
        )
    inspected = Inspected(
        path=source.path,
        sha256=source.sha256,
        nodes=source.node_count,
        operators=source.operator_count,
        dtype=analysis.dtype,
        inputs=_inputs(analysis),
        outputs=_outputs(analysis, source),
        loss_added=analysis.loss_heads > 0,
        kinds=operator_kinds(unreserved.graph, kept, planned_kept, recomputed),
        forward_flops=model.forward_flops,
        baseline=baseline,
        planned=planned,
        plan=facts,
        lower_bound=bound,
        parameter_bytes=analysis.parameter_bytes,
        parameter_gradient_bytes=analysis.parameter_gradient_bytes,
        state_bytes=analysis.state_bytes,
        stages=listed,
        largest=largest_tensors(
            unreserved.graph, kept if planned_kept is None else planned_kept, recomputed, top
        ),
        stage_marks=_stage_marks(source),
        listed=_nodes(analysis, source, recomputed),
        notes=[],
        under_models=under_models_in_mxnet(analysis, models),
    )
    inspected.notes = _notes(inspected, record)
    return inspected


def _baseline_model(source: SymbolFile, request: ShapeRequest) -> MXNetModel | None:
    """The graph without its plan.

    None where the file's own has the same tensors, or where the graph cannot be told any more.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    if not changes_tensors(source.raw):
        return None
    try:
        return analyze(source.stripped().raw, request).model
    except BadInput:
        return None


def _stage_of_baseline(
    original: TrainingGraph, graph: TrainingGraph, stage_of: Ints, source: SymbolFile
) -> Ints:
    """The stage of each node of the baseline; ``graph`` is that of the file with its plan."""
    places, now = own_positions(source.raw), graph.node_of_position()
    stage = np.zeros(original.n_forward, np.int64)
    previous = 0
    for node, place in enumerate(original.position[: original.n_forward].tolist()):
        if 0 <= place < len(places) and places[place] in now:
            previous = int(stage_of[now[places[place]]])
        stage[node] = previous
    return with_gradients(original, stage)


def figures(model: MXNetModel, plan: Plan, kept: Ints, stage_of: Ints, n_stages: int) -> Figures:
    """Cost of a plan, and what is alive at its live peak, by operator kind and by stage.

    Args:
        model: of the joint graph.
        plan: the plan.
        kept: over entries, 1 for what lives until its backward.
        stage_of: over nodes, the stage.
        n_stages: how many stages.
    """
    graph = model.graph
    cost = model.plan_cost(plan)
    peak = live_at_peak(model, plan.recompute, plan.match_range)
    by_operator = peak.grouped(lambda tensor: forward_op(graph, tensor.node))
    by_stage = peak.grouped(lambda tensor: int(stage_of[tensor.node]))
    return Figures(
        pool_bytes=cost.pool_bytes,
        live_peak_bytes=cost.live_peak_bytes,
        kept_bytes=int((kept * graph.entry_bytes).sum()),
        recompute_flops=cost.recompute_flops,
        peak_at=graph.names[peak.node] if peak.node >= 0 else "",
        peak_in=peak.running,
        split=peak.split(),
        by_operator=dict(sorted(by_operator.items(), key=lambda kv: -kv[1].total)),
        by_stage=[by_stage.get(index, PeakParts()) for index in range(n_stages)],
    )


def reserved_blocks(graph: TrainingGraph) -> list[int]:
    """Bytes of each block of the pool that the file reserves."""
    makers = [v for v in np.flatnonzero(graph.reserving) if graph.op(v) == "_zeros"]
    return [int(graph.entry_bytes[int(graph.first[v])]) for v in makers]


def operator_kinds(
    graph: TrainingGraph, kept: Ints, planned_kept: Ints | None, recomputed: Flags
) -> list[OperatorKind]:
    """The forward operators by kind, those with the largest outputs first.

    Args:
        graph: the training graph.
        kept: over entries, 1 for what lives until its backward in the baseline.
        planned_kept: the same under the plan; None without one.
        recomputed: over forward nodes, whether the plan recomputes it.
    """
    kinds: dict[str, OperatorKind] = {}
    for v in range(graph.n_forward):
        if graph.variable[v] or graph.reserving[v]:
            continue
        op = graph.op(v)
        nothing = None if planned_kept is None else 0
        row = kinds.setdefault(op, OperatorKind(op, 0, 0.0, 0, 0, nothing))
        row.count += 1
        row.flops += float(graph.flops[v])
        row.recomputed += int(recomputed[v])
        part = slice(int(graph.first[v]), int(graph.first[v + 1]))
        sizes = graph.entry_bytes[part]
        row.output_bytes += int(sizes.sum())
        row.kept_bytes += int((kept[part] * sizes).sum())
        if planned_kept is not None and row.planned_kept_bytes is not None:
            row.planned_kept_bytes += int((planned_kept[part] * sizes).sum())
    return sorted(kinds.values(), key=lambda k: (-k.output_bytes, -k.flops, k.op))


def largest_tensors(
    graph: TrainingGraph, kept: Ints, recomputed: Flags, top: int
) -> list[LargeTensor]:
    """The largest tensors of the pool, of equal ones the earliest first.

    Callers' memory (parameters, inputs, and the gradients of both) is not in the pool.

    Args:
        graph: the joint graph.
        kept: over entries, 1 for what lives until its backward.
        recomputed: over forward nodes, whether the plan recomputes it.
        top: how many.
    """
    pooled = (graph.external == 0) & (graph.variable[graph.entry_node] == 0)
    entries = np.flatnonzero(pooled & (graph.entry_bytes > 0))
    entries = entries[np.argsort(-graph.entry_bytes[entries], kind="stable")][:top]
    result = []
    for entry in entries.tolist():
        node = int(graph.entry_node[entry])
        output = entry - int(graph.first[node])
        if node >= graph.n_forward:
            state = "gradient"
        elif recomputed[node]:
            state = "both" if kept[entry] else "recomputed"
        else:
            state = "kept" if kept[entry] else "short-lived"
        result.append(
            LargeTensor(
                name=graph.names[node] + (f"[{output}]" if output else ""),
                op=graph.op(node),
                shape=graph.shape(entry),
                itemsize=int(graph.itemsize[entry]),
                size=int(graph.entry_bytes[entry]),
                state=state,
            )
        )
    return result


def _inputs(analysis: Analysis) -> list[NamedTensor]:
    return [
        NamedTensor(a["name"], a["shape"], a["dtype"], a["role"], a["name"] in analysis.assumed)
        for a in analysis.arguments
        if a["role"] != "parameter"
    ]


def _outputs(analysis: Analysis, source: SymbolFile) -> list[NamedTensor]:
    """The file's own outputs: where a loss is put on, MXNet's are those of the loss."""
    graph = analysis.graph
    node_of = graph.node_of_position()
    variables = {a["name"]: a for a in analysis.arguments}
    result = []
    for number, (position, output) in enumerate(source.heads):
        node = source.nodes[position]
        name = node.name + (f"[{output}]" if output else "")
        found = node_of.get(graph.alias.get(position, position))
        if found is not None and not graph.variable[found]:
            entry = int(graph.first[found]) + output
            dtype = _dtype_name(analysis, number, int(graph.itemsize[entry]))
            result.append(NamedTensor(name, list(graph.shape(entry)), dtype, "output"))
        elif node.name in variables:
            row = variables[node.name]
            result.append(NamedTensor(name, row["shape"], row["dtype"], "output"))
    return result


def _dtype_name(analysis: Analysis, number: int, itemsize: int) -> str:
    """The output's type: MXNet's word for it, or a float of its size under a loss put on."""
    if not analysis.loss_heads and number < len(analysis.outputs):
        return str(analysis.outputs[number]["dtype"])
    return {2: "float16", 4: "float32", 8: "float64"}.get(itemsize, f"{itemsize} bytes")


def _stage_marks(source: SymbolFile) -> dict[str, int]:
    marks: Counter[str] = Counter()
    for node in source.nodes:
        for key in _STAGE_KEYS:
            if key in node.attrs:
                marks[node.attrs[key]] += 1
                break
    return dict(marks)


def _nodes(analysis: Analysis, source: SymbolFile, recomputed: Flags) -> list[NodeRow]:
    graph = analysis.graph
    node_of = graph.node_of_position()
    sizes = graph.node_bytes()
    marks = source.marked()
    rows = []
    for position, node in enumerate(source.nodes):
        if node.is_variable:
            continue
        found = node_of.get(graph.alias.get(position, position))
        if found is None:
            rows.append(NodeRow(position, node.name, node.op, None, None, "unused"))
            continue
        marked = position in marks
        mark = "merged" if position in graph.alias else ""
        if recomputed[found]:
            mark = "recomputed"
        elif marked:
            mark = "no effect"
        shape = graph.shape(int(graph.first[found])) if len(graph.entries(found)) else None
        rows.append(NodeRow(position, node.name, node.op, shape, int(sizes[found]), mark))
    return rows


def _notes(inspected: Inspected, record: PlanRecord | None) -> list[str]:
    notes = []
    for row in inspected.inputs:
        if row.assumed:
            shape = ",".join(map(str, row.shape or ()))
            notes.append(
                f"shape of '{row.name}' is assumed: {shape} (change it with --shape or --batch)"
            )
    if inspected.loss_added:
        what = "output" if len(inspected.outputs) == 1 else f"{len(inspected.outputs)} outputs"
        notes.append(
            f"the graph has no loss: its memory is shown under MakeLoss(sum(output)) on its {what}"
        )
    return notes + record_notes(inspected, record)
