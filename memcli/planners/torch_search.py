"""The search for plans that PyTorch runs: any tensor can go, and be made again more than once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import Flags
from memcli.marks import AGAIN, KEPT, RESULTS
from memcli.memory import torch_kernels
from memcli.memory.torch_bound import TorchBound, all_plans, torch_bound
from memcli.memory.torch_plan_model import TorchPlanModel
from memcli.planners import anneal_torch
from memcli.planners.base import Found, Search, Settings

# Slack of a limit on recomputation, in forward passes.
_ROUNDED = 1e-9


class TorchSearch(Search):
    """A search over one traced step. Marks as in :mod:`memcli.memory.torch_model`."""

    model: TorchPlanModel  # type: ignore[assignment]
    effort = 0.2
    most_steps = 40_000

    def __init__(self, model: TorchPlanModel, settings: Settings) -> None:
        super().__init__(model.graph, model, settings)  # type: ignore[arg-type]

    @property
    def match_ranges(self) -> tuple[int, ...]:
        """MXNet's; one, for form's sake."""
        return (16,)

    def with_environment(self, found):  # type: ignore[no-untyped-def]
        """The plan: no variable changes what it takes."""
        return found

    def kept_mark(self, node: int) -> int:
        """How to keep a node's output: nothing else is kept with it."""
        return KEPT

    def is_kept(self, flags: Flags) -> NDArray[np.bool_]:
        """Over steps: whether a plan keeps what the step makes."""
        return np.asarray(flags & RESULTS == KEPT)

    @property
    def third_mark(self) -> Flags:
        """Every step may run at each need."""
        return self.graph.can_recompute

    def is_exact(self, found: Found) -> bool:
        """Always: what is recomputed does not change the order in which autograd adds."""
        return True

    def is_portable_flags(self, flags: Flags) -> bool:
        """Always: plain kernels are a matter of MXNet's."""
        return True

    def admissible(self, flags: Flags, *, portable: bool = False) -> Flags:
        """The marks with the user's hints."""
        flags = np.where(self.graph.can_recompute, flags, KEPT).astype(np.uint8)
        flags[list(self.hinted_keep)] = KEPT
        again = [v for v in self.hinted_again if flags[v] & RESULTS == KEPT]
        flags[again] = AGAIN
        return self.model.exact.as_run(flags)

    def annealing(self, *, portable: bool) -> Callable[..., float]:
        """:func:`memcli.planners.anneal_torch.anneal` on this step."""
        exact, trace = self.model.exact, self.model.trace
        return partial(
            anneal_torch.anneal,
            exact.program,
            torch_kernels.state_for(exact.program),
            exact.most_runs,
            trace.flops.astype(np.float64),
            np.asarray(self.model.seconds, np.float64),
            np.flatnonzero(exact.has_auxiliaries & ~trace.with_gradients).astype(np.int64),
            np.flatnonzero(trace.with_gradients).astype(np.int64),
        )

    def of_all_plans(self) -> Flags | None:
        """The best of all plans, where they are few."""
        plans = all_plans(self.model.exact)
        if plans is None:
            return None
        return min(plans, key=lambda flags: self.key(self.model.evaluate(flags)))

    def prove(self, seconds: float) -> tuple[int, Flags | None]:
        """The bound of all plans; no solver has a plan to give here."""
        return self.bound(min(found.cost.live_peak_bytes for found in self.tried)).bytes, None

    @property
    def bound_within(self) -> float | None:
        """Recomputation, as a part of a forward pass, up to which plans are compared with the best.

        The limit of the settings where the least memory is asked for.
        """
        return None if self.settings.budget is not None else self.settings.max_recompute

    def bound(self, ceiling: int) -> TorchBound:
        """What no plan can get under, and none within :attr:`bound_within`.

        ``ceiling``: the live peak of the best plan known, bytes.
        """
        limit = math.inf
        if self.bound_within is not None:
            limit = (self.bound_within + _ROUNDED) * self.model.forward_flops
        return torch_bound(self.model.exact, ceiling, limit)
