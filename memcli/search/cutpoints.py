"""Finds where a graph can be cut: places in the forward order where little is alive.

A cut after node ``i`` keeps every tensor that is made up to ``i`` and read later. Most saved
graphs carry no marks; this finds what a person would mark: residual sums, the concatenations of
a dense block, the states between two steps of an unrolled recurrent network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcli.graph.training import Flags, Ints, TrainingGraph


@dataclass
class CutPoint:
    """A possible cut behind forward node ``after``."""

    after: int
    nodes: list[int]  # forward nodes whose outputs it keeps
    bytes: int  # of the kept tensors
    pinned: int  # bytes of other tensors that the kept nodes' backward reads


def last_forward_use(graph: TrainingGraph) -> Ints:
    """For each forward node the last forward node that reads it; itself where none does.

    Being an output of the graph does not count: outputs stay whatever is planned.
    """
    last = np.arange(graph.n_forward)
    for v in range(graph.n_forward):
        sources = graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]
        last[sources] = np.maximum(last[sources], v)
    return last


def pinned_bytes(graph: TrainingGraph) -> Ints:
    """Bytes of forward tensors that each forward node's gradient reads, its own outputs aside.

    Keeping a node keeps these as well: its backward reads the originals. Nothing where the engine
    lets any tensor go by itself.
    """
    result = np.zeros(graph.n_forward, np.int64)
    if not graph.keeps_inputs:
        return result
    seen: set[tuple[int, int]] = set()
    for v in range(graph.n_forward, graph.n_nodes):
        owner = int(graph.owner[v])
        if owner < 0:
            continue
        for i in range(graph.in_ptr[v], graph.in_ptr[v + 1]):
            source, entry = int(graph.in_node[i]), int(graph.in_entry[i])
            if source >= graph.n_forward or source == owner or graph.variable[source]:
                continue
            if graph.in_ignored[i] or (owner, entry) in seen:
                continue
            seen.add((owner, entry))
            result[owner] += graph.entry_bytes[entry]
    return result


def find_cuts(graph: TrainingGraph) -> list[CutPoint]:
    """All places where fewer bytes are alive than just before and just after.

    Frontiers wider than 64 tensors are no cuts. Sorted by place.
    """
    last = last_forward_use(graph)
    sizes = graph.node_bytes()[: graph.n_forward]
    pinned = pinned_bytes(graph)
    operator = graph.variable[: graph.n_forward] == 0
    nodes = np.flatnonzero(operator)
    alive_bytes = np.zeros(graph.n_forward + 1, np.int64)
    alive_count = np.zeros(graph.n_forward + 1, np.int64)
    for v in nodes:
        if last[v] > v:
            alive_bytes[v] += sizes[v]
            alive_count[v] += 1
            alive_bytes[min(last[v], graph.n_forward)] -= sizes[v]
            alive_count[min(last[v], graph.n_forward)] -= 1
    alive_bytes = np.cumsum(alive_bytes)[: graph.n_forward]
    alive_count = np.cumsum(alive_count)[: graph.n_forward]
    places = [int(v) for v in nodes if 0 < alive_count[v] <= 64]
    found: list[CutPoint] = []
    for k, v in enumerate(places[:-1]):
        before = alive_bytes[places[k - 1]] if k else alive_bytes[v] + 1
        after = alive_bytes[places[k + 1]]
        single = alive_count[v] == 1
        if single or (alive_bytes[v] <= before and alive_bytes[v] <= after):
            found.append(CutPoint(v, [], int(alive_bytes[v]), 0))
    # who is alive at each cut, in one sweep
    alive: dict[int, int] = {}
    by_place = {c.after: c for c in found}
    for v in nodes:
        v = int(v)
        if last[v] > v:
            alive[v] = int(last[v])
        cut = by_place.get(v)
        if cut is None:
            continue
        alive = {u: end for u, end in alive.items() if end > v}
        cut.nodes = sorted(alive)
        cut.pinned = int(sum(pinned[u] for u in cut.nodes))
    return [c for c in found if c.nodes]


def families(cuts: list[CutPoint]) -> list[list[CutPoint]]:
    """Sets of cuts worth searching: all, those that pin nothing, the narrow ones."""
    if not cuts:
        return []
    free = [c for c in cuts if c.pinned == 0]
    cost = np.array([c.bytes + c.pinned for c in cuts])
    result = [cuts, free]
    for part in (25, 50, 75):
        limit = np.percentile(cost, part)
        result.append([c for c, x in zip(cuts, cost, strict=True) if x <= limit])
    single = [c for c in cuts if len(c.nodes) == 1]
    result.append(single)
    result.append([c for c in single if c.pinned == 0])
    # the cheapest of each run of neighbours that is within reach of one another
    result.append(_cheapest_of_runs(cuts))
    unique: list[list[CutPoint]] = []
    for family in result:
        if family and family not in unique:
            unique.append(family)
    return unique


def _cheapest_of_runs(cuts: list[CutPoint]) -> list[CutPoint]:
    chosen: list[CutPoint] = []
    for k, cut in enumerate(cuts):
        near = cuts[max(0, k - 2) : k + 3]
        if cut.bytes + cut.pinned <= min(c.bytes + c.pinned for c in near):
            chosen.append(cut)
    return chosen


def cut_pass(
    graph: TrainingGraph, cuts: list[CutPoint], sizes: Ints, threshold: int
) -> tuple[list[CutPoint], int, int]:
    """Keep the cuts that end stages of more than a threshold: one pass over them in order.

    Args:
        graph: the training graph.
        cuts: in the order of the graph.
        sizes: over forward nodes, bytes of their outputs.
        threshold: bytes that are summed up before a cut is kept.

    Returns:
        The cuts that are kept, bytes that they keep (what they pin included), and bytes of the
        largest stage between them.
    """
    running = np.concatenate([[0], np.cumsum(sizes)])
    start = 0
    kept: list[CutPoint] = []
    save = largest = 0
    for cut in cuts:
        local = int(running[cut.after + 1] - running[start])
        if local > threshold:
            kept.append(cut)
            save += cut.bytes + cut.pinned
            largest = max(largest, local)
            start = cut.after + 1
    largest = max(largest, int(running[graph.n_forward] - running[start]))
    return kept, save, largest


def recompute_all_but(graph: TrainingGraph, cuts: list[list[int]]) -> Flags:
    """The plan that recomputes everything that can be, except the nodes of ``cuts``."""
    flags = graph.can_recompute.copy()
    for cut in cuts:
        flags[cut] = 0
    return flags
