"""All plans of a very small graph, one after the other: the exact answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcli.compiled import compiled
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.mxnet.memory.pool_kernel import ANY, NOTHING, fill, trace
from memcli.engines.mxnet.memory.pool_layout import layout_of, scratch
from memcli.graph.cost import DEFAULT_MATCH_RANGE
from memcli.graph.training import Flags, TrainingGraph

_MOST_STEPS = 40_000_000  # plans times nodes of the joint graph: about a second


@dataclass
class Least:
    """The least of all plans, bytes, and a plan of each kind that has it."""

    live_peak_bytes: int
    live_flags: Flags
    pool_bytes: int  # at the default match range
    pool_flags: Flags
    needed_bytes: int  # by any pool: see ``fill`` of :mod:`memcli.engines.mxnet.memory.pool_kernel`
    needed_flags: Flags


@compiled
def _enumerate(layout, s, nodes, choices, match_range, live_flags, pool_flags, needed_flags):
    """Count through all marks of ``nodes``; ``choices[k]`` marks are open to ``nodes[k]``."""
    flags = np.zeros(layout.n_forward, np.uint8)
    least_live = np.int64(-1)
    least_pool = np.int64(-1)
    least_needed = np.int64(-1)
    while True:
        steps = trace(layout, s, flags)[0]
        _, pool, live, needed = fill(layout, s, flags, steps, match_range, ANY, True, NOTHING)
        needed = max(live, needed)
        if least_live < 0 or live < least_live:
            least_live = live
            live_flags[:] = flags
        if least_pool < 0 or pool < least_pool:
            least_pool = pool
            pool_flags[:] = flags
        if least_needed < 0 or needed < least_needed:
            least_needed = needed
            needed_flags[:] = flags
        k = 0
        while k < nodes.shape[0]:
            flags[nodes[k]] += 1
            if flags[nodes[k]] < choices[k]:
                break
            flags[nodes[k]] = 0
            k += 1
        if k == nodes.shape[0]:
            return least_live, least_pool, least_needed


def all_plans(graph: TrainingGraph, model: MXNetModel) -> Least | None:
    """The least that any plan takes, by trying all of them.

    Args:
        graph: the joint graph.
        model: of the same graph.

    Returns:
        The least live peak, pool, and need of any pool, bytes; None where there are too many plans.
    """
    nodes = np.flatnonzero(graph.can_recompute & model.markable)
    choices = np.where(graph.can_barrier[nodes] == 1, 3, 2)
    if float(np.log(choices).sum() + np.log(max(1, graph.n_nodes))) > np.log(_MOST_STEPS):
        return None
    layout = layout_of(graph)
    flags = model.none(), model.none(), model.none()
    least = _enumerate(layout, scratch(layout), nodes, choices, DEFAULT_MATCH_RANGE, *flags)
    live, pool, needed = map(int, least)
    return Least(live, flags[0], pool, flags[1], needed, flags[2])
