"""Trains a step of a model with and without its plan in PyTorch, and compares everything."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from memcli.engines.live_memory import available_bytes
from memcli.engines.torch.planning import flags_of, shape_notes
from memcli.engines.torch.record import TorchAnalysis, record_file
from memcli.engines.torch.runs import named_marks, run_of, stages_of, together, train
from memcli.engines.torch.split import split_request
from memcli.engines.torch.workers import added, compare_workers, worker_rows
from memcli.engines.verification import (
    PLAN_TAKEN_OFF,
    fit_batch,
    original_beside,
    scaled_notes,
    shapes_to_verify,
)
from memcli.errors import BadInput
from memcli.formats.detect import Model
from memcli.formats.input_shapes import bind_shapes
from memcli.formats.model_file import read_model
from memcli.formats.node_plan import NodePlan
from memcli.formats.trained_file import TrainedFile
from memcli.quoting import shown_path
from memcli.request import CPU, Devices, Progress, ShapeRequest
from memcli.results.verified import BASELINE, PLANNED, Verified

# Part of the free memory that a step may take.
_USABLE = 0.7


def original_of(
    planned: TrainedFile, plan: NodePlan, given: Model | None, request: ShapeRequest
) -> tuple[TrainedFile, str]:
    """The model without the plan, in the mode in which it was planned, and where it comes from.

    Raises:
        BadInput: ``given`` cannot be read.
    """

    def read(path: Model) -> TrainedFile:
        return read_model(path, request)

    if given is not None:
        file = read(given)
        if file.carried_plan() is not None:
            file = file.unplanned()
        return _as_planned(file, plan), file.path
    beside = original_beside(planned.path, plan.original_name, plan.original_sha256, read)
    if beside is not None:
        return _as_planned(beside[0], plan), beside[1]
    return _as_planned(planned.unplanned(), plan), PLAN_TAKEN_OFF


def _as_planned(file: TrainedFile, plan: NodePlan) -> TrainedFile:
    return file.as_training()[0] if plan.as_training else file


def verify_file(
    planned_model: Model,
    *,
    original: Model | None = None,
    where_trained: Devices = CPU,
    seed: int = 0,
    steps: int | None = None,
    request: ShapeRequest | None = None,
    on_progress: Progress | None = None,
) -> Verified:
    """``memcli verify`` of a planned file.

    ``request``: shapes in place of those of the plan. ``where_trained``: the devices; over several
    workers the batch is split. ``steps``: as in ``torch_runs.train``.

    Raises:
        BadInput: no plan, shapes that cannot be, a batch that cannot be split.
        EngineFailed: PyTorch or a device is missing, or a step crashed.
    """
    planned = read_model(planned_model, request or ShapeRequest(), as_planned=True)
    plan = planned.plan()
    if plan is None:
        raise BadInput(
            f"{shown_path(planned.path)}: carries no plan, so there is nothing to compare it with",
            "make one with memcli plan",
        )
    kind, devices = where_trained.kind, where_trained.each
    asked = dataclasses.replace(shapes_to_verify(plan, request), dtype=None)
    source, where = original_of(planned, plan, original, asked)
    assumed: list[str] = []
    split = None
    if len(devices) > 1:
        same = request is None or not (request.shapes or request.unnamed or request.batch)
        asked, split, assumed = split_request(
            planned, asked, len(devices), plan.workers if same else 1
        )

    def analysis_of(asked: ShapeRequest) -> TorchAnalysis:
        # the file's types stay as they are
        bound = bind_shapes(planned, dataclasses.replace(asked, dtype=None))
        return record_file(
            planned,
            bound.shapes,
            assumed=bound.assumed or assumed,
            dtype=plan.dtype,
            device=kind,
            frozen=asked.frozen,
            on_progress=on_progress,
        )

    analysis = analysis_of(asked)
    scaled = None
    if not where_trained.gpus:
        leading = [shape[0] for shape in analysis.inputs.values() if shape]
        free = int(available_bytes() * _USABLE)
        analysis, scaled = fit_batch(
            analysis,
            split.each if split else leading[0] if leading else 1,
            free,
            lambda found: _needed(found, len(devices)),
            analysis_of,
        )
        if scaled and split:
            split = dataclasses.replace(
                split, batch=scaled["to_batch"] * split.workers, each=scaled["to_batch"]
            )
    notes = shape_notes(analysis) + scaled_notes(scaled)
    if scaled and split:
        notes.append(f"these batches are each worker's, of {split.workers}")
    if plan.workers > 1 and split is None:
        notes.append(f"the plan is for {plan.workers} workers; one alone was trained here")
    flags = flags_of(planned, analysis, plan.marks)
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        workdir = Path(folder)
        jobs = [
            analysis.job(file, workdir / f"{name}.model")
            for name, file in (("original", source), ("planned", planned))
        ]
        marks = named_marks(analysis.model, flags)
        first, second = (
            train(name, job, given, workdir, devices, seed, steps, on_progress)
            for name, job, given in zip((BASELINE, PLANNED), jobs, ({}, marks), strict=True)
        )
        compared = compare_workers(first, second, workdir, where, notes)
    if scaled or (request is not None and request.asks_shapes):
        notes.append("estimates are for the shapes that were run, not for those of the plan")
    none = analysis.model.none()
    rows = worker_rows(analysis.model, flags, devices, first, second, compared)
    most = together(second)
    total = {kind: added([found[kind] for found in compared]) for kind in compared[0]}
    return Verified(
        planned_path=planned.path,
        original=where,
        device=most["device"],
        shapes=analysis.inputs,
        baseline=run_of(analysis.model, none, together(first)),
        planned=run_of(analysis.model, flags, most),
        outputs=total["outputs"],
        gradients=total["gradients"],
        states=total["states"],
        stages=stages_of(analysis.model, flags, most["trace"]),
        method=most["method"],
        scaled=scaled,
        notes=notes,
        seed=seed,
        engine="torch",
        split=split,
        workers=rows if split else [],
    )


def _needed(analysis: TorchAnalysis, workers: int) -> int:
    """Bytes that verifying processes take at most: step, parameters three times, PyTorch, in each.

    Several workers have copies of their gradients besides.
    """
    trace = analysis.trace
    peak = analysis.model.evaluate(analysis.model.none()).pool_bytes
    parameters = 4 if workers == 1 else 5
    each = peak + parameters * trace.parameter_bytes + 2 * trace.input_bytes + (700 << 20)
    return workers * each
