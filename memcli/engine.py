"""What commands know of an engine, the framework that trains a model, and which ones there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from memcli.choices import OPTIMIZERS
from memcli.formats.detect import ModelSource
from memcli.request import CPU, Devices, Progress, ShapeRequest

if TYPE_CHECKING:  # each is loaded by the commands that need it
    from memcli.engines.fit_search import FitSearch
    from memcli.formats.detect import Model
    from memcli.frameworks.figures import ModelRequest
    from memcli.graph.cost import Found
    from memcli.results.inspected import Inspected
    from memcli.results.planned import Cost, Planned, Source, Step
    from memcli.results.step_total import Breakdown
    from memcli.results.verified import Verified
    from memcli.search.base import Settings


@dataclass(frozen=True)
class PlanRequest:
    """What is asked of a plan beside shapes and the search's settings.

    Args:
        budget: as the user wrote it, None for the least memory.
        as_published: the strategy is one whose plans are as they were published.
        devices: that the model trains on.
        training: put the model back into training mode first.
    """

    budget: str | None = None
    as_published: bool = False
    devices: Devices = CPU
    training: bool = False


@dataclass
class SearchAnswer:
    """The plan that a search ended with.

    Args:
        form: of the network, that the plan is for: the engine's own.
        found: the plan and its cost.
        evaluated: how many plans were looked at.
    """

    form: Any
    found: Found
    evaluated: int


class Network(ABC):
    """A model's training step, as its engine recorded it, in every form that a plan may be for.

    Attributes:
        source: the file, without any plan.
        original: name and SHA-256 of the file that a plan is made from.
        analysis: the step of the model as it is, which is the baseline.
        operator_count: nodes that compute something.
        device: that figures are of, where they differ by device; else ''.
        restored: what was put back into training mode, in words.
        notes: what the user is to know.
    """

    source: Source
    original: tuple[str, str]
    analysis: Step
    operator_count: int
    device: str = ""
    restored: list[str]
    notes: list[str]

    def baseline(self) -> Cost:
        """What a step takes without a plan."""
        model = self.analysis.model
        return model.evaluate(model.none())

    def breakdown(self, pool_bytes: int, optimizer: str) -> Breakdown:
        """What a whole training step takes, part by part.

        Engines that know of inputs, types and temporaries say more than this.

        Args:
            pool_bytes: of activations and their gradients, under a plan or without one.
            optimizer: one of ``OPTIMIZERS``.
        """
        from memcli.results.step_total import Breakdown

        step = self.analysis
        return Breakdown(
            parameters=step.parameter_bytes,
            gradients=step.parameter_gradient_bytes,
            optimizer=OPTIMIZERS[optimizer] * step.parameter_gradient_bytes,
            states=step.state_bytes,
            inputs=0,
            input_gradients=0,
            pool=pool_bytes,
        )

    @abstractmethod
    def set_costs(self, cost: str, on_progress: Progress | None = None) -> list[str]:
        """Gives every form the cost that searches minimize; notes on how it was had.

        Args:
            cost: ``roofline``, ``flops`` or ``measured``.
            on_progress: told what is being done.

        Raises:
            EngineFailed: the engine or the device is missing, where operators are to be timed.
        """

    @abstractmethod
    def search(self, strategy: str, settings: Settings) -> SearchAnswer:
        """Find a plan that is exact to the bit.

        Args:
            strategy: its name, of ``STRATEGIES``.
            settings: what the user asks for.

        Raises:
            BadInput: the strategy has no plan for the graph, or hints name no node.
        """

    @abstractmethod
    def estimate(self, strategy: str, settings: Settings) -> tuple[Found, dict[str, str]]:
        """A strategy's plan as far as its figures go.

        No file is made of it, so that what only a file needs is left out.

        Args:
            strategy: its name, of ``STRATEGIES``.
            settings: what the user asks for.

        Returns:
            The plan, and the environment variables that it needs.
        """

    @abstractmethod
    def lower_bound(self, costs: Sequence[Cost]) -> int:
        """What no plan gets under, bytes.

        Args:
            costs: of the baseline and of plans that were found.
        """

    @abstractmethod
    def planned(self, answer: SearchAnswer, settings: Settings, **known: Any) -> Planned:
        """A plan with its stages and bounds, and what this engine alone knows of it.

        Args:
            answer: what :meth:`search` gave.
            settings: those of the search.
            known: the fields of ``Planned`` that need no engine.
        """

    def prove_recomputation(  # noqa: B027, an engine need not
        self, planned: Planned, settings: Settings
    ) -> None:
        """Sets the recomputation that every plan within the budget has, where it can be proven."""

    @abstractmethod
    def write(self, planned: Planned, out: str, force: bool) -> None:
        """Write the model with its plan, whole or not at all.

        Args:
            planned: what was found.
            out: path of the file to write.
            force: whether a file that is there is replaced.

        Raises:
            BadInput: the file cannot be written, or exists and ``force`` is false.
        """


class Engine(Protocol):
    """A framework that trains models, in processes of its own.

    Attributes:
        name: as JSON has it.
        title: as users know it.
        plans_for_devices: whether memory differs by device, so that plans are for one.
    """

    name: str
    title: str
    plans_for_devices: bool

    def check_request(
        self,
        source: ModelSource,
        request: ShapeRequest | None,
        devices: Devices,
        *,
        training: bool = False,
        timed: bool = True,
        cpu: bool = False,
    ) -> None:
        """Refuses what the engine cannot do, before any work.

        Args:
            source: the model.
            request: shapes, and the user's code to run.
            devices: that it is to train on.
            training: it is to be put back into training mode.
            timed: a card is named to time operators on.
            cpu: it is to be fitted to the CPU's memory, and not to a card's.

        Raises:
            BadInput: user operators, several workers or a mode that it does not know.
        """

    def check_output(self, source: ModelSource, out: str | None, force: bool) -> None:
        """Refuse a name that the planned model cannot be written to.

        Args:
            source: the model.
            out: path of the file to write; None: standard output.
            force: whether a file that is there is replaced.

        Raises:
            BadInput: which, and why.
        """

    def check_devices(self, devices: Devices) -> None:
        """Refuses a card that a model cannot be verified on, before any work.

        Raises:
            EngineFailed: there is no such card, or nothing trains on it here.
        """

    def network(
        self,
        source: ModelSource,
        request: ShapeRequest,
        settings: Settings,
        asked: PlanRequest,
        on_progress: Progress | None = None,
    ) -> Network:
        """Read a model and record its training step in every form that a plan may be for.

        Args:
            source: the model.
            request: shapes and types.
            settings: of the search.
            asked: what the plan is for.
            on_progress: told what is going on.

        Raises:
            BadInput: a file, shapes or operators that cannot be.
            EngineFailed: the engine is missing or crashed.
        """

    def fit_search(
        self,
        source: ModelSource,
        request: ShapeRequest,
        settings: Settings,
        asked: PlanRequest,
        available: int,
        strategy: str,
        optimizer: str,
        on_progress: Progress | None = None,
    ) -> FitSearch[Any]:
        """Reads a model and gets ready to search for the largest batch that trains.

        Args:
            source: the model.
            request: shapes and types, at any batch.
            settings: of the searches.
            asked: devices and mode.
            available: bytes that a step may take.
            strategy: the name of one of ``STRATEGIES``.
            optimizer: one of ``OPTIMIZERS``.
            on_progress: told what is being done.

        Raises:
            BadInput: as :meth:`network`, or a batch that cannot be changed.
            EngineFailed: the engine is missing or crashed.
        """

    def verify(
        self,
        planned: ModelSource,
        *,
        original: Model | None,
        devices: Devices,
        seed: int,
        steps: int | None,
        engine: str,
        kernels: str | None,
        request: ShapeRequest | None,
        on_progress: Progress | None = None,
    ) -> Verified:
        """Trains a step of both graphs and compares; see :func:`memcli.commands.verify`."""

    def inspect(
        self,
        source: ModelSource,
        request: ShapeRequest | None,
        *,
        dtype: str | None,
        top: int,
        models: ModelRequest,
        on_progress: Progress | None = None,
    ) -> Inspected:
        """What a file holds and where its memory goes; see :func:`memcli.commands.inspect`."""


# Where each engine is. A module is loaded when a model of its engine is.
ENGINES: dict[str, str | Engine] = {
    "mxnet": "memcli.engines.mxnet.engine",
    "torch": "memcli.engines.torch.engine",
}


def engine_named(name: str) -> Engine:
    """The engine of a name."""
    found = ENGINES[name]
    return importlib.import_module(found).ENGINE if isinstance(found, str) else found


def engine_of(source: ModelSource) -> Engine:
    """The engine that trains a model."""
    return engine_named(source.kind.engine)
