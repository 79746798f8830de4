"""The search for plans that PyTorch runs: any tensor can go, and be made again more than once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import Flags
from memcli.marks import AGAIN, EACH, KEPT, RESULTS
from memcli.memory import torch_kernels
from memcli.memory.torch_bound import torch_bound
from memcli.memory.torch_plan_model import TorchPlanModel
from memcli.planners import anneal_torch
from memcli.planners.base import Search, Settings

# Evaluations for which all plans of a tiny graph are tried.
_MOST_PLANS = 20_000


class TorchSearch(Search):
    """A search over one traced step. Marks as in :mod:`memcli.memory.torch_model`."""

    model: TorchPlanModel  # type: ignore[assignment]
    effort = 0.7
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
        """The best of all plans, where they are few: each step kept, again, or at each need."""
        makes = np.flatnonzero(self.graph.operator_bytes() > 0)
        if not len(makes) or len(makes) * np.log(3) > np.log(_MOST_PLANS):
            return None
        best, least = None, None
        flags = self.model.none()
        for number in range(3 ** len(makes)):
            for v in makes:
                number, flags[v] = divmod(number, EACH + 1)
            key = self.key(self.model.evaluate(flags))
            if least is None or key < least:
                least, best = key, flags.copy()
        return best

    def prove(self, seconds: float) -> tuple[int, Flags | None]:
        """The bound by what is alive under every plan; no solver has a plan to give here."""
        return torch_bound(self.model.trace, self.model.exact.block), None
