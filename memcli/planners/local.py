"""``local``: local search on the exact pool, from the best plan of the classic search.

A plan keeps some forward nodes and recomputes the rest. Each step changes a few nodes (keep one
more, give one up, move a kept one to a neighbour, stop recomputing a stretch), evaluates the
changed plan on MXNet's emulated pool, and stays with it where it is not worse. The pool is not
the live peak: fragmentation decides, and no formula for it is known, so it is tried out.
"""

from __future__ import annotations

import random

import numpy as np

from memcli.graph.training import Flags
from memcli.planners import memonger
from memcli.planners.base import Found, Search

NAME = "local"
# Work of a search, in nodes of the joint graph evaluated: about three seconds on one core, the same
# number of steps on every machine, so that the same seed gives the same plan.
_WORK = 3_000_000
_LEAST_STEPS = 40


def candidates(search: Search) -> list[int]:
    """Forward nodes worth keeping: those that cuts are made of, and those that pin nothing."""
    graph = search.graph
    nodes = {v for cut in search.cuts for v in cut.nodes}
    saved = graph.saved_entries()
    for v in range(graph.n_forward):
        if graph.can_recompute[v] and any(saved[e] for e in graph.entries(v)):
            nodes.add(v)
    return sorted(v for v in nodes if graph.can_recompute[v])


def _changed(flags: Flags, nodes: list[int], chance: random.Random) -> Flags:
    """A neighbour of a plan."""
    result = flags.copy()
    kind = chance.random()
    place = chance.randrange(len(nodes))
    if kind < 0.45:
        result[nodes[place]] ^= 1
    elif kind < 0.8:
        kept = [k for k, v in enumerate(nodes) if not flags[v]]
        if not kept:
            result[nodes[place]] = 0
            return result
        at = chance.choice(kept)
        other = min(len(nodes) - 1, max(0, at + chance.choice((-3, -2, -1, 1, 2, 3))))
        result[nodes[at]] = 1
        result[nodes[other]] = 0
    elif kind < 0.9:
        for _ in range(2):
            result[nodes[chance.randrange(len(nodes))]] ^= 1
    else:
        # Between two neighbouring candidates nothing, or everything, is computed again.
        end = nodes[min(len(nodes) - 1, place + chance.randint(1, 4))]
        result[nodes[place] : end + 1] = chance.randint(0, 1)
    return result


def improve(search: Search, start: Found, *, portable: bool, strategy: str = NAME) -> None:
    """Search from ``start``; the best plan found is added to the candidates.

    ``portable``: among plans that MXNet's plain kernels run, too.
    """
    graph = search.graph
    nodes = candidates(search)
    if not nodes:
        return
    chance = random.Random(search.settings.seed)
    work = graph.n_nodes
    steps = max(_LEAST_STEPS, _WORK // max(1, work))
    ranges = (start.plan.match_range,)
    best = search.admissible(start.plan.recompute, portable=portable)
    cost = search.model.evaluate(best, ranges)
    seen = {best.tobytes()}
    for step in range(steps):
        if search.out_of_time:
            break
        if step % 64 == 0:
            search.progress("local search", step / steps)
        flags = search.admissible(_changed(best, nodes, chance), portable=portable)
        if flags.tobytes() in seen:
            continue
        seen.add(flags.tobytes())
        tried = search.model.evaluate(flags, ranges)
        search.evaluated += 1
        if search.better(tried, cost):
            best, cost = flags, tried
    found = search.consider(strategy, best, kept_cuts(search, best), start.plan.match_range)
    found.plan.notes["local_steps"] = steps


def kept_cuts(search: Search, flags: Flags) -> list[list[int]]:
    """The cuts of the graph all of whose nodes the plan keeps, for the table of stages."""
    cuts = [c for c in search.cuts if all(not flags[v] for v in c.nodes)]
    result: list[list[int]] = []
    for cut in cuts:
        # neighbours that keep the same tensors are one cut
        if not result or result[-1] != cut.nodes:
            result.append(cut.nodes)
    return result


def run(search: Search) -> None:
    """The classic search, then local search from its best plans."""
    if search.graph.stage_at:
        memonger.search_marks(search)
    memonger.search_cuts(search)
    refine(search)


def refine(search: Search, starts: int = 1) -> None:
    """Improve the best of the plans tried so far."""
    ranked = sorted(search.tried, key=lambda f: search.key(f.cost))
    chosen: list[Found] = []
    for found in ranked:
        flags = found.plan.recompute
        if all(np.count_nonzero(flags != c.plan.recompute) > 2 for c in chosen):
            chosen.append(found)
        if len(chosen) == starts:
            break
    for found in chosen:
        for portable in (False, True):
            improve(search, search.with_environment(found), portable=portable)
