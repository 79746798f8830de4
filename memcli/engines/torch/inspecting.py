"""What a file holds and where its training memory goes in PyTorch. Writes nothing."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from memcli.engines.memory_models import under_models_in_torch
from memcli.engines.torch.memory.bound import torch_bound
from memcli.engines.torch.memory.breakdown import LOSS, torch_live_at_peak
from memcli.engines.torch.memory.stages import kept_storages, torch_stages
from memcli.engines.torch.planning import (
    analyze_file,
    flags_of,
    refuse_other_type,
    shape_notes,
)
from memcli.engines.torch.record import TorchAnalysis
from memcli.engines.torch.tensors import largest_tensors, node_rows, operator_kinds
from memcli.engines.verification import record_notes, shapes_to_verify
from memcli.errors import BadInput, MemcliError
from memcli.formats.detect import Model
from memcli.formats.input_shapes import bind_shapes
from memcli.formats.model_file import read_model
from memcli.formats.node_plan import NodePlan
from memcli.formats.trained_file import Leaf, Role, TensorValue, TrainedFile
from memcli.frameworks.figures import NO_MODELS, ModelRequest
from memcli.graph.training import Flags
from memcli.request import Progress, ShapeRequest
from memcli.results.inspected import (
    Figures,
    Inspected,
    NamedTensor,
    NodeRow,
    OnnxFacts,
    OperatorKind,
    PlanFacts,
    TensorCount,
)
from memcli.results.live_peak import PeakParts
from memcli.results.stage import Stage
from memcli.search.base import Search, Settings

# Bytes of an element, of the types that parameters have.
_ITEM = {"float16": 2, "bfloat16": 2, "float64": 8}
# What stands for the loss that is put on, among operators and nodes.
_THE_LOSS = "(loss)"


def inspect_file(
    model: Model,
    request: ShapeRequest | None = None,
    *,
    dtype: str | None = None,
    top: int = 10,
    models: ModelRequest = NO_MODELS,
    on_progress: Progress | None = None,
) -> Inspected:
    """Look into a saved or planned file; a planned one is seen at its plan's shapes.

    ``models``: other frameworks' buffers to show, for the network without its plan.

    Where a file can be read and not planned (operators that are not supported, PyTorch missing),
    what it says itself is shown all the same, and ``onnx.problem`` says why there is no more.

    Raises:
        BadInput: no such file, an unsound graph, or shapes that the user gave and cannot be.
    """
    file = read_model(model, request or ShapeRequest(), as_planned=True)
    notes: list[str] = list(file.notes)
    try:
        record = file.plan()
    except BadInput as error:
        record = None
        notes.append(f"shown without the plan that it carries: {error.message}")
    if record is not None:
        asked = dataclasses.replace(shapes_to_verify(record, request), dtype=dtype)
    else:
        asked = request or ShapeRequest()
    if request is not None:  # what the user asks for and cannot be is no fact about the file
        refuse_other_type(file, asked.dtype)
        bind_shapes(file, asked)
    device = record.device if record is not None else "cpu"
    inspected = _file_facts(file, record, device)
    inspected.notes = notes
    try:
        analysis = analyze_file(file, asked, device, on_progress)
    except MemcliError as error:
        assert inspected.onnx is not None
        inspected.onnx.problem = error
        return inspected
    if on_progress:
        on_progress("compiling the memory model (first run only)", None)
    flags = None if record is None else flags_of(file, analysis, record.marks)
    _add_figures(inspected, analysis, flags, record, top)
    inspected.under_models = under_models_in_torch(analysis, models)
    notes += [*shape_notes(analysis), *record_notes(inspected, record)]
    if inspected.loss_added:
        notes.append("no output is a loss: memory is shown under the sum of the outputs in float32")
    return inspected


def _file_facts(file: TrainedFile, record: NodePlan | None, device: str) -> Inspected:
    """What is known before anything is recorded."""
    leaves = list(file.leaves().values())
    parameters, states = _held(leaves, "parameter"), _held(leaves, "state")
    operators = file.operators()
    count = Counter(operators)
    kinds = [OperatorKind(op, n, 0.0, 0, 0) for op, n in count.items()]
    facts = None
    if record is not None:
        marked = sum(mark != "kept" for mark in record.marks.values())
        facts = PlanFacts(record.strategy, dict(record.environment), marked, 0, record)
    rows = zip(operators, file.node_names, strict=True)
    return Inspected(
        path=file.path,
        sha256=file.sha256,
        nodes=file.node_count,
        operators=file.node_count,
        dtype=next((v.dtype for v in file.inputs if "float" in v.dtype), "float32"),
        inputs=[NamedTensor(v.name, _dims(v), v.dtype, "input") for v in file.inputs],
        outputs=[NamedTensor(v.name, _dims(v), v.dtype, "output") for v in file.outputs],
        loss_added=False,
        kinds=sorted(kinds, key=lambda kind: (-kind.count, kind.op)),
        forward_flops=0.0,
        baseline=None,
        planned=None,
        plan=facts,
        lower_bound=0,
        parameter_bytes=parameters.size,
        parameter_gradient_bytes=parameters.size,
        state_bytes=states.size,
        stages=[],
        largest=[],
        stage_marks={},
        listed=[NodeRow(i, name, op, None, None, "") for i, (op, name) in enumerate(rows)],
        notes=[],
        format=file.format,
        engine="torch",
        onnx=OnnxFacts(
            file.opsets, file.producer, file.described, device, parameters, states, file.losses()
        ),
    )


def _dims(value: TensorValue) -> list[int | str | None] | None:
    return None if value.dims is None else list(value.dims)


def _held(leaves: list[Leaf], role: Role) -> TensorCount:
    """The tensors of a role, those that are one tensor under several names once."""
    of_role = [leaf for leaf in leaves if leaf.role == role]
    own = [leaf for leaf in of_role if leaf.tied_to is None]
    elements = [math.prod(leaf.shape or ()) for leaf in own]
    size = sum(n * _ITEM.get(leaf.dtype, 4) for n, leaf in zip(elements, own, strict=True))
    return TensorCount(len(own), sum(elements), size, len(of_role) - len(own))


def _add_figures(
    inspected: Inspected,
    analysis: TorchAnalysis,
    flags: Flags | None,
    record: NodePlan | None,
    top: int,
) -> None:
    """Everything that follows from the recorded step."""
    model, trace = analysis.model, analysis.trace
    none = model.none()
    marks = none if flags is None else flags
    search = Search(analysis.search_space(), Settings())
    cuts = [] if flags is None else search.kept_cuts(flags)
    listed, stage_of = torch_stages(model, marks, cuts)
    runs = model.exact.timeline(marks).recomputations

    def figures(of: Flags) -> Figures:
        return _figures(analysis, of, listed, stage_of.tolist())

    inspected.listed = node_rows(analysis, marks, runs)
    inspected.baseline = figures(none)
    if flags is not None and record is not None:
        inspected.planned = figures(flags)
        marked = sum(mark != "kept" for mark in record.marks.values())
        inspected.plan = PlanFacts(
            record.strategy, dict(record.environment), marked, int((runs > 0).sum()), record
        )
    inspected.operators = sum(row.mark != "folded" for row in inspected.listed)
    inspected.dtype = analysis.dtype
    inspected.inputs = [
        NamedTensor(
            name, list(shape), analysis.input_types[name], "input", name in analysis.assumed
        )
        for name, shape in analysis.inputs.items()
    ]
    inspected.outputs = [
        NamedTensor(row["name"], row["shape"], row["dtype"], "output") for row in analysis.outputs
    ]
    inspected.loss_added = not any(
        len(row["shape"]) < 2 and math.prod(row["shape"]) == 1 for row in analysis.outputs
    )
    planned = None if flags is None else kept_storages(model, flags)
    kept = kept_storages(model, none)
    inspected.kinds = operator_kinds(analysis, inspected.kinds, kept, planned, runs)
    inspected.forward_flops = model.forward_flops
    least = min(model.evaluate(of).live_peak_bytes for of in (none, marks))
    inspected.lower_bound = torch_bound(model.exact, least).bytes
    inspected.parameter_bytes = trace.parameter_bytes
    inspected.parameter_gradient_bytes = analysis.parameter_gradient_bytes
    inspected.state_bytes = trace.state_bytes
    inspected.stages = listed
    inspected.largest = largest_tensors(analysis, kept if planned is None else planned, runs, top)


def _figures(
    analysis: TorchAnalysis, marks: Flags, listed: list[Stage], stage_of: list[int]
) -> Figures:
    """Cost of a plan, and what is alive at its live peak, by operator kind and by stage."""
    model, graph = analysis.model, analysis.graph
    cost = model.exact.evaluate(marks)
    peak = torch_live_at_peak(model.exact, marks)
    by_operator = peak.grouped(lambda t: _THE_LOSS if t.node == LOSS else graph.op(t.node))
    # The loss comes after the last stage.
    by_stage = peak.grouped(lambda t: len(listed) - 1 if t.node == LOSS else stage_of[t.node])
    kept = kept_storages(model, marks)
    return Figures(
        pool_bytes=cost.live_peak_bytes,
        live_peak_bytes=cost.live_peak_bytes,
        kept_bytes=int(analysis.trace.storage_bytes[kept].sum()),
        recompute_flops=cost.recompute_flops,
        peak_at=_THE_LOSS if peak.node == LOSS else graph.names[peak.node],
        peak_in=peak.running,
        split=peak.split(),
        by_operator=dict(sorted(by_operator.items(), key=lambda kv: -kv[1].total)),
        by_stage=[by_stage.get(stage.index, PeakParts()) for stage in listed],
        with_parameter_gradients=cost.all_peak_bytes,
    )
