"""Simulated annealing over plans of a PyTorch step; see :mod:`memcli.search.annealing`."""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled
from memcli.engines.torch.memory.kernels import _RUNS, walk
from memcli.marks import AUXILIARY, RESULTS
from memcli.search.annealing import below, energy_of, hardness, propose, unit

_AUXILIARY_CHANCE = 0.08


@compiled
def _work(st, cost):
    total = 0.0
    for v in range(cost.shape[0]):
        total += st.steps[v, _RUNS] * cost[v]
    return total


@compiled
def _costs(program, st, marks, limit, nothing, flops, seconds):
    """Peak, FLOPs and time of what is recomputed; all infinite for what is no good."""
    peak, _, _ = walk(program, st, marks, limit, nothing)
    if peak < 0:
        return np.inf, np.inf, np.inf
    return float(peak), _work(st, flops), _work(st, seconds)


@compiled
def _energy(params, costs, hard):
    if costs[0] == np.inf:
        return np.inf
    return energy_of(params, costs[0], costs[1], costs[2], hard)


@compiled
def _combine(state, low, high, whole):
    """What becomes of results and of auxiliaries as one mark; of ``whole`` steps both or none."""
    state[:] = low | high
    for v in whole:
        state[v] = low[v] | AUXILIARY if low[v] != 0 else 0


@compiled(nogil=True)
def anneal(
    program,
    st,
    limit,
    flops,
    seconds,
    with_auxiliaries,
    whole,
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
    _,
    rng,
    steps,
    first_temperature,
    last_temperature,
    done,
    total_steps,
    lowest,
):
    """One part of a walk: see :class:`memcli.search.space.Walk`.

    ``st``: the walk's working arrays; ``limit``: recomputations past which a plan is no good;
    ``with_auxiliaries``: steps that save something inside themselves, whose ``AUXILIARY`` bit is
    a choice of its own; ``whole``: those whose bit goes with the rest of the mark.
    """
    n = state.shape[0]
    undo_node = np.zeros(max(64, n), np.int64)
    undo_mark = np.zeros(max(64, n), np.uint8)
    nothing = np.zeros(0, np.int64)
    low = (state & RESULTS).astype(np.uint8)
    high = (state & AUXILIARY).astype(np.uint8)
    others = (others & RESULTS).astype(np.uint8)
    now = _costs(program, st, state, limit, nothing, flops, seconds)
    energy = _energy(params, now, 1.0)
    if energy < lowest:
        lowest = energy
        best[:] = state
    ratio = last_temperature / first_temperature
    for step in range(steps):
        part = (done + step) / total_steps
        temperature = first_temperature * ratio**part
        turned = -1
        count = 0
        if with_auxiliaries.shape[0] > 0 and unit(rng) < _AUXILIARY_CHANCE:
            turned = with_auxiliaries[below(rng, with_auxiliaries.shape[0])]
            high[turned] ^= AUXILIARY
        else:
            count = propose(
                rng,
                low,
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
        _combine(state, low, high, whole)
        new = _costs(program, st, state, limit, nothing, flops, seconds)
        hard = hardness(part)
        rise = _energy(params, new, hard) - _energy(params, now, hard)
        if rise <= 0 or unit(rng) < np.exp(-rise / temperature):
            now = new
            energy = _energy(params, now, 1.0)
            if energy < lowest:
                lowest = energy
                best[:] = state
        elif turned >= 0:
            high[turned] ^= AUXILIARY
        else:
            for k in range(count - 1, -1, -1):
                low[undo_node[k]] = undo_mark[k]
    _combine(state, low, high, whole)
    return lowest
