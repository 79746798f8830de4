"""Search over whole roles: one decision for all nodes that play the same part in the network.

A network of hundreds of operators has a few dozen roles. Coordinate descent over them (each
role's nodes kept, recomputed, or kept behind a barrier; all of them or every second, third, ...)
finds the regular plans that single changes would need thousands of steps for.
"""

from __future__ import annotations

import random

from memcli.graph.cost import Found
from memcli.graph.training import Flags
from memcli.marks import AGAIN, BARRIER, KEPT
from memcli.search.base import Search
from memcli.search.cutpoints import last_forward_use

_STRIDES = (1, 2, 3, 4, 6, 9)
# In nodes of the joint graph evaluated, as for annealing.
_WORK = 5_000_000
# Not a mark: keep what it takes that the operator is not recomputed.
KEEP_INSTEAD = 3
# A role, what to do with it, the stride in which its nodes are taken, and whether the others are
# recomputed.
Move = tuple[int, int, int, bool]


def consider_roles(search: Search, strategy: str) -> None:
    """Coordinate descent over roles from the best plans so far; considers what it ends at."""
    if not search.tried:
        return
    chance = random.Random(search.settings.seed)
    ranked = sorted(search.tried, key=lambda f: search.key(f.cost))
    if search.settings.budget is None:
        low = min(ranked, key=lambda f: f.cost.live_peak_bytes)
    else:
        # what leaves the most room to keep more
        low = min(ranked, key=lambda f: f.cost.pool_bytes)
    steps = max(60, _WORK // max(1, search.graph.n_nodes))
    starts = [ranked[0]] if low is ranked[0] else [ranked[0], low]
    for start in starts:
        _descend(search, start, steps // len(starts), chance, strategy)


def _descend(
    search: Search, start: Found, steps: int, chance: random.Random, strategy: str
) -> None:
    graph, space = search.graph, search.space
    # without the least of the usual ones: each costs an evaluation
    ranges = (search.match_ranges[0], *reversed(search.usual_match_ranges[1:]))
    last = last_forward_use(graph)
    begins, _, members = search.roles
    groups = []
    for k in range(len(begins) - 1):
        role = members[begins[k] : begins[k + 1]]
        role = role[(graph.can_recompute[role] == 1) & (last[role] > role)]
        if len(role):
            groups.append(role)
    moves: list[Move] = []
    for number, nodes in enumerate(groups):
        marks = [KEPT, AGAIN]
        if (search.kept_instead[0][nodes + 1] > search.kept_instead[0][nodes]).any():
            marks.append(KEEP_INSTEAD)
        if search.barriers[nodes].any():
            marks.append(BARRIER)
        for mark in marks:
            for stride in _STRIDES if len(nodes) > 1 else (1,):
                if stride == 1 or stride < len(nodes):
                    moves.append((number, mark, stride, False))
                    if stride > 1 and mark != AGAIN:
                        moves.append((number, mark, stride, True))
    flags = search.admissible(start.plan.recompute)
    cost = space.evaluate(flags, ranges)
    best_range = cost.match_range
    used = 0
    improved = True

    def moved(move: Move) -> Flags | None:
        number, mark, stride, alone = move
        nodes = groups[number]
        changed = flags.copy()
        if alone:
            changed[nodes] = AGAIN
        chosen = nodes[chance.randrange(stride) :: stride]
        if mark == KEEP_INSTEAD:
            changed = search.without_recomputing(changed, chosen)
        else:
            changed[chosen] = mark
        changed = search.admissible(changed)
        return None if (changed == flags).all() else changed

    while improved and used < steps:
        improved = False
        chance.shuffle(moves)
        if search.settings.budget is not None:
            # what saves the most work for its memory comes first
            worth = []
            for move in moves[: (steps - used) // 2]:
                changed = moved(move)
                if changed is None or search.out_of_time:
                    continue
                used += 1
                tried = space.evaluate(changed, (cost.match_range,))
                saved = cost.recompute_seconds - tried.recompute_seconds
                if saved > 0:
                    worth.append((saved / max(1.0, tried.pool_bytes - cost.pool_bytes), move))
            moves = [move for _, move in sorted(worth, reverse=True)]
        for move in moves:
            if used >= steps or search.out_of_time:
                break
            changed = moved(move)
            if changed is None:
                continue
            used += 1
            tried = space.evaluate(changed, ranges)
            if search.key(tried) < search.key(cost):
                flags, cost, best_range, improved = changed, tried, tried.match_range, True
    search.evaluated += used
    search.consider(strategy, flags, search.kept_cuts(flags), best_range)
