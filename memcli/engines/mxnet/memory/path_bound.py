"""A bound from one chain of operators: what is not kept must be recomputed, all at once.

Take a path ``q_1 -> q_2 -> ... -> q_L`` in the forward graph along which gradients are computed
from the end to the start. A plan recomputes some nodes of the path (AGAIN) and breaks it at the
others. Between two breaks all nodes are AGAIN, and from :mod:`memcli.engines.mxnet.memory.pool`:

1. The copy of an AGAIN node reads the copies of its AGAIN inputs, so that when the copy of
   ``q_j`` has run, and it has by the time its gradient runs, so have all back to the last break.
2. A tensor of an AGAIN node that a later gradient reads is then there: as the copy, or, where
   that gradient's own node is kept, as the original.
3. A tensor of a break that another node's gradient reads is there as the original, from the
   forward pass on.
4. An input of an AGAIN node whose copy has run and which another node's later gradient reads is
   there: by rule 2 if it is AGAIN, by rule 3 if not.
5. Break ``q_k`` and AGAIN ``q_{k+1} ... q_m``, none of them recomputed yet or all: if all, rule 2
   counts them; if not all, one edge of ``q_k ... q_m`` has a tensor that its reader's copy will
   read, and that tensor is there.

A node of the path without a gradient of its own (a sum) has run by the time the next one with a
gradient has, if both are in one stretch; only then it counts.

So under a plan with peak ``P``, at each AGAIN ``q_j`` behind break ``q_i``: what the earlier
breaks cost (rules 3 and 5), what ``q_{i+1} ... q_j`` cost (rules 2 and 4), and the gradients that
live at that moment whatever the plan, are at most ``P``. The least ``P`` for which a choice of
breaks exists is a bound for every plan; dynamic programming finds it, as for a chain in Chen et
al., arXiv 1604.06174, section 4.1. It grows with the square root of the path's length, as plans do.
"""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled
from memcli.graph.lifetimes import NEVER, Lifetimes
from memcli.graph.training import Ints, TrainingGraph

_FAR = np.int64(1) << 60
_SIZES = 10  # sizes of operators for which a path of their own is tried


@compiled
def _heaviest_path(n_forward, in_ptr, in_node, in_ignored, turn, allowed, weight, never):
    """Allowed forward nodes of a path of great weight, gradients in reverse order.

    Nodes without a gradient of their own may be on it, its last node has one.
    """
    best = np.zeros(n_forward, np.int64)
    back = np.full(n_forward, -1, np.int64)
    reached = np.full(n_forward, never, np.int64)  # the turn of the last node that has one
    top = -1
    for v in range(n_forward):
        if not allowed[v]:
            best[v] = -1
            continue
        for i in range(in_ptr[v], in_ptr[v + 1]):
            u = in_node[i]
            # turns fall along the path
            if in_ignored[i] or best[u] < 0:
                continue
            if turn[v] != never and reached[u] <= turn[v]:
                continue
            if back[v] < 0 or best[u] > best[back[v]]:
                back[v] = u
        if back[v] >= 0:
            best[v] = best[back[v]]
            reached[v] = reached[back[v]]
        if turn[v] != never:
            reached[v] = turn[v]
        best[v] += weight[v]
        if turn[v] != never and (top < 0 or best[v] > best[top]):
            top = v
    length = 0
    v = top
    while v >= 0:
        length += 1
        v = back[v]
    path = np.empty(length, np.int64)
    v = top
    for k in range(length - 1, -1, -1):
        path[k] = v
        v = back[v]
    return path


@compiled
def _feasible(limit, broken, recomputed, last, side, edge, static, may, own, far):
    """Whether breaks exist under which no moment needs more than ``limit`` bytes.

    ``least[i]``: the least cost of the breaks up to ``i``, with ``i`` the last, number 0 the start
    of the path (no break of its own, and free). ``own`` tells nodes with a gradient of their own:
    what is behind the last of them in a stretch may never be recomputed, and counts nothing.
    """
    length = broken.shape[0]
    least = np.full(length + 2, far, np.int64)
    least[0] = 0
    for p in range(length + 1):
        if least[p] == far:
            continue
        # the next break is right behind
        cost = least[p]
        if p < length:
            cost += broken[p]
        # at the gradient of what follows all breaks up to here are there
        if cost + (static[p + 1] if p + 1 < length else 0) <= limit:
            least[p + 1] = min(least[p + 1], cost)
        crossing = edge[p - 1] if p > 0 else 0
        kept = broken[p - 1] if p > 0 else 0
        running = 0
        sure = 0  # of what runs up to the last node with a gradient
        sure_crossing = 0
        for j in range(p, length):
            # node j (path counted from 0) is recomputed
            if not may[j]:
                break
            running += side[j]
            if own[j] and least[p] + running + last[j] + static[j] > limit:
                break
            running += recomputed[j]
            if own[j]:
                sure = running
                sure_crossing = crossing
            cost = least[p] - kept + max(kept, min(sure_crossing, sure))
            crossing = min(crossing, edge[j])
            if j + 1 < length:
                if cost + static[j + 1] > limit:
                    continue
                cost += broken[j + 1]
            if cost + (static[j + 2] if j + 2 < length else 0) <= limit:
                least[j + 2] = min(least[j + 2], cost)
    return least[length + 1] < far


def _needed(graph: TrainingGraph, facts: Lifetimes) -> tuple[Ints, Ints]:
    """Over entries: until when gradients need a forward tensor to be there.

    Returns:
        The last place at which another node's gradient does, and the last at which any does; -1
        where none does.
    """
    n = graph.n_nodes
    reader = np.repeat(np.arange(n), np.diff(graph.in_ptr))
    rows = (reader >= graph.n_forward) & (graph.in_node < graph.n_forward)
    rows &= (graph.in_ignored == 0) & (facts.place[reader] >= 0)
    rows &= facts.bytes[graph.in_entry] > 0
    at = np.flatnonzero(rows)
    until = facts.place[reader[at]] - facts.paired[at]
    foreign = np.full(graph.n_entries, -1, np.int64)
    any_read = np.full(graph.n_entries, -1, np.int64)
    other = graph.owner[reader[at]] != graph.in_node[at]
    np.maximum.at(foreign, graph.in_entry[at[other]], until[other])
    np.maximum.at(any_read, graph.in_entry[at], until)
    return foreign, any_read


def path_bound(graph: TrainingGraph, facts: Lifetimes, known: int = 0) -> int:
    """Bytes that are alive at once under every plan, by the heaviest paths of the graph.

    One path through all operators, and some through those alone whose outputs are large: a break
    costs the least tensor of its stretch, and a path through a bottleneck is broken there. Linear
    in the graph but for the search over breaks; a second at 50,000 nodes.

    Args:
        graph: the joint graph.
        facts: its lifetimes.
        known: bytes, another bound; the search is left out where paths prove no more.

    Returns:
        No less than ``known``; 0 where the facts do not hold (``Lifetimes.sound``).
    """
    if not facts.sound:
        return known
    foreign, any_read = _needed(graph, facts)
    n_forward = graph.n_forward
    weight = np.zeros(n_forward, np.int64)
    wanted = np.flatnonzero((foreign >= 0) & (graph.entry_node < n_forward))
    np.add.at(weight, graph.entry_node[wanted], facts.bytes[wanted])
    output = facts.bytes[np.minimum(graph.first[:n_forward], graph.n_entries - 1)]
    run = (graph.variable[:n_forward] == 0) & (facts.place[:n_forward] >= 0)
    sizes = output[run & (output > 0)]
    if not len(sizes):
        return known
    least = [0, *np.quantile(sizes, np.arange(1, _SIZES) / _SIZES, method="nearest").tolist()]
    best = known
    seen: set[bytes] = set()
    for size in dict.fromkeys(least):
        path = _heaviest_path(
            n_forward,
            graph.in_ptr,
            graph.in_node,
            graph.in_ignored,
            facts.turn,
            run & (output >= size),
            weight,
            NEVER,
        )
        if len(path) and path.tobytes() not in seen:
            seen.add(path.tobytes())
            best = _bound_of(graph, facts, path, foreign, any_read, best)
    return best


def _bound_of(
    graph: TrainingGraph, facts: Lifetimes, path: Ints, foreign: Ints, any_read: Ints, known: int
) -> int:
    """The least peak under which the path can be broken, or ``known`` if that is more."""
    size, length = facts.bytes, len(path)
    own = facts.turn[path] != NEVER
    # a node without a gradient has been recomputed by the turn of the next that has one
    turn = facts.turn[path].copy()
    for k in range(length - 2, -1, -1):
        if not own[k]:
            turn[k] = turn[k + 1]
    following = np.append(turn[1:], turn[-1])
    broken, recomputed, last, side, edge = (np.zeros(length, np.int64) for _ in range(5))
    # A class counts once: for the first node of the path that has it, then for the first reader.
    used: set[int] = set()
    on_path: dict[int, int] = {int(v): k for k, v in enumerate(path)}
    held: list[set[int]] = []
    for k, v in enumerate(path.tolist()):
        usable = set()
        for e in graph.entries(v):
            group = int(facts.block[e])
            if not size[e] or group in used:
                continue
            used.add(group)
            usable.add(e)
            if foreign[e] >= following[k]:
                broken[k] += size[e]
            if any_read[e] >= following[k]:
                recomputed[k] += size[e]
            if any_read[e] >= turn[k]:
                last[k] += size[e]
        held.append(usable)
    for k, v in enumerate(path.tolist()):
        for i in range(int(graph.in_ptr[v]), int(graph.in_ptr[v + 1])):
            e, u = int(graph.in_entry[i]), int(graph.in_node[i])
            if graph.in_ignored[i]:
                continue
            if k and u == path[k - 1] and e in held[k - 1]:
                edge[k - 1] = max(edge[k - 1], size[e])
            group = int(facts.block[e])
            if u in on_path or group in used or not size[e]:
                continue
            if foreign[e] >= turn[k]:
                used.add(group)
                side[k] += size[e]
    static = facts.gradients[turn]
    may = graph.can_recompute[path]
    arrays = (broken, recomputed, last, side, edge, static, may, own, _FAR)
    most = broken.sum() + recomputed.sum() + last.sum() + side.sum() + static.max()
    low, high = known, int(most) + 1
    if low >= high or _feasible(np.int64(low), *arrays):
        return low
    # what no plan needs is below the bound: the least feasible limit
    while low < high:
        middle = (low + high) // 2
        if _feasible(np.int64(middle), *arrays):
            high = middle
        else:
            low = middle + 1
    return low
