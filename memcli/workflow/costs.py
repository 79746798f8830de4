"""What it costs to run an operator again: FLOPs, a roofline, or times measured on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from memcli.engines.analysis import Analysis
from memcli.engines.operator_times import OperatorTimes
from memcli.engines.timing import argument_dtypes, measure_operator_seconds
from memcli.engines.torch_analysis import TorchAnalysis
from memcli.engines.torch_timing import card_to_time, measure_step_seconds
from memcli.graph.roofline import DEFAULT_MACHINE, PLAIN_CPU, roofline_seconds
from memcli.memory.torch_model import step_seconds
from memcli.workflow.variants import Variant

Progress = Callable[[str, float | None], None]

COSTS = ("roofline", "flops", "measured")


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
        self._given: dict[int, Analysis | TorchAnalysis] = {}

    def give(self, analysis: Analysis | TorchAnalysis) -> None:
        """Set the cost of every forward node of the analysis' model, once.

        Raises:
            EngineFailed: the engine or the device is missing, where operators are to be timed.
        """
        if id(analysis) in self._given:
            return
        self._given[id(analysis)] = analysis
        if self.cost == "flops":
            analysis.model.set_seconds(_flops(analysis))
            return
        seconds = _roofline(analysis, self.device)
        if self.cost == "measured":
            nodes = _nodes(analysis)
            if self._ratios is None:
                self._ratios = self._measured(analysis, nodes, seconds)
            seconds = seconds * [self._ratios.get(node, self._usual) for node in nodes]
        analysis.model.set_seconds(seconds)

    def _measured(
        self,
        analysis: Analysis | TorchAnalysis,
        nodes: list[tuple[str, int]],
        expected: NDArray[np.float64],
    ) -> dict[tuple[str, int], float]:
        """By node: measured over expected."""
        times = _timed(analysis, self.device, self.on_progress)
        self.notes += times.notes
        some = expected > 0
        ratios = np.divide(times.seconds, expected, out=np.ones_like(expected), where=some)
        if (times.measured & some).any():
            self._usual = float(np.median(ratios[times.measured & some]))
        return dict(zip(nodes, ratios.tolist(), strict=True))


def set_costs(
    graphs: Sequence[Variant], cost: str, device: str, on_progress: Progress | None = None
) -> list[str]:
    """Give all variants of a network the cost that searches minimize; notes on how it was had.

    Operators are timed on the first variant, the graph as saved; see :class:`Costs`.

    Raises:
        EngineFailed: MXNet or the device is missing, where operators are to be timed.
    """
    costs = Costs(cost, device, on_progress)
    for variant in graphs:
        costs.give(variant.analysis)
    return costs.notes


def _timed(
    analysis: Analysis | TorchAnalysis, device: str, on_progress: Progress | None
) -> OperatorTimes:
    if isinstance(analysis, TorchAnalysis):
        return measure_step_seconds(analysis, device, on_progress=on_progress)
    return measure_operator_seconds(
        analysis.graph, device, dtypes=argument_dtypes(analysis), on_progress=on_progress
    )


def _roofline(analysis: Analysis | TorchAnalysis, device: str) -> NDArray[np.float64]:
    """On the CPU by the speed of MXNet's plain kernels, which plans run on."""
    if isinstance(analysis, TorchAnalysis):
        return step_seconds(analysis.trace)
    return roofline_seconds(analysis.graph, PLAIN_CPU if device == "cpu" else DEFAULT_MACHINE)


def _flops(analysis: Analysis | TorchAnalysis) -> NDArray[np.float64]:
    graph = analysis.graph
    return np.asarray(graph.flops[: graph.n_forward], np.float64)


def _nodes(analysis: Analysis | TorchAnalysis) -> list[tuple[str, int]]:
    """What tells a node at any batch and on any graph of the network: its name, its inputs."""
    if isinstance(analysis, TorchAnalysis):
        return [(step["output"], 0) for step in analysis.steps]
    graph = analysis.graph
    return [
        (graph.names[v], int(graph.in_ptr[v + 1] - graph.in_ptr[v]))
        for v in range(graph.n_forward)
    ]
