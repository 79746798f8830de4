"""What no plan of a PyTorch step can get under."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from memcli.marks import AGAIN, AUXILIARY, EACH, KEPT
from memcli.memory.bounds import Bound
from memcli.memory.torch_backwards import backwards_bound
from memcli.memory.torch_model import Marks, TorchModel
from memcli.memory.torch_moments import moments_of

# Evaluations for which all plans of a tiny step are tried.
_MOST_PLANS = 20_000


def torch_bound(model: TorchModel, ceiling: int, limit: float = math.inf) -> Bound:
    """Bytes that no plan's live peak is under.

    ``ceiling``: the live peak of the best plan known, or of any. ``limit``: FLOPs; plans that
    recompute more are left out. What is alive at one moment whatever the plan
    (:mod:`memcli.memory.torch_moments`), or more where the best of all orders of recomputations
    (:mod:`memcli.memory.torch_backwards`), or of all plans of a tiny step, needs more.
    """
    moments = moments_of(model.trace, model.block)
    low = int(moments.most.max(initial=0))
    if low >= ceiling:
        return Bound(low, "steps")
    least = least_of_all(model, limit)
    if least is not None:
        return Bound(least, "all plans")
    found = backwards_bound(model, moments, low, ceiling, limit)
    return Bound(found, "steps" if found == low else "all orders")


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


def least_of_all(model: TorchModel, limit: float = math.inf) -> int | None:
    """The least live peak of all plans that recompute at most ``limit`` FLOPs, bytes.

    None where they are too many to try.
    """
    plans = all_plans(model)
    if plans is None:
        return None
    costs = (model.evaluate(plan) for plan in plans)
    return min(c.live_peak_bytes for c in costs if c.feasible and c.recompute_flops <= limit)
