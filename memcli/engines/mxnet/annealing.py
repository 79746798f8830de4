"""Simulated annealing over plans on MXNet's emulated pool, compiled.

The pool is not the live peak: fragmentation decides, and no formula for it is known, so it is tried
out at each step. See :mod:`memcli.search.annealing`.
"""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled, lower_bound
from memcli.engines.mxnet.memory.pool import drop_unread
from memcli.engines.mxnet.memory.pool_kernel import ANY, fill, trace
from memcli.search.annealing import (
    LEAST,
    below,
    ceiling_of,
    energy_of,
    hardness,
    propose,
    unit,
)

# How often another set of reserved blocks is tried, where the graph may reserve some.
_RESERVED = 0.2


@compiled
def _reserve(rng, reserved, sizes):
    """Reserve another size of block, or none, in one of the places; which, and what was there."""
    at = below(rng, reserved.shape[0])
    old = reserved[at]
    kind = below(rng, 4)
    if old == 0 or kind == 0:
        reserved[at] = sizes[below(rng, sizes.shape[0])]
    elif kind == 1:
        reserved[at] = 0
    else:
        # the next size
        place = lower_bound(sizes, old, sizes.shape[0]) + (1 if kind == 2 else -1)
        reserved[at] = sizes[min(sizes.shape[0] - 1, max(0, place))]
    return at, old


@compiled(nogil=True)
def anneal(
    layout,
    scratch,
    drop,
    state,
    best,
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
    params,
    engine,
    rng,
    steps,
    first_temperature,
    last_temperature,
    done,
    total_steps,
    lowest,
):
    """One part of a walk over plans, on MXNet's pool; compiled.

    Arguments not told here, and the result, are those of :class:`memcli.search.space.Walk`.
    ``layout`` and ``scratch``: the graph arranged for many evaluations, and its working arrays.
    ``drop``: the rules of :func:`memcli.engines.mxnet.memory.pool.drop_unread`. What any pool needs
    for the plan counts as well, less and less: where that is little, further changes can shrink the
    pool.
    """
    match_range, reserved, best_reserved, block_sizes = engine
    undo_node = np.zeros(max(64, state.shape[0]), np.int64)
    undo_mark = np.zeros(max(64, state.shape[0]), np.uint8)
    flags = state.copy()
    drop_unread(flags, drop)
    length, flops, work = trace(layout, scratch, flags)
    _, pool, _, least = fill(layout, scratch, flags, length, match_range, ANY, True, reserved)
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
        if reserved.shape[0] and unit(rng) < _RESERVED:
            place, old = _reserve(rng, reserved, block_sizes)
            if reserved[place] == old:
                continue
        else:
            count = propose(
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
            )
            if count == 0:
                continue
        flags[:] = state
        drop_unread(flags, drop)
        length, flops, work = trace(layout, scratch, flags)
        hard = hardness(part)
        # how high the energy may be; drawn first, so that what is worse need not be worked out
        allowed = energy_of(params, now[0], now[1], now[2], hard) + weight * now[3]
        allowed -= temperature * np.log(unit(rng))
        left = allowed - energy_of(params, 0.0, flops, work, hard)
        accepted = left >= 0.0
        if accepted:
            ceiling = np.int64(min(ceiling_of(params, left, hard), 9e18))
            _, pool, _, least = fill(
                layout, scratch, flags, length, match_range, ceiling, weight > 0.0, reserved
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
