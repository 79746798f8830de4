"""The largest batch of an ONNX model that PyTorch trains in a given memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from memcli.engines.analysis import ShapeRequest
from memcli.engines.torch_analysis import TorchAnalysis
from memcli.formats.detect import Model
from memcli.graph.training import Plan
from memcli.memory import torch_trace as events
from memcli.memory.runtime import reserve_or_default
from memcli.memory.torch_bound import torch_bound
from memcli.memory.torch_stages import torch_stages
from memcli.planners.base import Search, Settings
from memcli.planners.registry import STRATEGIES
from memcli.workflow.costs import Costs
from memcli.workflow.fit_search import OPTIMIZERS, Breakdown, Candidate, FitSearch
from memcli.workflow.fitting import Fitted, room
from memcli.workflow.onnx_batches import OnnxBatches, transferred
from memcli.workflow.onnx_planning import (
    OnnxPlanned,
    check_torch_output,
    kind_of,
    limited,
    read_for_training,
    shape_notes,
    write_onnx_plan,
)

Progress = Callable[[str, float | None], None]


def torch_breakdown(analysis: TorchAnalysis, live_bytes: int, optimizer: str) -> Breakdown:
    """What a training step in PyTorch takes beside its feature maps.

    Every trained parameter's gradient is counted in full throughout, as it is where gradients are
    accumulated over several steps or set to zero in place; a step that begins without gradients
    may take less. The optimizer's copies are of the parameters' own type. Inputs get no gradients.
    On CUDA every gradient, and what is as large, is rounded up to the allocator's blocks.
    """
    trace, block = analysis.trace, analysis.model.exact.block
    sizes = trace.event_bytes[trace.kinds == events.PARAMETER_GRADIENT]
    trained = int(np.sum(-(-sizes // block) * block))
    untrained = max(0, analysis.parameter_bytes - int(np.sum(sizes)))
    return Breakdown(
        parameters=trained + untrained,
        gradients=trained,
        optimizer=OPTIMIZERS[optimizer] * trained,
        states=analysis.state_bytes,
        inputs=trace.input_bytes,
        input_gradients=0,
        pool=live_bytes,
    )


class _Fit(FitSearch[TorchAnalysis]):
    """The search on PyTorch's exact memory."""

    # What a plan saves grows with the batch, whatever batch it was found at, and each search goes
    # on from the last one's plan: when that gives no more, further ones are not worth their time.
    least_gain = 0.01

    def __init__(
        self,
        batches: OnnxBatches,
        settings: Settings,
        available: int,
        *,
        strategy: str,
        optimizer: str,
        costs: Costs,
    ) -> None:
        super().__init__(batches, batches, settings, available, costs)
        self.strategy = strategy
        self.optimizer = optimizer

    def breakdown(self, analysis: TorchAnalysis, pool_bytes: int) -> Breakdown:
        """See :func:`torch_breakdown`."""
        return torch_breakdown(analysis, pool_bytes, self.optimizer)

    def transferred(self, candidate: Candidate[TorchAnalysis], analysis: TorchAnalysis) -> Plan:
        """Step by step."""
        return transferred(candidate.plan, candidate.analysis, analysis)

    def found(self, analysis: TorchAnalysis, settings: Settings) -> Plan:
        """A plan of the strategy that was asked for, from where earlier searches ended."""
        search = Search(analysis.search_space(), limited(settings))
        for candidate in self.candidates:
            plan = self.transferred(candidate, analysis)
            search.consider(plan.strategy, plan.recompute, plan.cuts)
        STRATEGIES[self.strategy].run(search)
        return search.answer().plan


def fit_onnx(
    model: Model,
    request: ShapeRequest,
    memory: int,
    settings: Settings,
    *,
    strategy: str = "auto",
    optimizer: str = "sgd",
    reserve: int | None = None,
    device: str = "gpu:0",
    training: bool = False,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Fitted:
    """The largest batch that trains in ``memory`` bytes; see :func:`memcli.workflow.fitting.fit`.

    ``device``: ``gpu:N``, in blocks of PyTorch's allocator, or ``cpu``; no card is needed, unless
    operators are to be timed on it, which is done at the first batch that a plan is searched for
    at (:class:`memcli.workflow.costs.Costs`). ``training``: put BatchNorm and Dropout back into
    training mode first. Not counted are CUDA's context, libraries' workspaces (``reserve`` bytes
    are left free for them) and what the allocator cannot use between its blocks.

    A step is recorded at each batch that is looked at. Both answers were seen to fit, and the next
    batch seen not to, under no plan and under every plan that was found; that no plan at all fits a
    larger batch is not proven.

    Raises:
        BadInput: bad file, shapes or output, or a graph whose batch cannot be changed.
        AnswerIsNo: not even batch 1 fits.
        EngineFailed: PyTorch or the card is missing, or it crashed.
    """
    check_torch_output(model, out, force)
    started = time.monotonic()
    notes: list[str] = []
    file, original, restored = read_for_training(model, training, request, notes)
    kind = kind_of(device)
    kept = reserve_or_default(reserve, "torch", cpu=kind == "cpu", memory=memory)
    available = room(memory, kept)
    costs = Costs(settings.cost, device, on_progress)
    batches = OnnxBatches(file, request, kind, on_progress)
    settings = dataclasses.replace(settings, on_progress=on_progress)
    search = _Fit(
        batches, settings, available, strategy=strategy, optimizer=optimizer, costs=costs
    )
    found = search.answer()
    notes += costs.notes
    notes += shape_notes(dataclasses.replace(found.analysis, assumed=batches.assumed()))
    fitted = Fitted(
        source=file,
        sha256=original[1],
        memory=memory,
        reserve=kept.bytes,
        reserve_assumed=kept.assumed,
        optimizer=optimizer,
        strategy=strategy,
        unplanned=found.unplanned,
        planned=found.planned,
        analysis=found.analysis,
        variant=None,
        plan=found.plan,
        kernels="",
        environment={},
        notes=notes,
        searches=search.searches,
        batches=len(batches.analyses) + len(batches.refused),
        seconds=time.monotonic() - started,
        device=kind,
        restored=restored,
        cost_of=settings.cost,
    )
    if out is not None:
        planned = _as_planned(fitted, found.analysis, original)
        write_onnx_plan(planned, out, force)
        fitted.output = out
    fitted.seconds = time.monotonic() - started
    return fitted


def _as_planned(
    fitted: Fitted, analysis: TorchAnalysis, original: tuple[str, str]
) -> OnnxPlanned:
    """The plan at the batch that was found, as ``plan`` would have made it."""
    model, plan = analysis.model, fitted.plan
    return OnnxPlanned(
        source=analysis.file,
        original=original,
        analysis=analysis,
        device=fitted.device,
        strategy=fitted.strategy,
        cost_of=fitted.cost_of,
        plan=plan,
        baseline=model.evaluate(model.none()),
        cost=fitted.planned.cost,
        lower_bound=torch_bound(model.exact, fitted.planned.cost.live_peak_bytes).bytes,
        stages=torch_stages(model, plan.recompute, plan.cuts)[0],
        restored=fitted.restored,
        notes=fitted.notes,
        evaluated=fitted.searches,
        seconds=fitted.seconds,
    )
