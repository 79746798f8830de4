"""Plans to start from where recomputation is to be little: what is dear is kept, densest first.

A plan of little memory leaves room in a budget. Operators that cost much are spared one after
another, in the order of what they cost for each byte that sparing them keeps (Dantzig's greedy
rule for the knapsack problem, "Discrete-Variable Extremum Problems", Operations Research 5, 1957),
until the budget is full, or until no more is run again than a limit allows. Stages of another
length leave another room, so this is done to several plans; which is best, only the pool tells.
"""

from __future__ import annotations

import numpy as np

from memcli.graph.training import Flags, Ints
from memcli.memory.mxnet_model import Cost
from memcli.memory.pool import AGAIN
from memcli.planners.base import Found, Search

# In nodes of the joint graph evaluated, as for annealing.
_WORK = 8_000_000
_RANGES = (16, 4, 3, 2)
# Evaluations for one plan: the number of operators spared is found by halving.
_HALVINGS = 9


def consider_spared(search: Search, strategy: str) -> None:
    """Spare what fits the budget, or what the limit on recomputation asks for.

    Remembers one plan for each that it starts from; does nothing where neither is set.
    """
    budget = search.settings.budget
    if budget is None and search.settings.max_recompute is None:
        return
    order = _densest(search)
    if not len(order):
        return
    # those that break the budget as they are, or that need not spare anything, are no start
    starts = [
        found
        for found in search.tried
        if (not _within(search, found.cost) if budget is None else found.cost.pool_bytes <= budget)
    ]
    ranges = tuple(r for r in _RANGES if r in search.match_ranges)
    one = _HALVINGS * len(ranges) * max(1, search.graph.n_nodes)
    for found in _spread(starts, max(2, _WORK // one)):
        if search.out_of_time:
            return
        _spare(search, found, order, ranges, strategy)


def _within(search: Search, cost: Cost) -> bool:
    limit = search.settings.max_recompute
    return limit is None or cost.recompute_fraction <= limit


def _densest(search: Search) -> Ints:
    """Forward nodes that are dear, the best worth for their bytes first; of equals the later."""
    starts, _ = search.spared
    sizes = search.graph.operator_bytes() + search.pinned
    dear = np.flatnonzero(starts[1:] > starts[:-1])
    density = search.model.seconds[dear] / np.maximum(1, sizes[dear])
    return dear[np.lexsort((-dear, -density))]


def _spread(found: list[Found], count: int) -> list[Found]:
    """Half of them those of least memory, the others spread over the rest."""
    ranked = sorted(found, key=lambda f: f.cost.pool_bytes)
    first = ranked[: count // 2]
    rest = ranked[len(first) :]
    if not rest:
        return first
    places = np.unique(np.linspace(0, len(rest) - 1, count - len(first)).astype(int))
    return first + [rest[k] for k in places]


def _spare(
    search: Search, found: Found, order: Ints, ranges: tuple[int, ...], strategy: str
) -> None:
    """Of the plans that spare the first operators of ``order``, the last that fits the budget, or
    the first within the limit; remembers it."""
    budget = search.settings.budget
    order = order[found.plan.recompute[order] == AGAIN]
    low, high = 0, len(order) + 1  # too few, too many
    best: tuple[Flags, int] | None = None
    for _ in range(_HALVINGS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        flags = search.admissible(search.sparing(found.plan.recompute, order[:middle]))
        cost = search.model.evaluate(flags, ranges)
        search.evaluated += 1
        good = _within(search, cost) if budget is None else cost.pool_bytes <= budget
        # within a budget more are looked for, within a limit fewer
        if good == (budget is not None):
            low = middle
        else:
            high = middle
        if good:
            best = flags, cost.match_range
    if best is not None:
        search.consider(strategy, best[0], search.kept_cuts(best[0]), best[1])
