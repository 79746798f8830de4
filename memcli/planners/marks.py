"""Marks that several strategies make alike."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from memcli.graph.training import Flags, Ints, TrainingGraph
from memcli.memory.pool import AGAIN, BARRIER, KEPT
from memcli.planners.base import Search
from memcli.planners.cutpoints import pinned_bytes


def operator_bytes(graph: TrainingGraph) -> Ints:
    """Over forward nodes: bytes of all outputs; 0 for variables, which are the caller's."""
    sizes = graph.node_bytes()[: graph.n_forward]
    sizes[graph.variable[: graph.n_forward] == 1] = 0
    return sizes


def keep_marks(search: Search, barriers: bool) -> Flags:
    """Over forward nodes: how to mark a node whose output is to be kept.

    ``barriers``: behind a save barrier where keeping would hold the node's inputs as well.
    """
    marks = np.full(search.graph.n_forward, KEPT, np.uint8)
    if barriers:
        marks[(search.graph.can_barrier == 1) & (pinned_bytes(search.graph) > 0)] = BARRIER
    return marks


def again_between(search: Search, cuts: Iterable[list[int]], barriers: bool) -> Flags:
    """Marks that run everything again that can be, except the nodes of ``cuts``."""
    graph = search.graph
    keep = keep_marks(search, barriers)
    flags = np.where(graph.can_recompute, AGAIN, KEPT).astype(np.uint8)
    for cut in cuts:
        flags[cut] = keep[cut]
    return flags
