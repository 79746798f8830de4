"""Split activations: the largest ones in front of sums run in pieces, channel by channel.

MXNet's pool never puts two tensors into one block at a time. Blocks of the largest tensors, those
of the first stage of a network, are taken by smaller tensors for most of a step, and all but a
part of them lies idle. An activation whose result is only added to something holds two tensors
for its gradient, and makes two more: in halves or quarters those have the sizes of the stages
behind it, and the pool needs fewer of the largest blocks. The whole result that the sum reads is
made in the block that the sum is then made in.

Rules:

1. ``LeakyReLU`` of type ``leaky``, or ``Activation`` of type ``relu``, of at least two dimensions.
2. It alone reads what it reads, which is no argument, and all that read it are sums; it is no
   output of the graph.
3. Its result is about as large as the largest such result, which is not much smaller than the
   largest tensor there is.
4. The second dimension, which does not depend on the batch, can be divided.

Exact: a piece is a comparison and at most one product for each element, whatever is around it;
``SliceChannel`` and ``Concat`` only move data, and so do their gradients. Cost: each element is
moved once more in front of the activation and once behind it, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memcli.formats.symbol_edits import Split
from memcli.graph.training import TrainingGraph

# How many pieces: which is best, only the pool tells.
PARTS = (2, 4)
_KINDS = {"LeakyReLU": "leaky", "Activation": "relu"}
_SUMS = frozenset({"elemwise_add", "_plus", "_Plus", "broadcast_add", "add_n", "ElementWiseSum"})
_AS_LARGE = 0.9
# Smaller than this part of the largest tensor there is, they do not decide how many blocks of
# the largest size there are.
_COUNTS = 0.25


def split_activations(
    raw: dict[str, Any], graph: TrainingGraph, numbers: Sequence[int]
) -> list[list[Split]]:
    """The activations of a symbol to split, for each number of pieces.

    ``graph`` is the symbol's own training graph.
    """
    n_read = graph.in_ptr[graph.n_forward]
    times_read = np.bincount(graph.in_entry[:n_read], minlength=graph.n_entries)
    only_summed = np.ones(graph.n_forward, bool)
    for v in range(graph.n_forward):
        if graph.op(v) not in _SUMS:
            only_summed[graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]] = False
    heads = set(graph.heads[: graph.n_forward_outputs].tolist())
    alone = graph.alone()
    found: list[tuple[int, int, int]] = []  # bytes, place in the file, channels
    for v in range(graph.n_forward):
        if graph.op(v) not in _KINDS or not (only_summed[v] and alone[v]) or v in heads:
            continue
        place, own = int(graph.position[v]), int(graph.first[v])
        source, read = int(graph.in_node[graph.in_ptr[v]]), int(graph.in_entry[graph.in_ptr[v]])
        shape = graph.shape(own)
        if (
            graph.kinds[graph.kind[v]].attrs.get("act_type", "leaky") == _KINDS[graph.op(v)]
            and times_read[own]
            and not graph.variable[source]
            and times_read[read] == 1
            and source not in heads
            and raw["nodes"][place]["inputs"][0][0] < place
            and len(shape) > 1
        ):
            found.append((int(graph.entry_bytes[own]), place, shape[1]))
    least = _COUNTS * int(graph.entry_bytes[graph.external == 0].max(initial=0))
    return [_largest(found, parts, least) for parts in numbers]


def _largest(found: list[tuple[int, int, int]], parts: int, least: float) -> list[Split]:
    """Those of the largest that can be divided, if they have ``least`` bytes."""
    fits = [(size, place) for size, place, channels in found if channels % parts == 0]
    largest = max((size for size, _ in fits), default=0)
    if largest < least:
        return []
    return [Split(place, parts) for size, place in fits if size >= _AS_LARGE * largest]
