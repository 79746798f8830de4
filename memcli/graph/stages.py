"""Which stage each node of a graph belongs to.

A stage is the operators between two kept cuts.
"""

from __future__ import annotations

import numpy as np

from memcli.graph.training import Ints, TrainingGraph


def stage_of_nodes(graph: TrainingGraph, cuts: list[list[int]]) -> Ints:
    """Stage number of every node of the graph, backward nodes by the node they belong to.

    A stage ends with the last node of its cut. Sums of gradients belong to the stage of what
    they sum up.

    Args:
        graph: the training graph.
        cuts: forward nodes of each cut.

    Returns:
        Over all nodes: the number of the stage, from 0.
    """
    ends = sorted({max(cut) for cut in cuts if cut})
    return with_gradients(graph, np.searchsorted(ends, np.arange(graph.n_forward), side="left"))


def with_gradients(graph: TrainingGraph, forward: Ints) -> Ints:
    """Stage numbers of every node from those of forward nodes; see :func:`stage_of_nodes`.

    Args:
        graph: the training graph.
        forward: over forward nodes, the stage.
    """
    stage = np.zeros(graph.n_nodes, np.int64)
    stage[: graph.n_forward] = forward
    previous = int(stage[graph.n_forward - 1]) if graph.n_forward else 0
    for v in range(graph.n_forward, graph.n_nodes):
        owner = int(graph.owner[v])
        if owner >= 0:
            previous = int(stage[owner])
        stage[v] = previous
    return stage


def default_cuts(graph: TrainingGraph, wanted: int = 8) -> list[list[int]]:
    """Cuts that divide a graph without a plan into parts of about equal bytes.

    Args:
        graph: the training graph.
        wanted: about how many parts.

    Returns:
        Forward nodes of each cut.
    """
    sizes = graph.operator_bytes()
    total = np.cumsum(sizes)
    if not len(total) or not total[-1]:
        return []
    marks = [int(np.searchsorted(total, total[-1] * k / wanted)) for k in range(1, wanted)]
    return [[m] for m in sorted(set(marks)) if not graph.variable[m] and m < graph.n_forward - 1]
