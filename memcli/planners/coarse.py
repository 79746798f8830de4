"""Search over whole roles: one decision for all nodes that play the same part in the network.

A network of hundreds of operators has a few dozen roles. Coordinate descent over them (each
role's nodes kept, recomputed, or kept behind a barrier; all of them or every second, third, ...)
finds the regular plans that single changes would need thousands of steps for.
"""

from __future__ import annotations

import random

from memcli.memory.pool import AGAIN, BARRIER, KEPT
from memcli.planners.base import Found, Search
from memcli.planners.cutpoints import last_forward_use

_STRIDES = (1, 2, 3, 4, 6, 9)
# In nodes of the joint graph evaluated, as for annealing.
_WORK = 5_000_000
_RANGES = (16, 6, 4, 3)


def consider_roles(search: Search, strategy: str) -> None:
    """Coordinate descent from the best plans so far; remembers what it ends at."""
    if not search.tried:
        return
    chance = random.Random(search.settings.seed)
    ranked = sorted(search.tried, key=lambda f: search.key(f.cost))
    low = min(ranked, key=lambda f: f.cost.live_peak_bytes)
    steps = max(60, _WORK // max(1, search.graph.n_nodes))
    starts = [ranked[0]] if low is ranked[0] else [ranked[0], low]
    for start in starts:
        _descend(search, start, steps // len(starts), chance, strategy)


def _descend(
    search: Search, start: Found, steps: int, chance: random.Random, strategy: str
) -> None:
    graph, model = search.graph, search.model
    ranges = tuple(r for r in _RANGES if r in search.match_ranges)
    last = last_forward_use(graph)
    begins, _, members = search.roles
    groups = []
    for k in range(len(begins) - 1):
        role = members[begins[k] : begins[k + 1]]
        role = role[(graph.can_recompute[role] == 1) & (last[role] > role)]
        if len(role):
            groups.append(role)
    moves = []
    for number, nodes in enumerate(groups):
        marks = [KEPT, AGAIN]
        if search.barriers[nodes].any():
            marks.append(BARRIER)
        for mark in marks:
            for stride in _STRIDES if len(nodes) > 1 else (1,):
                if stride == 1 or stride < len(nodes):
                    moves.append((number, mark, stride, False))
                    if stride > 1 and mark != AGAIN:
                        moves.append((number, mark, stride, True))
    flags = search.admissible(start.plan.recompute)
    cost = model.evaluate(flags, ranges)
    best_range = cost.match_range
    used = 0
    improved = True
    while improved and used < steps:
        improved = False
        chance.shuffle(moves)
        for number, mark, stride, alone in moves:
            if used >= steps or search.out_of_time:
                break
            nodes = groups[number]
            changed = flags.copy()
            if alone:
                changed[nodes] = AGAIN
            changed[nodes[chance.randrange(stride) :: stride]] = mark
            changed = search.admissible(changed)
            if (changed == flags).all():
                continue
            used += 1
            tried = model.evaluate(changed, ranges)
            if search.key(tried) < search.key(cost):
                flags, cost, best_range, improved = changed, tried, tried.match_range, True
    search.evaluated += used
    cuts = [c.nodes for c in search.cuts if all(flags[v] != AGAIN for v in c.nodes)]
    search.consider(strategy, flags, cuts, best_range)
