"""Initial plans: what a person would try first, in many sizes.

Each keeps a set of tensors and recomputes everything else: the tensors at cuts of the graph, for
several sets of cuts and many stage sizes, or the tensors whose last reader runs much later than
they are made (residual sums, states, the pieces of a dense block).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from memcli.graph.training import Flags
from memcli.marks import AGAIN, KEPT
from memcli.search.base import Search
from memcli.search.cutpoints import cut_pass, families, last_forward_use

# Stage sizes, as parts of all feature maps.
_PARTS = (1.5, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128, 200, 300, 450)
_SPANS = (1, 2, 3, 4, 6, 8, 12, 20, 40)
# Evaluations in nodes of the joint graph; larger graphs get fewer initial plans.
_WORK = 12_000_000
_LEAST = 60
# Marks, and the cuts that they keep.
Candidate = tuple[Flags, list[list[int]]]


def consider_initial_plans(search: Search, strategy: str) -> None:
    """Consider all of them, or what the size of the graph allows, at the default match range."""
    for number, (flags, cuts) in enumerate(_distinct(search)):
        if search.out_of_time or number >= max(_LEAST, _WORK // search.graph.n_nodes):
            return
        if number == 0:
            search.progress("plans to start from")
        search.consider(strategy, flags, cuts)


def _distinct(search: Search) -> Iterator[Candidate]:
    seen: set[bytes] = set()
    for flags, cuts in _all(search):
        key = search.admissible(flags).tobytes()
        if key not in seen:
            seen.add(key)
            yield flags, cuts


def _all(search: Search) -> Iterator[Candidate]:
    graph = search.graph
    sizes = graph.operator_bytes()
    total = int(sizes.sum())
    modes = (False, True) if search.barriers.any() else (False,)
    sets = []
    if True in modes:
        # behind a barrier a cut pins nothing
        sets += [(f, True) for f in families([replace(c, pinned=0) for c in search.cuts])]
    sets += [(f, mode) for f in families(search.cuts) for mode in modes]
    for family, barriers in sets:
        for part in _PARTS:
            kept, _, _ = cut_pass(graph, family, sizes, int(total / part))
            nodes = [v for cut in kept for v in cut.nodes]
            yield _keeping(search, nodes, barriers), [cut.nodes for cut in kept]
    pieces = concat_pieces(search)
    for barriers in modes if pieces else ():
        yield _keeping(search, pieces, barriers), []
    operator = graph.variable[: graph.n_forward] == 0
    place = np.cumsum(operator)
    span = place[last_forward_use(graph)] - place
    span[~operator] = 0
    for least in sorted(
        {*_SPANS, *np.percentile(span[span > 0], (50, 75, 90)).astype(int)}
        if (span > 0).any()
        else set()
    ):
        nodes = np.flatnonzero(span > least).tolist()
        for barriers in modes:
            yield _keeping(search, nodes, barriers), []


def concat_pieces(search: Search) -> list[int]:
    """What Concats put together, other Concats aside: enough to recompute all of a dense block.

    (Pleiss et al., arXiv 1707.06990, keep the same tensors, and recompute Concat and BatchNorm.)
    """
    graph = search.graph
    found = set()
    for v in range(graph.n_forward):
        if graph.op(v) not in ("Concat", "concat"):
            continue
        for source in graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]:
            node = int(source)
            # identities between piece and Concat: the one next to the piece is enough
            while graph.op(node) == "_copy":
                before = int(graph.in_node[graph.in_ptr[node]])
                if graph.op(before) != "_copy":
                    break
                node = before
            if not graph.variable[node] and graph.op(node) not in ("Concat", "concat"):
                found.add(node)
    return sorted(found)


def _keeping(search: Search, nodes: list[int], barriers: bool) -> Flags:
    """Everything recomputed but ``nodes``."""
    flags = np.where(search.graph.can_recompute, AGAIN, KEPT).astype(np.uint8)
    for v in nodes:
        flags[v] = search.kept_mark(v) if barriers and search.graph.can_recompute[v] else KEPT
    return flags
