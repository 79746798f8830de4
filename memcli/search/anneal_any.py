"""Simulated annealing for any engine: each plan that is tried is evaluated by the search space.

The changes tried and the energy are those of the compiled walks; reserved blocks are left alone.
See :mod:`memcli.search.annealing`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import Flags, Ints
from memcli.search import annealing

if TYPE_CHECKING:
    from memcli.search.space import Floats, Reserving, SearchSpace


def anneal(
    space: SearchSpace,
    portable: bool,
    state: Flags,
    best: Flags,
    nodes: Ints,
    weights: Floats,
    third: Flags,
    group_ptr: Ints,
    group_of: Ints,
    group_node: Ints,
    costly_ptr: Ints,
    costly_node: Ints,
    costly_chance: float,
    copy_chance: float,
    others: NDArray[np.uint8],
    params: Floats,
    reserving: Reserving,
    rng: NDArray[np.uint64],
    steps: int,
    first_temperature: float,
    last_temperature: float,
    done: int,
    total_steps: int,
    lowest: float,
) -> float:
    """One part of a walk over plans of ``space``, each evaluated by the space itself.

    The arguments after the first two, and the result, are those of
    :class:`memcli.search.space.Walk`.
    """
    undo_node = np.zeros(max(64, len(state)), np.int64)
    undo_mark = np.zeros(max(64, len(state)), np.uint8)

    def evaluated() -> tuple[Flags, float, float, float]:
        flags = space.as_run(state, portable=portable)
        cost = space.evaluate(flags, (reserving[0],), reserving[1])
        return flags, float(cost.pool_bytes), cost.recompute_flops, cost.recompute_seconds

    flags, *now = evaluated()
    energy = annealing.energy_of(params, *now, 1.0)
    if energy < lowest:
        lowest = energy
        best[:] = flags
    ratio = last_temperature / first_temperature
    for step in range(steps):
        part = (done + step) / total_steps
        count = annealing.propose(
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
        flags, *new = evaluated()
        hard = annealing.hardness(part)
        rise = annealing.energy_of(params, *new, hard) - annealing.energy_of(params, *now, hard)
        temperature = first_temperature * ratio**part
        if rise <= 0 or annealing.unit(rng) < math.exp(-rise / temperature):
            now = new
            energy = annealing.energy_of(params, *now, 1.0)
            if energy < lowest:
                lowest = energy
                best[:] = flags
        else:
            # the last first: a node may have been changed twice
            for k in range(count - 1, -1, -1):
                state[undo_node[k]] = undo_mark[k]
    return float(lowest)
