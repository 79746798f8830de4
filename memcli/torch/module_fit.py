"""The largest batch of a live module that trains in a given memory."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from memcli.engines.batch_series import BatchSeries
from memcli.engines.costs import Costs
from memcli.engines.fit_search import Evaluated, Finished, FitAnswer
from memcli.engines.runtime import reserve_or_default
from memcli.engines.torch.fitting import TorchFit, fitted_plan
from memcli.engines.torch.record import TorchAnalysis
from memcli.errors import AnswerIsNo, BadInput
from memcli.request import CPU, Devices
from memcli.results.fitted import Fitted
from memcli.search.base import Settings
from memcli.torch.module_network import ModuleNetwork
from memcli.torch.planning import (
    STRATEGY,
    Plan,
    made_plan,
    optimizer_kind,
    recorded_network,
    room_for,
)
from memcli.torch.steps import Loss
from memcli.units import format_size, parse_size

# Some networks (BatchNorm of vectors) do not train on a batch of one.
_FIRST = 2


class ModuleBatches(BatchSeries[TorchAnalysis]):
    """Recorded steps of a module by batch."""

    engine = "PyTorch"

    def __init__(
        self, model: nn.Module, batch_of: Callable[[int], Any], loss: Loss | None, autocast: Any
    ) -> None:
        self.model = model
        self.batch_of = batch_of
        self.loss = loss
        self.autocast = autocast
        self.networks: dict[int, ModuleNetwork] = {}
        first = self.analyzed(_FIRST)
        super().__init__(type(model).__name__, _FIRST, first)
        self.check_first_change()

    @property
    def step_loss(self) -> Loss:
        """The loss that steps were recorded with."""
        return self._step_loss

    def hint(self, problem: str) -> str:
        """What would mend that the batch cannot be changed."""
        return "batch_of(n) gives the arguments of a call with a batch of n"

    def analyzed(self, batch: int) -> TorchAnalysis:
        """A step, recorded at a batch."""
        args, kwargs = arguments_of(self.batch_of(batch))
        network, self._step_loss = recorded_network(
            self.model, args, kwargs, self.loss, self.autocast
        )
        self.networks[batch] = network
        analysis: TorchAnalysis = network.analysis
        return analysis

    def problem(self, analysis: TorchAnalysis, batch: int) -> str:
        """Another batch must not change what the steps are."""
        differ = set(self.first.trace.names) ^ set(analysis.trace.names)
        return f"the step {min(differ)!r} runs at one of the batches only" if differ else ""


def arguments_of(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments: a dict of keywords, a tuple or list, ``(tuple, dict)``, or one tensor."""
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, (tuple, list)):
        if (
            len(given) == 2
            and isinstance(given[0], (tuple, list))
            and isinstance(given[1], Mapping)
        ):
            return tuple(given[0]), dict(given[1])
        return tuple(given), {}
    return (given,), {}


class ModuleFit(TorchFit):
    """The search on recorded steps of a module."""

    def __init__(
        self,
        batches: ModuleBatches,
        settings: Settings,
        available: int,
        optimizer: str,
    ) -> None:
        network = batches.networks[_FIRST]
        devices = CPU if network.device == "cpu" else Devices((0,))
        super(TorchFit, self).__init__(
            batches, batches, settings, available, Costs(settings.cost, devices.first, None)
        )
        self.module_batches = batches
        self.strategy = STRATEGY
        self.optimizer = optimizer
        self.source = network.source
        self.original = network.original
        self.device = network.device
        self.restored = []
        self.notes = list(network.notes)

    def baseline_at(self, batch: int) -> Evaluated | None:
        """A batch as the module itself runs it."""
        one = super().baseline_at(batch)
        if one is None:
            return None
        cost = self.module_batches.networks[batch].baseline()
        analysis = self.module_batches.analyses[batch]
        return Evaluated(one.plan, cost, self.breakdown(analysis, cost.pool_bytes))

    def finished(self, answer: FitAnswer[TorchAnalysis]) -> Finished:
        """See :meth:`FitSearch.finished`."""
        return Finished(
            plan=answer.plan,
            cost=answer.planned.cost,
            breakdown=answer.planned.breakdown,
            analysis=answer.analysis,
            operator_count=len(answer.analysis.steps),
            form=None,
            environment={},
            notes=list(self.costs.notes),
        )

    def write(self, fitted: Fitted, out: str, force: bool) -> None:
        """A module's plan is written by :meth:`memcli.torch.Plan.save`."""
        raise BadInput("a module's plan is saved by Plan.save(path)")


class Fit:
    """The largest batch, and the plan that it trains under.

    ``batch``: under the plan; ``baseline_batch``: without one, 0 where not even one sample fits.
    """

    def __init__(self, fitted: Fitted, plan: Plan) -> None:
        self.fitted = fitted
        self.plan = plan
        self.batch = fitted.planned.batch
        self.baseline_batch = fitted.baseline.batch

    def to_json(self) -> dict[str, Any]:
        """The object that ``memcli fit --json`` prints."""
        return self.fitted.to_json()

    def __str__(self) -> str:
        from rich.console import Console

        from memcli.reports.fit_report import print_fitted

        text = io.StringIO()
        print_fitted(Console(file=text, width=100, no_color=True, highlight=False), self.fitted)
        return text.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return f"<memcli.torch.Fit: batch {self.batch:,}, {self.baseline_batch:,} without a plan>"


def fit(
    model: nn.Module,
    batch_of: Callable[[int], Any],
    memory: int | str,
    *,
    loss: Loss | None = None,
    optimizer: Any = None,
    autocast: Any = None,
    max_recompute: float | None = None,
    reserve: int | str | None = None,
    time_limit: float | None = None,
    seed: int = 0,
) -> Fit:
    """The largest batch on which a module trains in a given memory, with a plan and without.

    Args:
        model: in training mode.
        batch_of: gives the arguments of a call with a batch of ``n``: a tensor, a tuple, a dict of
            keywords, or ``(tuple, dict)``.
        memory: of everything, in bytes or as ``"24GiB"``.
        loss: as for :func:`memcli.torch.plan`.
        optimizer: as for :func:`memcli.torch.plan`.
        autocast: as for :func:`memcli.torch.plan`.
        max_recompute: most recomputation, in percent of the forward pass's FLOPs.
        reserve: left free, in bytes or as a size; None: on a card, what CUDA and its libraries
            are assumed to take; on the CPU nothing.
        time_limit: seconds, of each search.
        seed: of the searches.

    Raises:
        BadInput: the call cannot be recorded, or its batch cannot be changed.
        AnswerIsNo: not even a batch of 1 fits.
    """
    started = time.monotonic()
    kept = parse_size(reserve) if isinstance(reserve, str) else reserve
    size = memory if isinstance(memory, int) else parse_size(memory)
    available = room_for(model, size, kept)
    if available <= 0:
        raise AnswerIsNo(f"nothing fits {format_size(size)} beside what is left free")
    settings = Settings(
        max_recompute=None if max_recompute is None else max_recompute / 100,
        time_limit=time_limit,
        seed=seed,
    )
    batches = ModuleBatches(model, batch_of, loss, autocast)
    search = ModuleFit(batches, settings, available, optimizer_kind(optimizer))
    found = search.answer()
    made = search.finished(found)
    on_card = search.device != "cpu"
    assumed = (
        reserve_or_default(None, "torch", cpu=False, memory=size).assumed
        if on_card and kept is None
        else ""
    )
    fitted = Fitted(
        source=search.source,
        sha256=search.original[1],
        engine="PyTorch",
        memory=size,
        reserve=size - available,
        reserve_assumed=assumed,
        optimizer=search.optimizer,
        strategy=STRATEGY,
        baseline=found.baseline,
        planned=found.planned,
        analysis=made.analysis,
        operator_count=made.operator_count,
        plan=made.plan,
        environment={},
        notes=[*search.notes, *made.notes],
        searches=search.searches,
        batches=search.looked_at,
        seconds=time.monotonic() - started,
        device=search.device,
        cost_of=settings.cost,
    )
    return Fit(fitted, _plan_at(batches, fitted))


def _plan_at(batches: ModuleBatches, fitted: Fitted) -> Plan:
    """The plan object at the batch that was found."""
    network = batches.networks[fitted.planned.batch]
    planned = fitted_plan(fitted, network.original, network.baseline())
    return made_plan(network, planned, batches.step_loss)
