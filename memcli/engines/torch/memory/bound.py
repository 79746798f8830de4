"""What no plan of a PyTorch step can get under."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from memcli.engines.torch.memory.backwards_bound import backwards_bound, limited_bound
from memcli.engines.torch.memory.model import Marks, TorchModel
from memcli.engines.torch.memory.moments import moments_of
from memcli.graph.cost import LowerBound
from memcli.marks import AGAIN, AUXILIARY, EACH, KEPT

# Evaluations for which all plans of a tiny step are tried.
_MOST_PLANS = 20_000


def torch_bound(model: TorchModel, ceiling: int, limit: float = math.inf) -> LowerBound:
    """What no plan of a step can get under.

    ``ceiling``: the live peak of the best plan known (within the limit), bytes, or of any.
    ``limit``: FLOPs that plans may recompute for the second bound.

    What is alive at one moment whatever the plan (:mod:`memcli.engines.torch.memory.moments`), or
    more where the best of all orders of recomputations
    (:mod:`memcli.engines.torch.memory.backwards_bound`), or of all plans of a tiny step, needs
    more.
    """
    moments = moments_of(model.trace, model.block)
    low = int(moments.most.max(initial=0))
    if low >= ceiling:
        return LowerBound(low, low)
    least = least_of_all(model, (math.inf, limit))
    if least is not None:
        return LowerBound(*least)
    low = backwards_bound(model, moments, low, ceiling)
    if math.isinf(limit):
        return LowerBound(low, low)
    return LowerBound(low, limited_bound(model, moments, low, ceiling, limit))


def all_plans(model: TorchModel) -> Iterator[Marks] | None:
    """Every plan that does something else than the others; None where they are too many to try."""
    choices = []
    for droppable, has_auxiliaries, whole in zip(
        model.droppable, model.has_auxiliaries, model.trace.with_gradients, strict=True
    ):
        marks = [KEPT, AGAIN, EACH] if droppable or has_auxiliaries else [KEPT]
        # what runs as it ran first drops all that it makes, or nothing
        inside = has_auxiliaries and not whole
        choices.append(marks + ([m | AUXILIARY for m in marks] if inside else []))
    if sum(math.log(len(marks)) for marks in choices) > math.log(_MOST_PLANS):
        return None
    return (np.array(plan, np.uint8) for plan in itertools.product(*choices))


def least_of_all(model: TorchModel, limits: Sequence[float] = (math.inf,)) -> list[int] | None:
    """For each limit the least live peak of all plans that recompute no more FLOPs, bytes.

    None where they are too many to try.
    """
    plans = all_plans(model)
    if plans is None:
        return None
    costs = [cost for plan in plans if (cost := model.evaluate(plan)).feasible]
    return [
        min(cost.live_peak_bytes for cost in costs if cost.recompute_flops <= limit)
        for limit in limits
    ]
