"""Which nodes of a graph play the same part: networks repeat themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import Ints, TrainingGraph


def find_roles(graph: TrainingGraph) -> tuple[Ints, Ints, Ints]:
    """Forward nodes by role: group starts, each node's group, and the members in order.

    A role is an operator, the operators that it reads from and that read it, and the resolution
    of what it makes: the shape but for batch and channels, or the whole shape of a matrix.

    Args:
        graph: the training graph.

    Returns:
        Starts of the groups (groups + 1); over forward nodes the group of each; forward nodes by
        group: those of group ``g`` are the third's ``[starts[g]:starts[g + 1]]``.
    """
    readers: list[set[str]] = [set() for _ in range(graph.n_forward)]
    sources: list[list[str]] = [[] for _ in range(graph.n_forward)]
    for v in range(graph.n_forward):
        for i in range(graph.in_ptr[v], graph.in_ptr[v + 1]):
            u = int(graph.in_node[i])
            readers[u].add(graph.op(v))
            if not graph.variable[u]:
                sources[v].append(graph.op(u))
    number: dict[Any, int] = {}
    of = np.zeros(graph.n_forward, np.int64)
    for v in range(graph.n_forward):
        shape = graph.shape(int(graph.first[v]))
        resolution = shape[2:] if len(shape) > 2 else shape
        key = (graph.op(v), resolution, tuple(dict.fromkeys(sources[v])), frozenset(readers[v]))
        of[v] = number.setdefault(key, len(number))
    members = np.argsort(of, kind="stable").astype(np.int64)
    starts = np.searchsorted(of[members], np.arange(len(number) + 1)).astype(np.int64)
    return starts, of, members


_ADDS = frozenset({"elemwise_add", "_plus", "_Plus", "broadcast_add"})
# Operators count as costly from this many times the mean on.
_COSTLY = 0.5


def kept_instead_of_recomputing(
    graph: TrainingGraph, seconds: NDArray[np.float64]
) -> tuple[Ints, Ints]:
    """For each forward node what has to be kept so that it is not recomputed.

    An operator whose result is only added to others goes with the sum and with what else is added:
    the sum alone is then kept.

    Args:
        graph: the training graph.
        seconds: over forward nodes, what each costs.

    Returns:
        Starts (forward nodes + 1) and nodes: lists, empty for operators that cost little.
    """
    costly = seconds > _COSTLY * max(1e-30, float(seconds.mean()))
    readers: list[list[int]] = [[] for _ in range(graph.n_forward)]
    for v in range(graph.n_forward):
        for u in {int(u) for u in graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]}:
            readers[u].append(v)
    lists: list[list[int]] = []
    for v in range(graph.n_forward):
        found: list[int] = []
        if costly[v] and graph.can_recompute[v]:
            found = [v]
            if len(readers[v]) == 1 and graph.op(readers[v][0]) in _ADDS:
                total = readers[v][0]
                others = graph.in_node[graph.in_ptr[total] : graph.in_ptr[total + 1]]
                found += [total, *(int(u) for u in others if costly[u] and u != v)]
        lists.append([u for u in found if graph.can_recompute[u]])
    starts = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return starts, np.array([u for x in lists for u in x], np.int64)
