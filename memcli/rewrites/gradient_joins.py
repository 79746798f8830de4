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

from typing import Any

from memcli.formats.symbol_edits import Join
from memcli.graph.training import TrainingGraph
from memcli.memory.mxnet_model import MXNetModel

# Graphs of so many nodes are joined wherever rule 1 holds, before their gradients are known.
LARGE = 20_000

_ADDS = frozenset({"elemwise_add", "_plus", "_Plus", "broadcast_add"})
_WITH_PARAMETERS = frozenset({"FullyConnected", "Convolution"})
# How much later than its sibling's a gradient must run to be worth a join, in steps.
_LATE = 24


def gradient_joins(raw: dict[str, Any], graph: TrainingGraph, model: MXNetModel) -> list[Join]:
    """The joins that a symbol profits from; ``graph`` is the symbol's own training graph."""
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
