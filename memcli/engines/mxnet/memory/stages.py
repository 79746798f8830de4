"""A plan stage by stage: what each keeps, how far memory has grown by its end, what is recomputed.

A stage is the operators between two kept cuts. In the forward pass stages run in order, in the
backward pass in reverse; MXNet never gives pool blocks back during a step, so what is allocated
only grows: to the end of a stage's forward, and further to the end of its backward.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from memcli.engines.mxnet.memory.model import MXNetModel, Timeline
from memcli.graph.stages import default_cuts, stage_of_nodes
from memcli.graph.training import Flags, Ints, Plan, TrainingGraph
from memcli.marks import AGAIN, KEPT
from memcli.results.stage import Stage


def kept_entries(graph: TrainingGraph, recompute: Flags) -> Ints:
    """Over entries: 1 for a tensor of the forward pass that lives until its backward."""
    flags = np.zeros(graph.n_entries, np.int64)
    marked = recompute != KEPT
    hidden = recompute == AGAIN
    for v in range(graph.n_forward, graph.n_nodes):
        owner = int(graph.owner[v])
        for i in range(graph.in_ptr[v], graph.in_ptr[v + 1]):
            source = int(graph.in_node[i])
            if source >= graph.n_forward or graph.variable[source] or graph.in_ignored[i]:
                continue
            if not (owner >= 0 and marked[owner] and (hidden[source] or owner == source)):
                flags[graph.in_entry[i]] = 1
    # what recomputation starts from
    for f in np.flatnonzero(marked):
        for i in range(graph.in_ptr[f], graph.in_ptr[f + 1]):
            source = int(graph.in_node[i])
            if not graph.variable[source] and not hidden[source]:
                flags[graph.in_entry[i]] = 1
    return flags


def stages(
    model: MXNetModel,
    plan: Plan,
    cuts: list[list[int]] | None = None,
    barriers: Collection[int] = (),
) -> tuple[list[Stage], Timeline, Ints]:
    """The plan stage by stage.

    Args:
        model: of the joint graph.
        plan: the plan.
        cuts: forward nodes of each cut; None: the plan's, or where it has none a few of the
            graph's.
        barriers: nodes that are save barriers of a plan: they belong to what they keep, and are
            neither named nor counted.

    Returns:
        The stages, how the pool fills, and over nodes the number of each one's stage.
    """
    graph = model.graph
    cuts = cuts if cuts is not None else (plan.cuts or default_cuts(graph))
    stage = stage_of_nodes(graph, cuts)
    timeline = model.timeline(plan.recompute, plan.match_range)
    n, n_forward = graph.n_nodes, graph.n_forward
    flags = plan.recompute * model.markable
    kept = kept_entries(graph, flags) * graph.entry_bytes
    by_node = np.zeros(n, np.int64)
    np.add.at(by_node, graph.entry_node, kept)
    forward_end: dict[int, int] = {}
    end: dict[int, int] = {}
    recomputed: dict[int, float] = {}
    alive: tuple[dict[int, int], dict[int, int]] = ({}, {})  # forward, backward
    live = model.live_bytes(plan.recompute, plan.match_range)
    steps = zip(
        timeline.order.tolist(), timeline.touched_bytes.tolist(), live.tolist(), strict=True
    )
    for node, touched, size in steps:
        base = node - n if node >= n else node
        if graph.variable[base]:
            continue
        s = int(stage[base])
        end[s] = max(end.get(s, 0), touched)
        most = alive[0 if node < n_forward else 1]
        most[s] = max(most.get(s, 0), size)
        if node < n_forward:
            forward_end[s] = max(forward_end.get(s, 0), touched)
        elif node >= n:
            recomputed[s] = recomputed.get(s, 0.0) + float(graph.flops[base])
    result: list[Stage] = []
    for s in sorted(forward_end):
        nodes = [
            v
            for v in np.flatnonzero(stage[:n_forward] == s)
            if not graph.variable[v] and not graph.reserving[v]
        ]
        named = [v for v in nodes if v not in barriers] or nodes
        result.append(
            Stage(
                index=len(result),
                first=graph.names[named[0]],
                last=graph.names[named[-1]],
                operators=len(named),
                kept_bytes=int(by_node[nodes].sum()),
                forward_bytes=forward_end[s],
                peak_bytes=end[s],
                recompute_flops=recomputed.get(s, 0.0),
                live_forward_bytes=alive[0].get(s, 0),
                live_backward_bytes=alive[1].get(s, 0),
            )
        )
    # numbers without holes, as in the list
    renumber = {s: k for k, s in enumerate(sorted(forward_end))}
    stage = np.array([renumber.get(int(s), 0) for s in stage], np.int64)
    return result, timeline, stage
