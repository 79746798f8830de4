"""From a file to a planned one: read, record, search, write."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from memcli.engines.torch.record import TorchAnalysis, record_file
from memcli.errors import REFUSED, BadInput
from memcli.formats.detect import Model
from memcli.formats.input_shapes import bind_shapes, guess_hint
from memcli.formats.model_file import read_model
from memcli.formats.newest import remember_plan
from memcli.formats.node_plan import MARK_NUMBERS, MARK_TEXTS
from memcli.formats.trained_file import TrainedFile, new_plan
from memcli.graph.training import Flags, Plan
from memcli.marks import EACH, RESULTS
from memcli.quoting import first_of, shown, shown_path
from memcli.request import Progress, ShapeRequest
from memcli.results.planned import Planned, assumed_notes, recorded_memory, recorded_recomputation
from memcli.search.base import Settings

# Recomputation in forward passes, where the user sets neither a budget nor a limit. PyTorch can run
# a node at every need, and the least memory of all may take ten passes and more.
DEFAULT_MAX_RECOMPUTE = 1.0
# Kept free of a time limit for what comes behind the search, at most a fifth of it.
_REST_SECONDS = 0.5


def marked(plan: Plan, analysis: TorchAnalysis) -> dict[str, int]:
    """How many steps are kept, recomputed once, and recomputed at each need."""
    low = plan.recompute & RESULTS
    makes = analysis.graph.operator_bytes() > 0
    counts = np.bincount(low[makes], minlength=EACH + 1)
    return {MARK_TEXTS[k]: int(counts[k]) for k in range(EACH + 1)}


def read_unplanned(
    model: Model, request: ShapeRequest, notes: list[str]
) -> tuple[TrainedFile, tuple[str, str]]:
    """A model without an earlier plan, and the name and SHA-256 of the original.

    ``request``: a Caffe net's graph depends on its shapes.

    Raises:
        BadInput: unreadable, unsound, or with operators that are not ONNX's own.
    """
    file = read_model(model, request)
    original = file.name, file.sha256
    carried = file.carried_plan()
    if carried is not None:
        notes.append("the file carries a plan already; the graph is planned anew without it")
        original = carried.original_name, carried.original_sha256
        file = file.unplanned()
    file.check_operators()
    return file, original


def read_for_training(
    model: Model, training: bool, request: ShapeRequest, notes: list[str]
) -> tuple[TrainedFile, tuple[str, str], list[str]]:
    """:func:`read_unplanned`, and what was put back into training mode where that is asked for.

    Raises:
        BadInput: unreadable, unsound, or with operators that are not ONNX's own.
    """
    file, original = read_unplanned(model, request, notes)
    notes += file.notes
    if training and file.fixed_mode:
        raise BadInput(f"--as-training is for exported graphs: {file.fixed_mode}")
    restored: list[str] = []
    if training:
        file, restored = file.as_training()
        notes += restored or ["--as-training: nothing to restore"]
    file.check_trainable(training)
    notes += [loss.text for loss in file.losses()]
    return file, original, restored


def kind_of(device: str) -> str:
    """``cuda`` or ``cpu``: which memory a step is recorded for on ``cpu`` or ``gpu:N``."""
    return "cuda" if device.startswith("gpu") else "cpu"


def analyze_file(
    file: TrainedFile, request: ShapeRequest, device: str, on_progress: Progress | None
) -> TorchAnalysis:
    """Bind the shapes and record a step.

    Raises:
        BadInput: shapes, types or operators that cannot be, or a step that makes no tensor.
        EngineFailed: PyTorch is missing or crashed.
    """
    bound = bind_shapes(file, request)
    floats = [d for d in bound.dtypes.values() if "float" in d]
    dtype = request.dtype or (floats[0] if floats else "float32")
    refuse_other_type(file, request.dtype)
    try:
        analysis = record_file(
            file,
            bound.shapes,
            assumed=bound.assumed,
            dtype=dtype,
            device=device,
            frozen=request.frozen,
            on_progress=on_progress,
        )
    except BadInput as error:
        if bound.assumed and REFUSED in error.message:
            error.hint = guess_hint(file, bound)
        raise
    refuse_nothing_made(analysis)
    return analysis


def refuse_other_type(file: TrainedFile, dtype: str | None) -> None:
    """Raises BadInput where the user asks for another type than the file's inputs have."""
    floats = [value.dtype for value in file.inputs if "float" in value.dtype]
    other = next((have for have in floats if dtype is not None and have != dtype), None)
    if other is not None:
        raise BadInput(
            f"{file.path}: its inputs are {other}, and a file's types stay as they are",
            f"export the model as {dtype}, or train it under torch.autocast",
        )


def refuse_nothing_made(analysis: TorchAnalysis) -> None:
    """Raises BadInput where no step makes a tensor, so that no plan differs from another.

    Nodes that no output needs are no steps, and those that make views make nothing.
    """
    if analysis.model.exact.makes.any():
        return
    outputs = first_of(shown(row["name"]) for row in analysis.outputs)
    raise BadInput(
        f"{shown_path(analysis.file.path)}: no node of the graph is trained through: its outputs "
        f"({outputs}) are weights, inputs, constants or views of these",
        "its outputs should be what the network computes, or its loss",
    )


def shape_notes(analysis: TorchAnalysis) -> list[str]:
    """What was assumed, for the user to read."""
    return assumed_notes(analysis.assumed, analysis.inputs) + analysis.notes


def limited(settings: Settings) -> Settings:
    """The settings, with a limit on recomputation where the user sets no limit at all."""
    if settings.budget is None and settings.max_recompute is None:
        return dataclasses.replace(settings, max_recompute=DEFAULT_MAX_RECOMPUTE)
    return settings


def marks_by_node(file: TrainedFile, analysis: TorchAnalysis, flags: Flags) -> dict[str, str]:
    """{node name: mark} for all nodes of the file; those that are no steps are kept.

    A node of several outputs has a step that runs it, whose mark it is, and then one for each
    output, which makes nothing.
    """
    by_output: dict[str, str] = {}
    for step, mark in zip(analysis.steps, flags.tolist(), strict=True):
        by_output.setdefault(step["output"], MARK_TEXTS[int(mark)])
    return {
        name: by_output.get(output, "kept")
        for name, output in zip(file.node_names, file.first_outputs(), strict=True)
    }


def flags_of(file: TrainedFile, analysis: TorchAnalysis, marks: dict[str, str]) -> Flags:
    """The marks of a file's nodes, over the steps of its analysis."""
    by_output = {
        output: MARK_NUMBERS[marks[name]]
        for name, output in zip(file.node_names, file.first_outputs(), strict=True)
        if name in marks
    }
    return np.array([by_output.get(step["output"], 0) for step in analysis.steps], np.uint8)


def write_planned(planned: Planned, out: str, force: bool) -> None:
    """Write the planned file, whole or not at all, and remember it as the newest."""
    analysis: Any = planned.analysis
    source: Any = planned.source
    file = source.written_as(out)
    plan = new_plan(
        file,
        marks_by_node(source, analysis, planned.plan.recompute),
        strategy=planned.strategy,
        shapes=analysis.inputs,
        dtype=analysis.dtype,
        as_training=planned.restored,
        memory=recorded_memory(planned.baseline, planned.cost, planned.lower_bound),
        recompute=recorded_recomputation(planned.cost),
        original_name=planned.original[0],
        device=planned.device,
    )
    plan = dataclasses.replace(
        plan,
        original_sha256=planned.original[1],
        workers=1 if planned.split is None else planned.split.workers,
        frozen=list(analysis.frozen),
    )
    planned.notes += file.write_planned(plan, out, overwrite=force)
    planned.output = out
    remember_plan(out)
