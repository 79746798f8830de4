"""Gradient joins: two operators whose results are added get their inputs through one node.

In ``FullyConnected(x) + FullyConnected(h)`` the gradients of both branches start from the same
tensor. Where ``h`` is the chain that goes on (the state of an unrolled recurrent network) and
``x`` a side branch (the word of this step), the engine follows the chain to its end first and
comes back to the side branches last: the tensor that their gradients start from is held for all
steps at once. Behind a join the chain's gradient waits for the side branch's.

Rules:

1. Two operators with parameters, the outputs of which have one reader, the same ``elemwise_add``.
2. In the graph as it is, the gradient of one of them runs much later than that of the other.
3. Both inputs are feature maps or fed inputs of the same float type that come before either
   operator in the file.

Exact: ``amp_multicast`` on inputs of one type hands them on, in their own memory, and so does its
gradient. Source of the order: nnvm's depth-first post-order from the arguments' gradients
(MXNet 1.9.1, ``src/nnvm/gradient.cc`` and ``graph.h``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memcli.engines.mxnet.rewrites.base import Rewrite, RewriteConditions
from memcli.formats.symbol.edits import GraphBuilder, Raw

if TYPE_CHECKING:
    from memcli.engines.mxnet.memory.model import MXNetModel
    from memcli.engines.mxnet.record import Analysis
    from memcli.engines.mxnet.rewrites.exactness import Term
    from memcli.graph.training import TrainingGraph

_JOIN = "amp_multicast"
_ADDS = frozenset({"elemwise_add", "_plus", "_Plus", "broadcast_add"})
_WITH_PARAMETERS = frozenset({"FullyConnected", "Convolution"})
# How much later than its sibling's a gradient must run to be worth a join, in steps.
_LATE = 24


@dataclass(frozen=True)
class Join:
    """Inputs ``slot`` of the nodes at ``readers``, each given as (position, slot), as one node."""

    readers: Sequence[tuple[int, int]]
    name: str


class GradientJoins(Rewrite[list[Join]]):
    """Inputs of two operators handed on by one node; see the module's text."""

    name = "gradient joins"
    guesses = True

    def find(
        self, raw: Raw, analysis: Analysis | None, conditions: RewriteConditions
    ) -> list[Join] | None:
        """By the rules; without an analysis by what the file alone tells of them."""
        if analysis is None:
            return possible_joins(raw) or None
        return gradient_joins(raw, analysis.graph, analysis.model) or None

    def relocated(self, found: list[Join], moved: Mapping[int, int]) -> list[Join]:
        """See :meth:`Rewrite.relocated`."""
        return [Join([(moved[p], slot) for p, slot in join.readers], join.name) for join in found]

    def apply(self, raw: Raw, found: list[Join]) -> tuple[Raw, dict[int, int]]:
        """See :func:`insert_joins`."""
        return insert_joins(raw, found)

    def recognizes(self, nodes: Sequence[Raw], position: int) -> bool:
        """Each output of a join is one of its inputs."""
        return nodes[position]["op"] == _JOIN and bool(nodes[position]["inputs"])

    def stands_for(self, raw: Raw, found: list[Join]) -> dict[Term, Term]:
        """The gradient of a join's output is that of the operator which reads it."""
        names = [node["name"] for node in raw["nodes"]]
        return {
            (join.name, output): (names[position], slot)
            for join in found
            for output, (position, slot) in enumerate(join.readers)
        }

    def describe(self, found: list[Join]) -> str:
        """See :meth:`Rewrite.describe`."""
        return f"{len(found)} gradient joins"


def insert_joins(raw: Raw, joins: Sequence[Join]) -> tuple[Raw, dict[int, int]]:
    """A node in front of each join's readers that hands all their inputs on together.

    It stands right before the first of the readers; what they read must come before that, and no
    reader may be in two joins at the same slot.

    Returns:
        The new content, and the new position of each old one.
    """
    at: dict[int, list[Join]] = {}
    for join in joins:
        at.setdefault(min(position for position, _ in join.readers), []).append(join)
    new = GraphBuilder(raw)
    for position in range(len(raw["nodes"])):
        for join in at.get(position, ()):
            sources = [raw["nodes"][reader]["inputs"][slot] for reader, slot in join.readers]
            inputs = [[new.moved[source[0]], *source[1:]] for source in sources]
            place = new.insert(_JOIN, join.name, inputs, num_outputs=str(len(inputs)))
            for output, reader in enumerate(join.readers):
                new.turned[reader] = (place, output)
        new.keep(position)
    return new.finished(), new.moved


def gradient_joins(raw: dict[str, Any], graph: TrainingGraph, model: MXNetModel) -> list[Join]:
    """The joins that a symbol profits from.

    Args:
        raw: the symbol file's content.
        graph: its own training graph.
        model: of that graph.
    """
    order = model.execution_order(model.none())
    step = {int(v): k for k, v in enumerate(order)}
    runs: dict[int, int] = {}  # forward node -> step of its gradient
    for v in range(graph.n_forward, graph.n_nodes):
        if graph.owner[v] >= 0 and v in step:
            owner = int(graph.owner[v])
            runs[owner] = max(runs.get(owner, 0), step[v])
    readers: dict[int, int] = {}
    for v in range(graph.n_forward):
        for i in range(graph.in_ptr[v], graph.in_ptr[v + 1]):
            readers[int(graph.in_node[i])] = readers.get(int(graph.in_node[i]), 0) + 1
    heads = set(graph.heads[: graph.n_forward_outputs].tolist())
    alone = graph.alone()
    nodes = raw["nodes"]
    joins = []
    for v in range(graph.n_forward):
        if graph.op(v) not in _ADDS or graph.in_ptr[v + 1] - graph.in_ptr[v] != 2:
            continue
        pair = [int(u) for u in graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]]
        if pair[0] == pair[1] or not all(
            graph.op(u) in _WITH_PARAMETERS
            and readers.get(u) == 1
            and u in runs
            and u not in heads
            and alone[u]
            for u in pair
        ):
            continue
        if abs(runs[pair[0]] - runs[pair[1]]) < _LATE:
            continue
        entries = [int(graph.in_entry[graph.in_ptr[u]]) for u in pair]
        if entries[0] == entries[1] or graph.itemsize[entries[0]] != graph.itemsize[entries[1]]:
            continue
        places = [int(graph.position[u]) for u in pair]
        sources = [nodes[p]["inputs"][0][0] for p in places]
        if max(sources) < min(places):
            name = nodes[int(graph.position[v])]["name"] + "_join"
            joins.append(Join([(p, 0) for p in places], name))
    return joins


def possible_joins(raw: dict[str, Any]) -> list[Join]:
    """Joins by the file alone, whether the gradients profit or not: rule 1, and the order of 3.

    Where the analysis of a graph takes long, this lets the joined graph be analyzed beside it.
    """
    nodes = raw["nodes"]
    readers: dict[int, int] = {}
    for node in nodes:
        for source in node["inputs"]:
            readers[source[0]] = readers.get(source[0], 0) + 1
    for head in raw["heads"]:
        readers[head[0]] = readers.get(head[0], 0) + 2
    joins = []
    for node in nodes:
        if node["op"] not in _ADDS or len(node["inputs"]) != 2:
            continue
        pair = [i[0] for i in node["inputs"]]
        if pair[0] == pair[1] or not all(
            nodes[p]["op"] in _WITH_PARAMETERS and readers[p] == 1 for p in pair
        ):
            continue
        sources = [nodes[p]["inputs"][0][:2] for p in pair]
        if sources[0] != sources[1] and max(s[0] for s in sources) < min(pair):
            joins.append(Join([(p, 0) for p in pair], node["name"] + "_join"))
    return joins
