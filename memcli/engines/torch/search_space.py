"""PyTorch's plans for searches: any tensor can go, and be made again at each need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch import annealing as anneal_torch
from memcli.engines.torch.memory import kernels as torch_kernels
from memcli.engines.torch.memory.bound import all_plans, torch_bound
from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost, LowerBound
from memcli.graph.training import Flags, Ints, TrainingGraph
from memcli.marks import KEPT, RESULTS
from memcli.search.space import NO_BLOCKS, SearchSpace, Walk

# Slack of a limit on recomputation, in forward passes.
_ROUNDED = 1e-9
# Recomputable steps up to which a proof is tried.
_MOST_PROVABLE = 450


class TorchSpace(SearchSpace):
    """Plans of one traced step. Marks as in :mod:`memcli.engines.torch.memory.model`."""

    effort = 0.2
    most_steps = 40_000

    def __init__(self, model: TorchPlanModel) -> None:
        self.model = model

    @property
    def graph(self) -> TrainingGraph:
        """The traced step."""
        return self.model.graph

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Over steps: what each costs to run again."""
        return self.model.seconds

    @property
    def forward_seconds(self) -> float:
        """The sum of ``seconds``."""
        return self.model.forward_seconds

    @property
    def forward_flops(self) -> float:
        """FLOPs of one forward pass."""
        return self.model.forward_flops

    def evaluate(
        self,
        flags: Flags,
        match_ranges: Sequence[int] = (DEFAULT_MATCH_RANGE,),
        reserved: Ints = NO_BLOCKS,
    ) -> Cost:
        """By the exact model of what PyTorch asks its allocator for."""
        return self.model.evaluate(flags)

    def none(self) -> Flags:
        """The plan that keeps everything."""
        return self.model.none()

    def as_run(self, flags: Flags, *, portable: bool = False) -> Flags:
        """As the executor reads them: some steps drop all that they make, or nothing."""
        return self.model.exact.as_run(flags)

    def is_kept(self, flags: Flags) -> NDArray[np.bool_]:
        """Over steps: whether a plan keeps what the step makes; made at each need is not."""
        return np.asarray(flags & RESULTS == KEPT)

    def third_mark(self, *, rewrite: bool) -> Flags:
        """Every step may run at each need."""
        return self.graph.can_recompute

    def annealing(self, *, portable: bool) -> Walk:
        """:func:`memcli.engines.torch.annealing.anneal` on this step."""
        exact, trace = self.model.exact, self.model.trace
        may = self.graph.can_recompute == 1
        return partial(
            anneal_torch.anneal,
            exact.program,
            torch_kernels.state_for(exact.program),
            exact.most_runs,
            trace.flops.astype(np.float64),
            np.asarray(self.model.seconds, np.float64),
            np.flatnonzero(exact.has_auxiliaries & ~trace.with_gradients & may).astype(np.int64),
            np.flatnonzero(trace.with_gradients & may).astype(np.int64),
        )

    @property
    def is_provable(self) -> bool:
        """Where there are few steps."""
        return int(self.graph.can_recompute.sum()) <= _MOST_PROVABLE

    def best_of_all(self, key: Callable[[Cost], Any]) -> Flags | None:
        """The best of all plans, where they are few."""
        plans = all_plans(self.model.exact)
        if plans is None:
            return None
        return min(plans, key=lambda flags: key(self.model.evaluate(flags)))

    def prove(self, seconds: float, ceiling: int) -> tuple[int, Flags | None]:
        """The bound of all plans; no solver has a plan to give here."""
        return self.lower_bound(ceiling).bytes, None

    def lower_bound(self, ceiling: int, max_recompute: float | None = None) -> LowerBound:
        """See :func:`memcli.engines.torch.memory.bound.torch_bound`."""
        limit = math.inf
        if max_recompute is not None:
            limit = (max_recompute + _ROUNDED) * self.model.forward_flops
        return torch_bound(self.model.exact, ceiling, limit)
