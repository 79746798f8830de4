"""A plan for PyTorch stage by stage: what each keeps, and the most that lives while it runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.graph.stages import default_cuts
from memcli.graph.training import Flags, Ints, TrainingGraph
from memcli.marks import AUXILIARY, RESULTS
from memcli.results.stage import Stage


def stage_of_steps(graph: TrainingGraph, cuts: list[list[int]]) -> Ints:
    """Stage number of each step; a stage ends with the last step of its cut."""
    ends = sorted({max(cut) for cut in cuts if cut})
    stage = np.searchsorted(ends, np.arange(graph.n_forward), side="left")
    _, number = np.unique(stage, return_inverse=True)
    return np.asarray(number, np.int64)


def torch_stages(
    model: TorchPlanModel, marks: Flags, cuts: list[list[int]]
) -> tuple[list[Stage], Ints]:
    """The plan's stages and each step's stage.

    ``forward_bytes`` and ``peak_bytes``: the most that is alive while the stage's forward runs, and
    its backward with all that it recomputes.
    """
    graph, trace = model.graph, model.trace
    stage = stage_of_steps(graph, cuts or default_cuts(graph))
    timeline = model.exact.timeline(marks)
    kept = kept_bytes(model, marks)
    result = []
    for number in range(int(stage.max(initial=-1)) + 1):
        steps = np.flatnonzero(stage == number)
        result.append(
            Stage(
                index=number,
                first=graph.names[steps[0]],
                last=graph.names[steps[-1]],
                operators=len(steps),
                kept_bytes=int(kept[steps].sum()),
                forward_bytes=int(timeline.forward[steps].max()),
                peak_bytes=int(timeline.backward[steps].max(initial=0)),
                recompute_flops=float((timeline.recomputations * trace.flops)[steps].sum()),
            )
        )
    return result, stage


def kept_storages(model: TorchPlanModel, marks: Flags) -> NDArray[np.bool_]:
    """Over storages: whether it stays from the forward to the backward pass, which needs it."""
    trace = model.trace
    step_of = np.repeat(np.arange(trace.n_steps), np.diff(trace.first))
    needed = np.zeros(len(trace.storage_bytes), bool)
    needed[trace.handle_storage] = True
    # A step that makes nothing of its own never runs again for it.
    dropped = np.flatnonzero((marks & RESULTS != 0) & (np.diff(trace.first) > 0))
    for step in dropped:
        needed[trace.inputs[trace.input_first[step] : trace.input_first[step + 1]]] = True
    mark = marks[step_of]
    stays = np.where(trace.auxiliary, mark & AUXILIARY == 0, mark & RESULTS == 0)
    return np.asarray(needed & stays)


def kept_bytes(model: TorchPlanModel, marks: Flags) -> Ints:
    """Over steps: bytes that stay from the forward to the backward pass."""
    trace = model.trace
    step_of = np.repeat(np.arange(trace.n_steps), np.diff(trace.first))
    result = np.zeros(trace.n_steps, np.int64)
    np.add.at(result, step_of, np.where(kept_storages(model, marks), trace.storage_bytes, 0))
    return result
