"""Which nodes of a graph play the same part: networks repeat themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from memcli.graph.training import Ints, TrainingGraph


def find_roles(graph: TrainingGraph) -> tuple[Ints, Ints, Ints]:
    """Forward nodes by role: group starts, each node's group, and the members in order.

    A role is an operator, the operators that it reads from and that read it, and the resolution
    of what it makes: the shape but for batch and channels, or the whole shape of a matrix.
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
