"""Simulated annealing over plans on the exact pool, compiled.

A state is a mark for each forward node. Each step changes a few marks, evaluates the changed
plan on MXNet's emulated pool, and accepts it by the Metropolis rule (Kirkpatrick, Gelatt, Vecchi,
"Optimization by Simulated Annealing", Science 220, 1983). The pool is not the live peak:
fragmentation decides, and no formula for it is known, so it is tried out.
"""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled
from memcli.memory.fast_pool import ANY, fill, trace
from memcli.memory.pool import AGAIN, BARRIER, KEPT, drop_unread, lower_bound

# Places of the parameters of the energy; of penalties what they end at, and what they begin at.
MEMORY, WORK, BUDGET, OVER, LIMIT, WASTED, LEAST, OVER_FIRST, WASTED_FIRST = range(9)
N_PARAMETERS = 9
# Up to this part of a walk penalties are what they begin at.
_MILD = 0.7
_MOST_COPIED = 24  # nodes of a part of the network that does as another one
# How often a stretch of nodes does as it does in another good plan, where there are some, and how
# long it is: powers of the number of nodes, from the first to the second.
_CROSSED = 0.15
# How often another set of reserved blocks is tried, where the graph may reserve some.
_RESERVED = 0.2
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
def _below(rng, limit):
    return np.int64((_next(rng) >> np.uint64(33)) % np.uint64(limit))


@compiled
def _unit(rng):
    return (_next(rng) >> np.uint64(11)) / 9007199254740992.0


@compiled
def hardness(part):
    """How far penalties have grown by a part of a walk, 0 to 1."""
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
def _ceiling(p, energy, hard):
    """The most bytes of pool that are no more than an energy by themselves."""
    over, _ = _penalties(p, hard)
    if not over or p[MEMORY] * p[BUDGET] >= energy:
        return energy / p[MEMORY]
    return (energy + over * p[BUDGET]) / (p[MEMORY] + over)


@compiled
def energy_of(p, pool, flops, work, hard):
    """What is minimized: memory and work, with penalties for what breaks a limit.

    ``hard``: 1 for the penalties that plans are judged by, less for those of :func:`hardness`. A
    plan a little over a limit is then worth what it saves, as in Lagrange's relaxation: the way
    from a good plan to a better one often leads through such.
    """
    over, wasted = _penalties(p, hard)
    return (
        p[MEMORY] * pool + p[WORK] * work
        + over * max(0.0, pool - p[BUDGET]) + wasted * max(0.0, flops - p[LIMIT])
    )  # fmt: skip


@compiled
def _place(rng, weights):
    """A place in the list of nodes: half of the time any, else by the weight of its tensors."""
    n = weights.shape[0]
    if _below(rng, 2):
        return _below(rng, n)
    wanted = _unit(rng) * weights[n - 1]
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
def _copy_part(
    rng, state, nodes, can_barrier, group_ptr, group_of, group_node, undo_node, undo_mark
):  # fmt: skip
    """A stretch of nodes takes the marks of a stretch like it, or the two exchange theirs.

    The stretches lie around two alike nodes, which are neighbours half of the time; where what
    stands at the same place of both is not alike, it is left as it is.
    """
    n = nodes.shape[0]
    at = _below(rng, n)
    begin, end = group_ptr[group_of[nodes[at]]], group_ptr[group_of[nodes[at]] + 1]
    if end - begin < 2:
        return 0
    if _below(rng, 2):
        number = begin + _below(rng, end - begin)
    else:
        own = begin + lower_bound(group_node[begin:end], nodes[at], end - begin)
        far = 1 + _below(rng, 3)
        number = min(end - 1, max(begin, own + (far if _below(rng, 2) else -far)))
    other = lower_bound(nodes, group_node[number], n)
    if other in (n, at) or nodes[other] != group_node[number]:
        return 0
    length = 1 + _below(rng, _MOST_COPIED)
    exchange = _below(rng, 2)
    if exchange:
        length = min(length, abs(other - at))
    before = _below(rng, length)
    count = 0
    for shift in range(-before, length - before):
        if min(at, other) + shift < 0 or max(at, other) + shift >= n:
            continue
        v, w = nodes[at + shift], nodes[other + shift]
        if group_of[v] != group_of[w]:
            continue
        old, new = state[v], state[w]
        if new != BARRIER or can_barrier[v]:
            count = _set(state, v, new, undo_node, undo_mark, count)
        if exchange and (old != BARRIER or can_barrier[w]):
            count = _set(state, w, old, undo_node, undo_mark, count)
    return count


@compiled
def _cross(rng, state, nodes, others, undo_node, undo_mark):
    """A stretch of nodes takes the marks that it has in another good plan."""
    n = nodes.shape[0]
    other = others[_below(rng, others.shape[0])]
    length = np.int64(n ** (_SHORT + (_LONG - _SHORT) * _unit(rng)))
    at = _below(rng, n)
    count = 0
    for i in range(at, min(n, at + length)):
        count = _set(state, nodes[i], other[nodes[i]], undo_node, undo_mark, count)
    return count


@compiled
def _propose(
    rng, state, nodes, weights, can_barrier, group_ptr, group_of, group_node, spare_ptr, spare_node,
    spare_chance, copy_chance, others, undo_node, undo_mark,
):  # fmt: skip
    """Change ``state`` a little; the number of changes, which ``undo_*`` remember."""
    count = 0
    n = nodes.shape[0]
    if others.shape[0] and _unit(rng) < _CROSSED:
        return _cross(rng, state, nodes, others, undo_node, undo_mark)
    if _unit(rng) < spare_chance:
        # some alike operators need not run again: what that takes is kept
        v = nodes[_place(rng, weights)]
        group = group_of[v]
        begin, end = group_ptr[group], group_ptr[group + 1]
        stride = 1 + _below(rng, 3)
        most = 1 + _below(rng, 6)
        i = begin + _below(rng, end - begin)
        while i < end and most > 0:
            w = group_node[i]
            for k in range(spare_ptr[w], spare_ptr[w + 1]):
                count = _set(state, spare_node[k], KEPT, undo_node, undo_mark, count)
            i += stride
            most -= 1
        return count
    if _unit(rng) < copy_chance:
        return _copy_part(
            rng, state, nodes, can_barrier, group_ptr, group_of, group_node, undo_node, undo_mark
        )
    kind = _unit(rng)
    if kind < 0.45:
        v = nodes[_place(rng, weights)]
        undo_node[0], undo_mark[0] = v, state[v]
        shift = 1 + _below(rng, 2) if can_barrier[v] else 1
        choices = 3 if can_barrier[v] else 2
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
        step = 1 + _below(rng, 4)
        other = found + step if _below(rng, 2) else found - step
        other = min(n - 1, max(0, other))
        v, w = nodes[found], nodes[other]
        undo_node[0], undo_mark[0] = v, state[v]
        undo_node[1], undo_mark[1] = w, state[w]
        kept = state[v]
        state[v] = AGAIN
        if kept == BARRIER and not can_barrier[w]:
            kept = KEPT
        state[w] = kept
        return 2
    if kind < 0.9:
        # a stretch
        at = _place(rng, weights)
        length = 2 + _below(rng, 7)
        pick = _below(rng, 3)
        for i in range(at, min(n, at + length)):
            v = nodes[i]
            mark = pick
            if mark == BARRIER and not can_barrier[v]:
                mark = AGAIN
            count = _set(state, v, mark, undo_node, undo_mark, count)
        return count
    # alike nodes (the same operator and sizes), some neighbours of them in their order
    v = nodes[_place(rng, weights)]
    group = group_of[v]
    begin, end = group_ptr[group], group_ptr[group + 1]
    stride = 1 + _below(rng, 4)
    most = 1 + _below(rng, 16)
    pick = _below(rng, 3)
    i = begin + _below(rng, end - begin)
    if _below(rng, 4) == 0:
        i = begin + _below(rng, min(stride, end - begin))
        most = end - begin
    while i < end and most > 0:
        w = group_node[i]
        mark = pick
        if mark == BARRIER and not can_barrier[w]:
            mark = KEPT
        count = _set(state, w, mark, undo_node, undo_mark, count)
        i += stride
        most -= 1
    return count


@compiled
def _reserve(rng, reserved, sizes):
    """Reserve another size of block, or none, in one of the places; which, and what was there."""
    at = _below(rng, reserved.shape[0])
    old = reserved[at]
    kind = _below(rng, 4)
    if old == 0 or kind == 0:
        reserved[at] = sizes[_below(rng, sizes.shape[0])]
    elif kind == 1:
        reserved[at] = 0
    else:
        # the next size
        place = lower_bound(sizes, old, sizes.shape[0]) + (1 if kind == 2 else -1)
        reserved[at] = sizes[min(sizes.shape[0] - 1, max(0, place))]
    return at, old


@compiled(nogil=True)
def anneal(
    lay, scratch, drop, state, best, nodes, weights, can_barrier, group_ptr, group_of, group_node,
    spare_ptr, spare_node, spare_chance, copy_chance, others, params, engine, rng, steps,
    first_temperature, last_temperature, done, total_steps, lowest,
):  # fmt: skip
    """Run ``steps`` of ``total_steps``, of which ``done`` are done.

    ``state`` is the current plan and ``best`` the best one, both changed; ``lowest`` is the
    energy of the best, and the new one is returned. ``others`` (plans x forward nodes) are marks
    of good plans that stretches are taken from, as in genetic algorithms. ``drop`` are the
    rules of :func:`memcli.memory.pool.drop_unread`. What any pool needs for the plan counts as
    well, less and less: where that is little, further changes can shrink the pool.

    ``engine``: the match range; places for elements of blocks that the current plan reserves (0:
    none), and those of the best plan, both changed; the sizes that such a block may have, sorted.
    """
    match_range, reserved, best_reserved, block_sizes = engine
    undo_node = np.zeros(max(64, state.shape[0]), np.int64)
    undo_mark = np.zeros(max(64, state.shape[0]), np.uint8)
    flags = state.copy()
    drop_unread(flags, drop)
    length, flops, work = trace(lay, scratch, flags)
    _, pool, _, least = fill(lay, scratch, flags, length, match_range, ANY, True, reserved)
    energy = energy_of(params, float(pool), flops, work, 1.0)
    if energy < lowest:
        lowest = energy
        best[:] = flags
        best_reserved[:] = reserved
    now = (float(pool), flops, work, float(least))
    ratio = last_temperature / first_temperature
    for step in range(steps):
        part = (done + step) / total_steps
        temperature = first_temperature * ratio**part
        weight = params[LEAST] * max(0.0, 1.0 - 1.5 * part)
        count = 0
        place = -1
        old = 0
        if reserved.shape[0] and _unit(rng) < _RESERVED:
            place, old = _reserve(rng, reserved, block_sizes)
            if reserved[place] == old:
                continue
        else:
            count = _propose(
                rng, state, nodes, weights, can_barrier, group_ptr, group_of, group_node,
                spare_ptr, spare_node, spare_chance, copy_chance, others, undo_node, undo_mark,
            )  # fmt: skip
            if count == 0:
                continue
        flags[:] = state
        drop_unread(flags, drop)
        length, flops, work = trace(lay, scratch, flags)
        hard = hardness(part)
        # how high the energy may be; drawn first, so that what is worse need not be worked out
        allowed = energy_of(params, now[0], now[1], now[2], hard) + weight * now[3]
        allowed -= temperature * np.log(_unit(rng))
        left = allowed - energy_of(params, 0.0, flops, work, hard)
        accepted = left >= 0.0
        if accepted:
            ceiling = np.int64(min(_ceiling(params, left, hard), 9e18))
            _, pool, _, least = fill(
                lay, scratch, flags, length, match_range, ceiling, weight > 0.0, reserved
            )
            new = energy_of(params, float(pool), flops, work, hard) + weight * least
            accepted = pool <= ceiling and new <= allowed
        if accepted:
            now = (float(pool), flops, work, float(least))
            energy = energy_of(params, now[0], flops, work, 1.0)
            if energy < lowest:
                lowest = energy
                best[:] = flags
                best_reserved[:] = reserved
        else:
            if place >= 0:
                reserved[place] = old
            # the last first: a node may have been changed twice
            for k in range(count - 1, -1, -1):
                state[undo_node[k]] = undo_mark[k]
    return lowest
