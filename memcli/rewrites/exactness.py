"""Whether a rewritten graph adds up its gradients in the same order: floating-point sums must.

MXNet sums the gradients of a tensor from the last reader to the first, in the depth-first order
of the forward graph (``src/nnvm/gradient.cc``). A rewrite may change that order, or group terms
differently; two terms commute, more do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcli.formats.symbol_edits import Join, Rewiring
from memcli.graph.training import TrainingGraph

# (name of the forward operator, which of its gradients)
Term = tuple[str, int]


def gradient_sums(graph: TrainingGraph) -> set[tuple[Term, ...]]:
    """The terms of each sum of gradients, in the order in which they are added."""
    sums: set[tuple[Term, ...]] = set()
    inner: set[int] = set()
    is_sum = [False] * graph.n_nodes
    for v in range(graph.n_forward, graph.n_nodes):
        is_sum[v] = graph.owner[v] < 0 and graph.in_ptr[v + 1] - graph.in_ptr[v] > 1
        if is_sum[v]:
            inner.update(int(u) for u in graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]])
    for v in range(graph.n_forward, graph.n_nodes):
        if not is_sum[v] or (v in inner and graph.is_grad_add[v]):
            continue
        terms: list[Term] = []
        pending = [int(e) for e in graph.inputs(v)][::-1]
        while pending:
            entry = pending.pop()
            node = int(graph.entry_node[entry])
            if node >= graph.n_forward and is_sum[node] and graph.is_grad_add[node]:
                pending.extend([int(e) for e in graph.inputs(node)][::-1])
                continue
            owner = int(graph.owner[node]) if node >= graph.n_forward else node
            name = graph.names[owner] if owner >= 0 else f"sum {node}"
            terms.append((name, int(entry - graph.first[node])))
        sums.add(tuple(terms))
    return sums


def _unordered(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The two terms that are added first commute: the last two of three or four, which MXNet adds
    from the right (``ElementWiseSumCompute_``), the first two of more."""
    if len(terms) in (3, 4):
        return (*terms[:-2], *sorted(terms[-2:]))
    return (*sorted(terms[:2]), *terms[2:])


def joins_keep_sums(
    before: TrainingGraph, after: TrainingGraph, raw: Mapping[str, Any], joins: Sequence[Join]
) -> bool:
    """Whether joined operators' gradients are added in the order of the graph without joins.

    ``raw`` is the content that the joins were put into. Sums over a flattened Concat's pieces are
    judged by :func:`concats_keep_sums` and left out here.
    """
    names = [node["name"] for node in raw["nodes"]]
    stands_for = {}
    for join in joins:
        for output, (position, slot) in enumerate(join.readers):
            stands_for[join.name, output] = (names[position], slot)
    renamed = {tuple(stands_for.get(t, t) for t in terms) for terms in gradient_sums(after)}
    concats = {names[p] for p, node in enumerate(raw["nodes"]) if node["op"].lower() == "concat"}

    def judged(sums: set[tuple[Term, ...]]) -> set[tuple[Term, ...]]:
        return {
            _unordered([(n if not n.startswith("sum ") else "sum", k) for n, k in terms])
            for terms in sums
            if not any(name in concats for name, _ in terms)
        }

    return judged(gradient_sums(before)) == judged(renamed)


def concats_keep_sums(
    after: TrainingGraph, raw: Mapping[str, Any], changes: Sequence[Rewiring]
) -> bool:
    """Whether a piece's gradients from flattened Concats add up as they did through the chain.

    Through the chain they add up from the last Concat to the first, each as one term, before
    anything else that reads the piece, of which there may be one. ``raw`` is the content without
    the changes.
    """
    names = [node["name"] for node in raw["nodes"]]
    place = {names[p]: p for p, node in enumerate(raw["nodes"]) if node["op"].lower() == "concat"}
    rewired = {names[change.position] for change in changes}
    for terms in gradient_sums(after):
        if not any(name in rewired for name, _ in terms):
            continue
        order = [place.get(name, -1) for name, _ in terms]
        if len(order) > 1 and order[0] < order[1]:
            order[:2] = order[1::-1]
        known = [p for p in order if p >= 0]
        if len(terms) in (3, 4) or len(order) - len(known) > 1:
            return False
        if order[: len(known)] != sorted(known, reverse=True):
            return False
    return True
