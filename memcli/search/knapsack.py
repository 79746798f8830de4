"""Plans of little recomputation: costly operators are not recomputed, those worth most first.

A plan of little memory leaves room in a budget. Costly operators are taken out of what it
recomputes one after another, in the order of what they cost for each byte that is kept instead,
until the budget is full, or until no more is recomputed than a limit allows: Dantzig's greedy rule
for the knapsack problem ("Discrete-Variable Extremum Problems", Operations Research 5, 1957).
Stages of another length leave another room, so this is done to several plans; which is best, only
the exact memory tells.
"""

from __future__ import annotations

import numpy as np

from memcli.graph.cost import Cost, Found
from memcli.graph.training import Flags, Ints
from memcli.marks import AGAIN
from memcli.search.base import Search

# In nodes of the joint graph evaluated, as for annealing.
_WORK = 8_000_000
# Evaluations for one plan: the number of operators taken out is found by halving.
_HALVINGS = 9


def consider_knapsack_plans(search: Search, strategy: str) -> None:
    """Keep costly operators while the budget lasts, or as the limit on recomputation asks for.

    Remembers one plan for each that it starts from; does nothing where neither is set.
    """
    budget = search.settings.budget
    if budget is None and search.settings.max_recompute is None:
        return
    order = _densest(search)
    if not len(order):
        return
    # those that break the budget as they are, or that are within the limit, are no start
    starts = [
        found
        for found in search.tried
        if (not _within(search, found.cost) if budget is None else found.cost.pool_bytes <= budget)
    ]
    # without the largest of the usual ones: each costs an evaluation
    ranges = (search.match_ranges[0], *reversed(search.usual_match_ranges[:3]))
    one = _HALVINGS * len(ranges) * max(1, search.graph.n_nodes)
    for found in _spread(starts, max(2, _WORK // one)):
        if search.out_of_time:
            return
        _fill(search, found, order, ranges, strategy)


def _within(search: Search, cost: Cost) -> bool:
    limit = search.settings.max_recompute
    return limit is None or cost.recompute_fraction <= limit


def _densest(search: Search) -> Ints:
    """Costly forward nodes, most worth for their bytes first; of equals the later."""
    starts, _ = search.kept_instead
    sizes = search.graph.operator_bytes() + search.space.pinned
    costly = np.flatnonzero(starts[1:] > starts[:-1])
    density = search.space.seconds[costly] / np.maximum(1, sizes[costly])
    return costly[np.lexsort((-costly, -density))]


def _spread(found: list[Found], count: int) -> list[Found]:
    """Half of them those of least memory, the others spread over the rest."""
    ranked = sorted(found, key=lambda f: f.cost.pool_bytes)
    first = ranked[: count // 2]
    rest = ranked[len(first) :]
    if not rest:
        return first
    places = np.unique(np.linspace(0, len(rest) - 1, count - len(first)).astype(int))
    return first + [rest[k] for k in places]


def _fill(
    search: Search, found: Found, order: Ints, ranges: tuple[int, ...], strategy: str
) -> None:
    """Consider one plan with as many costly operators kept as the budget allows.

    Of the plans that do not recompute the first operators of ``order``: the last that fits the
    budget, or without one the first within the limit on recomputation.
    """
    budget = search.settings.budget
    order = order[found.plan.recompute[order] == AGAIN]
    low, high = 0, len(order) + 1  # too few, too many
    best: tuple[Flags, int] | None = None
    for _ in range(_HALVINGS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        flags = search.admissible(search.without_recomputing(found.plan.recompute, order[:middle]))
        cost = search.space.evaluate(flags, ranges)
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
