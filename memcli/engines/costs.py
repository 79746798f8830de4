"""What it costs to recompute an operator: FLOPs, a roofline, or times measured on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memcli.engines.operator_times import OperatorTimes
from memcli.engines.torch.timing import card_to_time
from memcli.graph.training import TrainingGraph
from memcli.request import Progress


class Timed(Protocol):
    """A recorded step whose operators have costs."""

    graph: TrainingGraph
    model: Any

    def expected_seconds(self, device: str) -> NDArray[np.float64]:
        """By the roofline, of every forward node."""

    def measured_seconds(self, device: str, on_progress: Progress | None = None) -> OperatorTimes:
        """Of every forward node, timed on a device."""

    def node_keys(self) -> list[tuple[str, int]]:
        """What tells a forward node at any batch and in any form of the network."""


class _Form(Protocol):
    @property
    def analysis(self) -> Any:
        """The form's :class:`Timed`."""


class Costs:
    """Gives analyses of one network the cost that searches minimize.

    Where times are measured, that is done on the first analysis that is given. The others (a
    rewritten graph, another batch) get the roofline, scaled operator by operator by what was
    measured against it, and what was not there by the median of all.

    ``device``: ``cpu`` or ``gpu:N``, to time operators on. ``notes``: how times were had.

    Raises:
        EngineFailed: operators are to be timed on a card, and it is not there.
    """

    def __init__(self, cost: str, device: str = "cpu", on_progress: Progress | None = None) -> None:
        if cost == "measured" and device.startswith("gpu"):
            card_to_time(device)
        self.cost = cost
        self.device = device
        self.on_progress = on_progress
        self.notes: list[str] = []
        self._ratios: dict[tuple[str, int], float] | None = None
        self._usual = 1.0
        self._given: dict[int, Timed] = {}

    def give(self, analysis: Timed) -> None:
        """Set the cost of every forward node of the analysis' model, once.

        Raises:
            EngineFailed: the engine or the device is missing, where operators are to be timed.
        """
        if id(analysis) in self._given:
            return
        self._given[id(analysis)] = analysis
        if self.cost == "flops":
            graph = analysis.graph
            analysis.model.set_seconds(np.asarray(graph.flops[: graph.n_forward], np.float64))
            return
        seconds = analysis.expected_seconds(self.device)
        if self.cost == "measured":
            nodes = analysis.node_keys()
            if self._ratios is None:
                self._ratios = self._measured(analysis, nodes, seconds)
            seconds = seconds * [self._ratios.get(node, self._usual) for node in nodes]
        analysis.model.set_seconds(seconds)

    def _measured(
        self,
        analysis: Timed,
        nodes: list[tuple[str, int]],
        expected: NDArray[np.float64],
    ) -> dict[tuple[str, int], float]:
        """By node: measured over expected."""
        times = analysis.measured_seconds(self.device, self.on_progress)
        self.notes += times.notes
        some = expected > 0
        ratios = np.divide(times.seconds, expected, out=np.ones_like(expected), where=some)
        if (times.measured & some).any():
            self._usual = float(np.median(ratios[times.measured & some]))
        return dict(zip(nodes, ratios.tolist(), strict=True))


def set_costs(
    graphs: Sequence[_Form], cost: str, device: str, on_progress: Progress | None = None
) -> list[str]:
    """Give all forms of a network the cost of operators that searches minimize.

    Operators are timed on the first form, the graph as given; see :class:`Costs`.

    Args:
        graphs: the forms.
        cost: as in ``Settings.cost``.
        device: that operators are timed on.
        on_progress: told what is going on.

    Returns:
        Notes on how the cost was had.

    Raises:
        EngineFailed: MXNet or the device is missing, where operators are to be timed.
    """
    costs = Costs(cost, device, on_progress)
    for form in graphs:
        costs.give(form.analysis)
    return costs.notes
