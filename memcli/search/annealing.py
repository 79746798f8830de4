"""What annealing shares, whatever the engine: the energy of a plan, and changes to try. Compiled.

A state is a mark for each forward node. Each step changes a few marks, evaluates the changed plan,
and accepts it by the Metropolis rule (Kirkpatrick, Gelatt, Vecchi, "Optimization by Simulated
Annealing", Science 220, 1983). Who evaluates is the engine's: :class:`memcli.search.space.Walk`.
"""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled, lower_bound
from memcli.marks import AGAIN, KEPT, THIRD

# Places of the parameters of the energy; of penalties what they end at, and what they begin at.
MEMORY, WORK, BUDGET, OVER, LIMIT, WASTED, LEAST, OVER_FIRST, WASTED_FIRST = range(9)
N_PARAMETERS = 9
# Up to this part of a walk penalties are what they begin at.
_MILD = 0.7
_MOST_COPIED = 24  # nodes of a part of the network that does as another one
# How often a stretch of nodes does as it does in another good plan, where there are some, and how
# long it is: powers of the number of nodes, from the first to the second.
_CROSSED = 0.15
_SHORT, _LONG = 0.3, 0.9


@compiled
def _next(rng):
    """xorshift64*: the same numbers on every platform and numba version."""
    x = rng[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    rng[0] = x
    return x * np.uint64(0x2545F4914F6CDD1D)


@compiled
def below(rng, limit):
    """A random whole number.

    Args:
        rng: one word, the state of the random numbers; changed.
        limit: above every result, at least 1.

    Returns:
        Of 0 to ``limit - 1``, each as likely.
    """
    return np.int64((_next(rng) >> np.uint64(33)) % np.uint64(limit))


@compiled
def unit(rng):
    """A random number of [0, 1), of 53 bits. ``rng``: as for :func:`below`."""
    return (_next(rng) >> np.uint64(11)) / 9007199254740992.0


@compiled
def hardness(part):
    """How far penalties have grown by a part of a walk, 0 to 1.

    Args:
        part: of the walk that is done, 0 to 1.

    Returns:
        0 while penalties are what they begin at, 1 where they are what they end at.
    """
    return max(0.0, (part - _MILD) / (1.0 - _MILD))


@compiled
def _penalties(p, hard):
    """What a byte over the budget costs, and a FLOP over the limit; see :func:`energy_of`."""
    over, wasted = p[OVER], p[WASTED]
    if hard < 1.0:
        if p[OVER_FIRST] > 0.0:
            over = p[OVER_FIRST] * (over / p[OVER_FIRST]) ** hard
        if p[WASTED_FIRST] > 0.0:
            wasted = p[WASTED_FIRST] * (wasted / p[WASTED_FIRST]) ** hard
    return over, wasted


@compiled
def ceiling_of(p, energy, hard):
    """The largest pool that does not exceed an energy by itself, whatever the plan recomputes.

    Args:
        p: parameters of the energy, ``N_PARAMETERS`` of them.
        energy: not to be exceeded.
        hard: how far penalties have grown, 0 to 1, see :func:`hardness`.

    Returns:
        Bytes.
    """
    over, _ = _penalties(p, hard)
    if not over or p[MEMORY] * p[BUDGET] >= energy:
        return energy / p[MEMORY]
    return (energy + over * p[BUDGET]) / (p[MEMORY] + over)


@compiled
def energy_of(p, pool, flops, work, hard):
    """What annealing minimizes: memory and work, with penalties for what breaks a limit.

    A plan a little over a limit is worth what it saves while penalties are low, as in Lagrange's
    relaxation: the way from a good plan to a better one often leads through such.

    Args:
        p: parameters, ``N_PARAMETERS`` of them: prices of a byte (``MEMORY``) and of a second
            (``WORK``), limits in bytes (``BUDGET``) and FLOPs (``LIMIT``), and prices of what is
            beyond them (``OVER``, ``WASTED``; ``OVER_FIRST`` and ``WASTED_FIRST`` at the start of a
            walk).
        pool: bytes that the plan takes.
        flops: that it recomputes.
        work: seconds, by the cost of operators, that it recomputes.
        hard: 1 for the penalties that plans are judged by, less for those of :func:`hardness`.

    Returns:
        The energy, without a unit; least is best.
    """
    over, wasted = _penalties(p, hard)
    return (
        p[MEMORY] * pool
        + p[WORK] * work
        + over * max(0.0, pool - p[BUDGET])
        + wasted * max(0.0, flops - p[LIMIT])
    )


@compiled
def _place(rng, weights):
    """A place in the list of nodes: half of the time any, else by the weight of its tensors."""
    n = weights.shape[0]
    if below(rng, 2):
        return below(rng, n)
    wanted = unit(rng) * weights[n - 1]
    return min(n - 1, lower_bound(weights, wanted, n))


@compiled
def _set(state, v, mark, undo_node, undo_mark, count):
    """Mark a node, if it is not marked so; how many changes there are to undo now."""
    if state[v] == mark:
        return count
    undo_node[count], undo_mark[count] = v, state[v]
    state[v] = mark
    return count + 1


@compiled
def _copy_part(rng, state, nodes, third, group_ptr, group_of, group_node, undo_node, undo_mark):
    """A stretch of nodes takes the marks of a stretch like it, or the two exchange theirs.

    The stretches lie around two alike nodes, which are neighbours half of the time; where what
    stands at the same place of both is not alike, it is left as it is.
    """
    n = nodes.shape[0]
    at = below(rng, n)
    begin, end = group_ptr[group_of[nodes[at]]], group_ptr[group_of[nodes[at]] + 1]
    if end - begin < 2:
        return 0
    if below(rng, 2):
        number = begin + below(rng, end - begin)
    else:
        own = begin + lower_bound(group_node[begin:end], nodes[at], end - begin)
        far = 1 + below(rng, 3)
        number = min(end - 1, max(begin, own + (far if below(rng, 2) else -far)))
    other = lower_bound(nodes, group_node[number], n)
    if other in (n, at) or nodes[other] != group_node[number]:
        return 0
    length = 1 + below(rng, _MOST_COPIED)
    exchange = below(rng, 2)
    if exchange:
        length = min(length, abs(other - at))
    before = below(rng, length)
    count = 0
    for shift in range(-before, length - before):
        if min(at, other) + shift < 0 or max(at, other) + shift >= n:
            continue
        v, w = nodes[at + shift], nodes[other + shift]
        if group_of[v] != group_of[w]:
            continue
        old, new = state[v], state[w]
        if new != THIRD or third[v]:
            count = _set(state, v, new, undo_node, undo_mark, count)
        if exchange and (old != THIRD or third[w]):
            count = _set(state, w, old, undo_node, undo_mark, count)
    return count


@compiled
def cross(rng, state, nodes, others, undo_node, undo_mark):
    """A stretch of nodes takes the marks that it has in another good plan.

    As crossover in genetic algorithms. Arguments and result: see :func:`propose`.
    """
    n = nodes.shape[0]
    other = others[below(rng, others.shape[0])]
    length = np.int64(n ** (_SHORT + (_LONG - _SHORT) * unit(rng)))
    at = below(rng, n)
    count = 0
    for i in range(at, min(n, at + length)):
        count = _set(state, nodes[i], other[nodes[i]], undo_node, undo_mark, count)
    return count


@compiled
def propose(
    rng,
    state,
    nodes,
    weights,
    third,
    group_ptr,
    group_of,
    group_node,
    costly_ptr,
    costly_node,
    costly_chance,
    copy_chance,
    others,
    undo_node,
    undo_mark,
):
    """Change a plan a little.

    Args:
        rng: one word, the state of the random numbers; changed.
        state: over forward nodes, marks; changed.
        nodes: forward nodes to decide on, rising.
        weights: over ``nodes``, running sums of how often each is chosen.
        third: over forward nodes, 1 where the mark ``THIRD`` may be set.
        group_ptr: groups + 1; alike nodes of group ``g`` are ``group_node[group_ptr[g]:group_ptr[g
            + 1]]``.
        group_of: over forward nodes, the group of each.
        group_node: forward nodes by group.
        costly_ptr: forward nodes + 1; to keep so that ``v`` is not recomputed:
            ``costly_node[costly_ptr[v]:costly_ptr[v + 1]]``.
        costly_node: forward nodes.
        costly_chance: how often costly operators are kept, 0 to 1.
        copy_chance: how often a part of the network takes the marks of one like it, 0 to 1.
        others: plans x forward nodes, marks of other good plans; may have no rows.
        undo_node: room for the nodes that are changed; filled.
        undo_mark: room for the marks that they had; filled.

    Returns:
        How many changes are in ``undo_node`` and ``undo_mark``; to undo them, the last comes first.
    """
    count = 0
    n = nodes.shape[0]
    if others.shape[0] and unit(rng) < _CROSSED:
        return cross(rng, state, nodes, others, undo_node, undo_mark)
    if unit(rng) < costly_chance:
        # some alike operators are not recomputed: what has to be kept for that is kept
        v = nodes[_place(rng, weights)]
        group = group_of[v]
        begin, end = group_ptr[group], group_ptr[group + 1]
        stride = 1 + below(rng, 3)
        most = 1 + below(rng, 6)
        i = begin + below(rng, end - begin)
        while i < end and most > 0:
            w = group_node[i]
            for k in range(costly_ptr[w], costly_ptr[w + 1]):
                count = _set(state, costly_node[k], KEPT, undo_node, undo_mark, count)
            i += stride
            most -= 1
        return count
    if unit(rng) < copy_chance:
        return _copy_part(
            rng, state, nodes, third, group_ptr, group_of, group_node, undo_node, undo_mark
        )
    kind = unit(rng)
    if kind < 0.45:
        v = nodes[_place(rng, weights)]
        undo_node[0], undo_mark[0] = v, state[v]
        shift = 1 + below(rng, 2) if third[v] else 1
        choices = 3 if third[v] else 2
        state[v] = (state[v] + shift) % choices
        return 1
    if kind < 0.8:
        # move a kept node to a neighbour
        at = _place(rng, weights)
        found = -1
        for k in range(n):
            i = (at + k) % n
            if state[nodes[i]] != AGAIN:
                found = i
                break
        if found < 0:
            return 0
        step = 1 + below(rng, 4)
        other = found + step if below(rng, 2) else found - step
        other = min(n - 1, max(0, other))
        v, w = nodes[found], nodes[other]
        undo_node[0], undo_mark[0] = v, state[v]
        undo_node[1], undo_mark[1] = w, state[w]
        kept = state[v]
        state[v] = AGAIN
        if kept == THIRD and not third[w]:
            kept = KEPT
        state[w] = kept
        return 2
    if kind < 0.9:
        # a stretch
        at = _place(rng, weights)
        length = 2 + below(rng, 7)
        pick = below(rng, 3)
        for i in range(at, min(n, at + length)):
            v = nodes[i]
            mark = pick
            if mark == THIRD and not third[v]:
                mark = AGAIN
            count = _set(state, v, mark, undo_node, undo_mark, count)
        return count
    # alike nodes (the same operator and sizes), some neighbours of them in their order
    v = nodes[_place(rng, weights)]
    group = group_of[v]
    begin, end = group_ptr[group], group_ptr[group + 1]
    stride = 1 + below(rng, 4)
    most = 1 + below(rng, 16)
    pick = below(rng, 3)
    i = begin + below(rng, end - begin)
    if below(rng, 4) == 0:
        i = begin + below(rng, min(stride, end - begin))
        most = end - begin
    while i < end and most > 0:
        w = group_node[i]
        mark = pick
        if mark == THIRD and not third[w]:
            mark = KEPT
        count = _set(state, w, mark, undo_node, undo_mark, count)
        i += stride
        most -= 1
    return count
