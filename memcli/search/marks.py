"""Marks that several strategies make alike."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from memcli.graph.training import Flags
from memcli.marks import AGAIN, BARRIER, KEPT
from memcli.search.base import Search


def keep_marks(search: Search, barriers: bool) -> Flags:
    """How to mark each node where its output is to be kept.

    Args:
        search: the search on a graph.
        barriers: behind a save barrier where keeping would hold the node's inputs as well.

    Returns:
        Over forward nodes: ``KEPT`` or ``BARRIER``.
    """
    marks = np.full(search.graph.n_forward, KEPT, np.uint8)
    if barriers:
        marks[(search.graph.can_barrier == 1) & (search.space.pinned > 0)] = BARRIER
    return marks


def recompute_between(search: Search, cuts: Iterable[list[int]], barriers: bool) -> Flags:
    """The plan that recomputes everything that can be, except the nodes of ``cuts``.

    Args:
        search: the search on a graph.
        cuts: forward nodes to keep, a list for each cut.
        barriers: as for :func:`keep_marks`.
    """
    graph = search.graph
    keep = keep_marks(search, barriers)
    flags = np.where(graph.can_recompute, AGAIN, KEPT).astype(np.uint8)
    for cut in cuts:
        flags[cut] = keep[cut]
    return flags
