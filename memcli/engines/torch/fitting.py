"""The largest batch of a model that PyTorch trains in a given memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from memcli.choices import OPTIMIZERS
from memcli.engines.costs import Costs
from memcli.engines.fit_search import Candidate, Finished, FitAnswer, FitSearch
from memcli.engines.torch.batches import TorchBatches, transferred
from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.memory.bound import torch_bound
from memcli.engines.torch.memory.stages import torch_stages
from memcli.engines.torch.planning import (
    limited,
    marked,
    read_for_training,
    shape_notes,
    write_planned,
)
from memcli.engines.torch.record import TorchAnalysis
from memcli.formats.detect import ModelSource
from memcli.graph.cost import Cost
from memcli.graph.training import Ints, Plan
from memcli.request import Devices, Progress, ShapeRequest
from memcli.results.fitted import Fitted
from memcli.results.planned import Planned
from memcli.results.step_total import Breakdown
from memcli.search.base import Search, Settings
from memcli.search.registry import STRATEGIES


def torch_breakdown(analysis: TorchAnalysis, live_bytes: int, optimizer: str) -> Breakdown:
    """What a training step in PyTorch takes beside its feature maps.

    Every trained parameter's gradient is counted in full throughout, as it is where gradients are
    accumulated over several steps or set to zero in place; a step that begins without gradients
    may take less. The optimizer's copies are of the parameters' own type. Inputs get no gradients.
    The optimizer's step: see :func:`update_bytes`.
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
        update=update_bytes(-(-sizes // block) * block, optimizer, trace.device),
    )


def update_bytes(sizes: Ints, optimizer: str, device: str) -> int:
    """Temporaries of the optimizer's own step, bytes.

    Adam takes the square root of the second moment into new tensors. By PyTorch's default that is
    of all parameters at once on CUDA (``_multi_tensor_adam`` of torch/optim/adam.py, "foreach"),
    and of one at a time on the CPU (``_single_tensor_adam``), with its quotient and the last
    parameter's quotient beside it: at most twice the largest and the next. Fused kernels, and SGD
    without weight decay, work in place.

    Args:
        sizes: of the gradient of each trained parameter, bytes.
        optimizer: one of ``OPTIMIZERS``.
        device: ``cuda`` or ``cpu``.
    """
    if optimizer not in ("adam", "adamw") or not len(sizes):
        return 0
    if device == "cuda":
        return int(sizes.sum())
    largest = np.sort(sizes)[-2:]
    return int(largest.sum() + largest[-1])


class TorchFit(FitSearch[TorchAnalysis]):
    """The search on PyTorch's exact memory; a step is recorded at each batch that is looked at."""

    # What a plan saves grows with the batch, whatever batch it was found at, and each search goes
    # on from the last one's plan: when that gives no more, further ones are not worth their time.
    least_gain = 0.01

    def __init__(
        self,
        source: ModelSource,
        request: ShapeRequest,
        settings: Settings,
        available: int,
        *,
        strategy: str,
        optimizer: str,
        devices: Devices,
        training: bool,
        on_progress: Progress | None,
    ) -> None:
        """Read the model, and record a step as it comes and at another batch."""
        notes: list[str] = []
        file, original, restored = read_for_training(source, training, request, notes)
        costs = Costs(settings.cost, devices.first, on_progress)
        batches = TorchBatches(file, request, devices.kind, on_progress)
        super().__init__(batches, batches, settings, available, costs)
        self.torch_batches = batches
        self.strategy = strategy
        self.optimizer = optimizer
        self.source = file
        self.original = original
        self.device = devices.kind
        self.restored = restored
        self.notes = notes

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

    def finished(self, answer: FitAnswer[TorchAnalysis]) -> Finished:
        """See :meth:`FitSearch.finished`."""
        analysis = answer.analysis
        shown = dataclasses.replace(analysis, assumed=self.torch_batches.assumed())
        return Finished(
            plan=answer.plan,
            cost=answer.planned.cost,
            breakdown=answer.planned.breakdown,
            analysis=analysis,
            operator_count=len(analysis.steps),
            form=None,
            environment={},
            notes=[*self.costs.notes, *shape_notes(shown)],
        )

    def write(self, fitted: Fitted, out: str, force: bool) -> None:
        """See :meth:`FitSearch.write`."""
        model = fitted.analysis.model
        planned = fitted_plan(fitted, self.original, model.evaluate(model.none()))
        write_planned(planned, out, force)


def fitted_plan(fitted: Fitted, original: tuple[str, str], baseline: Cost) -> Planned:
    """The plan of an answer, with its stages and bound.

    Args:
        fitted: the answer.
        original: name and SHA-256 of the model without any plan.
        baseline: what its step takes without one, at the batch that was found.
    """
    analysis: Any = fitted.analysis
    plan, cost = fitted.plan, fitted.planned.cost
    return Planned(
        source=fitted.source,
        original=original,
        engine="torch",
        analysis=analysis,
        operator_count=fitted.operator_count,
        device=fitted.device,
        strategy=fitted.strategy,
        cost_of=fitted.cost_of,
        plan=plan,
        baseline=baseline,
        cost=cost,
        baseline_allocated=baseline.pool_bytes,
        allocated=cost.pool_bytes,
        lower_bound=torch_bound(analysis.model.exact, cost.live_peak_bytes).bytes,
        stages=torch_stages(analysis.model, plan.recompute, plan.cuts)[0],
        restored=fitted.restored,
        notes=fitted.notes,
        evaluated=fitted.searches,
        seconds=fitted.seconds,
        marked=marked(plan, analysis),
    )
