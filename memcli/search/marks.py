"""Marks that several strategies make alike."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from memcli.graph.training import Flags
from memcli.marks import AGAIN, BARRIER, KEPT
from memcli.search.base import Search


def keep_marks(search: Search, barriers: bool) -> Flags:
    """Over forward nodes: how to mark a node whose output is to be kept.

    ``barriers``: behind a save barrier where keeping would hold the node's inputs as well.
    """
    marks = np.full(search.graph.n_forward, KEPT, np.uint8)
    if barriers:
        marks[(search.graph.can_barrier == 1) & (search.space.pinned > 0)] = BARRIER
    return marks


def again_between(search: Search, cuts: Iterable[list[int]], barriers: bool) -> Flags:
    """Marks that recompute everything that can be, except the nodes of ``cuts``."""
    graph = search.graph
    keep = keep_marks(search, barriers)
    flags = np.where(graph.can_recompute, AGAIN, KEPT).astype(np.uint8)
    for cut in cuts:
        flags[cut] = keep[cut]
    return flags
