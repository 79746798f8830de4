"""Plans that drop a part of every dense layer, as the hand-made DenseNets do."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from memcli.errors import BadInput
from memcli.frameworks.behaviour import Behaviour, behaviour_of
from memcli.graph.dense_blocks import DenseBlocks, DenseLayer
from memcli.graph.training import TrainingGraph
from memcli.marks import AGAIN, EACH
from memcli.search.base import Search


def dense_blocks(search: Search, strategy: str) -> DenseBlocks:
    """The dense blocks of the graph.

    Raises:
        BadInput: it has none; the strategy is for them alone.
    """
    blocks = DenseBlocks(search.graph)
    if not blocks.layers:
        raise BadInput(
            f"--strategy {strategy} is for dense blocks, whose layers read the Concat of all that "
            "the layers before them made, and this graph has none",
            "--strategy cheap has the same idea for any graph; auto finds the best",
        )
    return blocks


def module(graph: TrainingGraph, node: int) -> Behaviour:
    """What kind of module, by :mod:`memcli.frameworks.behaviour`, an operator is."""
    return behaviour_of(graph.op(node), graph.kinds[graph.kind[node]].attrs)


def normalised_heads(graph: TrainingGraph, layer: DenseLayer) -> set[int]:
    """The BatchNorms that read what a layer reads, and the ReLUs behind them."""
    found = {v for v in layer.heads if module(graph, v).normalises}
    for v in layer.inside:
        reads = graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]].tolist()
        how = module(graph, v)
        if how.in_place and not how.adds and found.issuperset(reads):
            found.add(v)
    return found - layer.last(graph)


def consider_dropped(
    search: Search, strategy: str, dropped: Iterable[int], concats: Iterable[int] = ()
) -> None:
    """Consider the plans that recompute ``dropped`` and ``concats`` and keep all else.

    In PyTorch that is one plan; where Concats are made of Concats that go as well, there is one
    more, which makes them anew at each need, so that no chain of them is held. In MXNet, where the
    gradient of what is kept reads the original inputs, readers of what goes get save barriers
    (:meth:`Search.kept_mark`): they are recomputed for themselves, a bottleneck's convolution
    included.

    Args:
        search: the search on a graph.
        strategy: whose plans they are.
        dropped: forward nodes.
        concats: forward nodes, Concats that can be put together anew.
    """
    graph = search.graph
    gone = {*dropped, *concats}
    flags = np.zeros(graph.n_forward, np.uint8)
    flags[list(gone)] = AGAIN
    search.consider(strategy, flags, [])
    reads = {
        v: set(graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]].tolist()) & gone
        for v in range(graph.n_forward)
    }
    if graph.keeps_inputs:
        behind = [v for v, sources in reads.items() if sources and v not in gone]
        flags[behind] = [search.kept_mark(v) for v in behind]
    else:
        nested = {*concats}
        flags[[v for v in nested if reads[v] & nested]] = EACH
        flags[[u for v in nested for u in reads[v] & nested]] = EACH
    search.consider(strategy, flags, [])
