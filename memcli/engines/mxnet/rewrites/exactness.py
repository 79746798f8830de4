"""Whether a rewritten graph adds up its gradients in the same order.

Floating-point sums must. MXNet sums the gradients of a tensor from the last reader to the first, in
the depth-first order of the forward graph (``src/nnvm/gradient.cc``), as one operator or as a chain
of ``_grad_add`` (``src/executor/graph_executor.cc``, ``AggregateGradient``). A rewrite may change
that order, or group terms differently; two terms commute, more do not.

What in a chain may be added in place: :mod:`memcli.engines.mxnet.memory.in_place_sums`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from memcli.engines.mxnet.memory.in_place_sums import is_move
from memcli.formats.symbol.check import attribute
from memcli.formats.symbol.edits import IDENTITY, INSERTED_KEY
from memcli.graph.training import TrainingGraph

# The gradient of an operator's input, (name of the operator, which input), or a sum in itself.
Term = tuple[Any, ...]

# Sums of so many gradients and more are added from the left, whether as one operator or as a chain
# (three or four are added from the right by the one operator): the least value of
# MXNET_EXEC_INPLACE_GRAD_SUM_CAP that keeps the order of additions.
LEAST_CHAIN = 5


class _Sums:
    """The sums of gradients of one joint graph, as the order in which their terms are added."""

    def __init__(self, graph: TrainingGraph, handing_on: Collection[str] = ()) -> None:
        """``handing_on``: names of identities that were put in, whose gradient is what they get."""
        self.graph = graph
        n = graph.n_nodes
        self.is_sum = np.zeros(n, bool)
        self.hands_on = np.zeros(n, bool)
        for v in range(graph.n_forward, n):
            owner, n_inputs = int(graph.owner[v]), graph.in_ptr[v + 1] - graph.in_ptr[v]
            self.is_sum[v] = owner < 0 and n_inputs > 1
            if owner >= 0:
                self.hands_on[v] = graph.names[owner] in handing_on
            else:  # AggregateGradient puts an identity behind a chain of additions
                self.hands_on[v] = n_inputs == 1 and graph.op(v) == "_copy"

    def made_by(self, entry: int) -> tuple[int, int]:
        """An entry and the node that makes it, past identities that hand it on."""
        node = int(self.graph.entry_node[entry])
        while node >= self.graph.n_forward and self.hands_on[node]:
            entry = int(self.graph.inputs(node)[0])
            node = int(self.graph.entry_node[entry])
        return entry, node

    def terms(self, entry: int) -> tuple[Term, ...]:
        """The terms of a sum in the order in which they are added; the first two commute.

        One operator adds three or four terms from the right (``ElementWiseSumCompute_``), two, or
        five and more, from the left.
        """
        graph = self.graph
        later: list[int] = []  # what is added to the rest, the last one first
        while True:
            entry, node = self.made_by(entry)
            if node < graph.n_forward or not self.is_sum[node]:
                first = self.leaf(entry, node)
                break
            inputs = [int(e) for e in graph.inputs(node)]
            if len(inputs) in (3, 4):
                inputs.reverse()
                later += inputs[:0:-1]
                entry = inputs[0]
            elif len(inputs) == 2 and self.adds(inputs[1]) and not self.adds(inputs[0]):
                later.append(inputs[0])
                entry = inputs[1]
            else:
                later += inputs[:0:-1]
                entry = inputs[0]
        found = [first]
        for more in reversed(later):
            entry, node = self.made_by(more)
            found.append(self.terms(entry) if self.adds(entry) else self.leaf(entry, node))
        return (*sorted(found[:2], key=repr), *found[2:])

    def adds(self, entry: int) -> bool:
        """Whether an entry is a sum."""
        _, node = self.made_by(entry)
        return node >= self.graph.n_forward and bool(self.is_sum[node])

    def leaf(self, entry: int, node: int) -> Term:
        """The name of a term."""
        graph = self.graph
        owner = int(graph.owner[node]) if node >= graph.n_forward else node
        name = graph.names[owner] if owner >= 0 else f"made by {graph.op(node)}"
        return name, int(entry - graph.first[node])

    def all(self) -> set[tuple[Term, ...]]:
        """All sums that are no part of another one."""
        graph = self.graph
        roots: set[tuple[int, int]] = set()
        read = set(graph.outputs[graph.n_forward_outputs :].tolist())
        for v in range(graph.n_forward, graph.n_nodes):
            if not self.is_sum[v] and not self.hands_on[v]:
                read.update(int(e) for e in graph.inputs(v))
        for entry in read:
            if self.adds(entry):
                roots.add(self.made_by(entry))
        return {self.terms(entry) for entry, _ in roots}


def leaves(terms: Sequence[Term]) -> list[Term]:
    """All terms of a sum, those of inner sums among them."""
    found = []
    pending = list(terms)
    while pending:
        term = pending.pop()
        if isinstance(term[0], str):
            found.append(term)
        else:
            pending.extend(term)
    return found


def handing_on(raw: Mapping[str, Any]) -> set[str]:
    """Names of the identities that memcli has put into a symbol's content."""
    return {
        node["name"]
        for node in raw["nodes"]
        if node["op"] == IDENTITY and attribute(node, INSERTED_KEY) is not None
    }


@dataclass
class SumComparison:
    """The sums of gradients of a graph before and after some rewrites.

    Args:
        before: the joint graph of ``raw``.
        after: the joint graph of ``changed``.
        raw: the content without the rewrites.
        changed: the content with them.
        stands_for: terms of ``after`` and what they are in ``before``: the gradient of an inserted
            node that hands on the one of an operator counts as that operator's.
        reordering: whether a rewrite is among them that may reorder sums which it does not judge
            alone (:attr:`memcli.engines.mxnet.rewrites.base.Rewrite.may_reorder_sums`).
    """

    before: TrainingGraph
    after: TrainingGraph
    raw: Mapping[str, Any]
    changed: Mapping[str, Any]
    stands_for: Mapping[Term, Term] = field(default_factory=dict)
    reordering: bool = False

    @cached_property
    def sums_after(self) -> set[tuple[Term, ...]]:
        """All sums of the rewritten graph, past inserted identities."""
        return _Sums(self.after, handing_on(self.changed)).all()

    @cached_property
    def same_sums(self) -> bool:
        """Whether all gradients are added in the order that they had.

        Sums over the inputs of Concats are left out: flattening judges them by a rule of its own
        (:mod:`memcli.engines.mxnet.rewrites.flatten_concats`).
        """
        nodes = self.raw["nodes"]
        concats = {node["name"] for node in nodes if node["op"].lower() == "concat"}

        def renamed(term: Term) -> Term:
            if isinstance(term[0], str):
                return self.stands_for.get(term, term)
            return tuple(renamed(inner) for inner in term)

        def judged(sums: set[tuple[Term, ...]]) -> set[tuple[Term, ...]]:
            found = set()
            for terms in sums:
                if any(name in concats for name, _ in leaves(terms)):
                    continue
                new = [renamed(term) for term in terms]
                found.add((*sorted(new[:2], key=repr), *new[2:]))
            return found

        return judged(_Sums(self.before).all()) == judged(self.sums_after)

    @cached_property
    def same_in_place(self) -> bool:
        """Whether the same operators may add their gradients to what is there.

        Operators that only move values are free to differ.
        """
        now = {self.stands_for.get(term, term) for term in _added_in_place(self.after)}
        return _added_in_place(self.before) == now


def _added_in_place(graph: TrainingGraph) -> set[Term]:
    """Gradients that an operator may add to what is there, and that are more than a move."""
    sums = _Sums(graph)
    found = set()
    for v in range(graph.n_forward, graph.n_nodes):
        if not graph.is_grad_add[v]:
            continue
        entry = int(graph.inputs(v)[1])
        if not is_move(graph, entry):
            found.add(sums.leaf(entry, int(graph.entry_node[entry])))
    return found


def adds_early_exactly(graph: TrainingGraph) -> bool:
    """Whether adding gradients one by one as they come changes bits nowhere, and anything at all.

    Args:
        graph: the joint graph under MXNet's default variables, where sums of fewer than eight terms
            are one operator.

    Returns:
        True where some sum has five to seven terms, and every term of every such sum but the first,
        which is written, is made by an operator that only moves values.
    """
    applies = False
    for v in range(graph.n_forward, graph.n_nodes):
        inputs = graph.inputs(v)
        if graph.owner[v] >= 0 or graph.is_grad_add[v] or len(inputs) < LEAST_CHAIN:
            continue
        if not all(is_move(graph, int(entry)) for entry in inputs[1:]):
            return False
        applies = True
    return applies
