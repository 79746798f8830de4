"""``sqrt``: the sublinear plan of Chen et al., as the paper has it.

Source: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", arXiv
1604.06174. Section 4.1, Algorithm 2, builds a gradient graph from a mirror count ``m(v)``: how
often each node is recomputed. MXNet recomputes a node once at most, so here ``m(v)`` is 0 or 1,
and what section 4.3 does by recursion (``m(v) > 1``) has no counterpart. Algorithm 3 chooses
``m``: outputs are summed up in topological order, and at the first candidate behind which more
than a budget ``b`` has been summed up the candidate is kept (``m = 0``) and the sum starts anew;
``x``, all that is kept, and ``y``, the largest stage, come out. Where all stages are alike the best
budget is the square root of ``x * y`` (section 4.2), which is searched for by a grid over
``[B / sqrt 2, B * sqrt 2]``, ``B = sqrt(x * y)``.

Candidates ``C(v)`` are the cuts that :mod:`memcli.search.cutpoints` finds, all tensors of a cut
kept or none. Two ways to keep are tried: MXNet's own, under which a kept node's gradient holds
the node's inputs as well, and a save barrier where that is so.
"""

from __future__ import annotations

import math

from memcli.search.base import Search
from memcli.search.cutpoints import CutPoint, cut_pass
from memcli.search.marks import recompute_between

NAME = "sqrt"
_GRID = 9  # budgets between B / sqrt 2 and B * sqrt 2
_ROUNDS = 3  # B is set to sqrt(x * y) this often


def budgets(cuts: list[CutPoint], search: Search) -> list[int]:
    """The budgets ``b`` to try, bytes: a grid around the balance of kept and recomputed."""
    sizes = search.graph.operator_bytes()
    total = int(sizes.sum())
    budget = math.isqrt(total * max(1, total // max(1, len(cuts))))
    for _ in range(_ROUNDS):
        _, x, y = cut_pass(search.graph, cuts, sizes, budget)
        budget = math.isqrt(max(1, x) * max(1, y))
    low, high = budget / math.sqrt(2), budget * math.sqrt(2)
    return [int(low * (high / low) ** (k / (_GRID - 1))) for k in range(_GRID)]


def run(search: Search) -> None:
    """Algorithm 3 over the grid of budgets, for all cuts and for cuts of one tensor."""
    graph = search.graph
    sizes = graph.operator_bytes()
    seen: set[tuple[int, ...]] = set()
    sets = [search.cuts, [c for c in search.cuts if len(c.nodes) == 1]]
    for number, cuts in enumerate(sets):
        search.progress("budgets around the square root", number / len(sets))
        if not cuts:
            continue
        for budget in budgets(cuts, search):
            kept, _, _ = cut_pass(graph, cuts, sizes, budget)
            key = tuple(c.after for c in kept)
            if key in seen:
                continue
            seen.add(key)
            for barriers in (False, True):
                if search.out_of_time:
                    return
                nodes = [c.nodes for c in kept]
                found = search.consider(NAME, recompute_between(search, nodes, barriers), nodes)
                found.plan.notes["budget_bytes"] = budget
    if not search.tried:
        search.consider(NAME, search.space.none(), [])
