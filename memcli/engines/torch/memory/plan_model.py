"""The exact model of PyTorch's memory in the form in which planners ask for a plan's cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory.graph import training_graph
from memcli.engines.torch.memory.model import TorchModel
from memcli.engines.torch.memory.trace import Trace
from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost
from memcli.graph.training import Flags, Ints, TrainingGraph

# What a plan is said to take that recomputes without bound.
_NEVER = 1 << 62


class TorchPlanModel:
    """Costs of plans of one traced step; see :class:`memcli.engines.torch.memory.model.TorchModel`.

    The live peak is what PyTorch asks its allocator for, and stands for the pool's size, too.
    """

    portable = False

    reservable = None  # blocks are MXNet's

    def __init__(self, trace: Trace, graph: TrainingGraph | None = None) -> None:
        self.trace = trace
        self.graph = training_graph(trace) if graph is None else graph
        self.exact = TorchModel(trace, allocator="cuda" if trace.device == "cuda" else "exact")
        self.forward_flops = float(trace.flops.sum())
        self.markable = np.ones(self.graph.n_forward, np.uint8)
        self.set_seconds(self.exact.seconds)

    def set_seconds(self, seconds: NDArray[np.float64]) -> None:
        """Another cost of running each step again."""
        self.seconds = seconds
        self.exact.seconds = seconds
        self.forward_seconds = float(seconds.sum())

    def none(self) -> Flags:
        """The plan that keeps everything."""
        return self.exact.none()

    def on_plain_kernels(self, recompute: Flags) -> bool:
        """Always: PyTorch runs every plan."""
        return True

    def without_unread(self, recompute: Flags, *, portable: bool = False) -> Flags:
        """The plan itself: nothing runs here whose result nobody reads."""
        return recompute

    def evaluate(
        self,
        recompute: Flags,
        match_ranges: Sequence[int] = (DEFAULT_MATCH_RANGE,),
        reserved: Ints | None = None,
    ) -> Cost:
        """Cost of a plan. ``match_ranges`` and ``reserved`` are MXNet's and without effect."""
        cost = self.exact.evaluate(np.ascontiguousarray(recompute, np.uint8))
        peak = cost.live_peak_bytes if cost.feasible else _NEVER
        return Cost(
            total_bytes=peak,
            pool_bytes=peak,
            live_peak_bytes=peak,
            recompute_flops=cost.recompute_flops,
            forward_flops=self.forward_flops,
            match_range=DEFAULT_MATCH_RANGE,
            recompute_seconds=cost.recompute_seconds,
            forward_seconds=self.forward_seconds,
        )
