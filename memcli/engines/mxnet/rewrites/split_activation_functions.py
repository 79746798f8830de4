"""SplitActivation activation functions: the largest in front of sums run in pieces, by channels.

MXNet's pool never puts two tensors into one block at a time. Blocks of the largest tensors, those
of the first stage of a network, are taken by smaller tensors for most of a step, and all but a
part of them lies idle. An activation function (ReLU and its like) whose result is only added to
something holds two tensors for its gradient, and makes two more: in halves or quarters those have
the sizes of the stages behind it, and the pool needs fewer of the largest blocks. The whole result
that the sum reads is made in the block that the sum is then made in.

Rules:

1. ``LeakyReLU`` of type ``leaky``, or ``Activation`` of type ``relu``, of at least two dimensions.
2. Its input is not a parameter and has no other consumer; all its consumers are additions. It is
   no output of the graph.
3. Its result is about as large as the largest such result, which is not much smaller than the
   largest tensor there is.
4. The second dimension, which does not depend on the batch, can be divided.

Exact: a piece is a comparison and at most one product for each element, whatever is around it;
``SliceChannel`` and ``Concat`` only move data, and so do their gradients. Cost: each element is
moved once more in front of the function and once behind it, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.mxnet.rewrites.base import Rewrite, RewriteConditions
from memcli.formats.symbol.check import attribute, attributes
from memcli.formats.symbol.edits import IDENTITY, INSERTED_KEY, GraphBuilder, Raw

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis
    from memcli.graph.training import TrainingGraph

# What cuts a tensor into pieces, and what puts them together again.
_CUT, _WHOLE = "SliceChannel", "Concat"
# How many pieces: which is best, only the pool tells.
PARTS = (2, 4)
_KINDS = {"LeakyReLU": "leaky", "Activation": "relu"}
_SUMS = frozenset({"elemwise_add", "_plus", "_Plus", "broadcast_add", "add_n", "ElementWiseSum"})
_AS_LARGE = 0.9
# Smaller than this part of the largest tensor there is, they do not decide how many blocks of
# the largest size there are.
_COUNTS = 0.25


@dataclass(frozen=True)
class SplitActivation:
    """The node at ``position``, of one input and one output, in ``parts`` pieces along axis 1."""

    position: int
    parts: int


class SplitActivationFunctions(Rewrite[list[SplitActivation]]):
    """Large activation functions in pieces; see the module's text."""

    name = "split activation functions"

    def alternatives(
        self,
        raw: Raw,
        analysis: Analysis,
        conditions: RewriteConditions,
        found: list[SplitActivation] | None,
    ) -> list[list[SplitActivation]]:
        """The largest activation functions for each number of pieces, where there are any."""
        return [splits for splits in split_activations(raw, analysis.graph, PARTS) if splits]

    def relocated(
        self, found: list[SplitActivation], moved: Mapping[int, int]
    ) -> list[SplitActivation]:
        """See :meth:`Rewrite.relocated`."""
        return [SplitActivation(moved[split.position], split.parts) for split in found]

    def apply(self, raw: Raw, found: list[SplitActivation]) -> tuple[Raw, dict[int, int]]:
        """See :func:`insert_splits`."""
        return insert_splits(raw, found)

    def recognizes(self, nodes: Sequence[Raw], position: int) -> bool:
        """The cut, the pieces behind one, and the whole of such pieces.

        The function itself is the first of the pieces: its inputs and its consumers find one
        another when the others are bypassed.
        """
        node = nodes[position]
        if node["op"] == _CUT:
            return bool(node["inputs"])
        if node["op"] != _WHOLE:
            return _is_piece(nodes, position)
        pieces = [_maker(nodes, source) for source in node["inputs"]]
        return bool(pieces) and all(_is_piece(nodes, p) for p in pieces)

    def describe(self, found: list[SplitActivation]) -> str:
        """See :meth:`Rewrite.describe`."""
        return f"{len(found)} activations in {found[0].parts} pieces"


def _is_inserted(node: Raw) -> bool:
    return attribute(node, INSERTED_KEY) is not None


def _maker(nodes: Sequence[Raw], source: Sequence[int]) -> int:
    """The node that made a tensor, save barriers aside."""
    p = source[0]
    for _ in range(len(nodes)):  # a damaged file may have them in a circle
        if nodes[p]["op"] != IDENTITY or not nodes[p]["inputs"] or not _is_inserted(nodes[p]):
            break
        p = nodes[p]["inputs"][0][0]
    return p


def _is_piece(nodes: Sequence[Raw], position: int) -> bool:
    """Whether a node is an activation function on a piece of a tensor that was cut."""
    made = [_maker(nodes, source) for source in nodes[position]["inputs"]]
    cut = len(made) == 1 and nodes[made[0]]["op"] == _CUT and _is_inserted(nodes[made[0]])
    return cut and nodes[position]["op"] in _KINDS


def insert_splits(raw: Raw, splits: Sequence[SplitActivation]) -> tuple[Raw, dict[int, int]]:
    """Each split's node on the first piece of what it reads, nodes like it on the others.

    All that read the node read the pieces put together instead. What it reads must come before it
    in the file, and it must be no output of the graph.

    Returns:
        The new content, and the new position of each old one.
    """
    parts = {split.position: split.parts for split in splits}
    readers: dict[int, list[tuple[int, int]]] = {p: [] for p in parts}
    for reader, node in enumerate(raw["nodes"]):
        for slot, source in enumerate(node["inputs"]):
            if source[0] in readers:
                readers[source[0]].append((reader, slot))
    new = GraphBuilder(raw)
    for position, node in enumerate(raw["nodes"]):
        if position not in parts:
            new.keep(position)
            continue
        count, name = str(parts[position]), node["name"]
        source = node["inputs"][0]
        read = [new.moved[source[0]], *source[1:]]
        if (position, 0) in new.turned:  # the whole of what is in pieces, too
            read = [*new.turned[position, 0], *source[2:]]
        cut = new.insert(_CUT, f"{name}_pieces", [read], num_outputs=count, axis="1")
        new.turned[position, 0] = (cut, 0)
        new.keep(position)
        own = {k: v for k, v in attributes(node).items() if not k.startswith("__")}
        pieces = [new.moved[position]]
        for k in range(1, parts[position]):
            pieces.append(new.insert(node["op"], f"{name}_piece{k}", [[cut, k, 0]], **own))
        whole = new.insert(
            _WHOLE, f"{name}_whole", [[p, 0, 0] for p in pieces], num_args=count, dim="1"
        )
        new.turned.update(dict.fromkeys(readers[position], (whole, 0)))
    return new.finished(), new.moved


def split_activations(
    raw: dict[str, Any], graph: TrainingGraph, numbers: Sequence[int]
) -> list[list[SplitActivation]]:
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


def _largest(found: list[tuple[int, int, int]], parts: int, least: float) -> list[SplitActivation]:
    """Those of the largest that can be divided, if they have ``least`` bytes."""
    fits = [(size, place) for size, place, channels in found if channels % parts == 0]
    largest = max((size for size, _ in fits), default=0)
    if largest < least:
        return []
    return [SplitActivation(place, parts) for size, place in fits if size >= _AS_LARGE * largest]
