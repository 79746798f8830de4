"""The buffers that Torch7's modules own when they train a graph, and when each is in use.

Source: torch/nn (Concat, ConcatTable, JoinTable, Sequential), soumith/cudnn.torch, and the layer
of liuzhuang13/DenseNet, ``models/DenseConnectLayer.lua``. Rules, of a module for every operator:

1. A module owns its output, and a gradient for each input that needs one. Views own nothing. What
   works in place (:mod:`behaviour`) does so where nobody else reads its input, and nobody needs
   it for a gradient.
2. Where several modules read a tensor, the container that hands it to them (``nn.Concat``,
   ``nn.ConcatTable``) owns a gradient to add theirs up in. Theirs are read by nobody else.
3. ``nn.Concat`` hands parts of its gradient on, not copies. These are not contiguous: a module at
   the end of a branch copies its part into a buffer of its own (``_gradOutput``).
4. Recursive: a Concat that extends another reads that one and what it adds.

``joined``: growing concatenations as the customized layer has them. All Concats that can be built
anew share one buffer, and their gradients are added to those of the pieces; at the end of a block
``nn.JoinTable`` owns the Concat and a gradient for each piece.

Times: node v runs forward at v, and backward at ``2 n - 1 - v``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memcli.frameworks.behaviour import Behaviour, behaviour_of
from memcli.graph.dense_blocks import DenseBlocks, readers_of
from memcli.graph.training import Ints, TrainingGraph

Bools = NDArray[np.bool_]

OUTPUTS, GRADIENTS, COPIES = "outputs", "gradients", "copies"

# What buffers of outputs may be shared by, in the customized layer.
CONCATENATED, NORMALISED = "concatenated", "normalised"
ADDED_UP = "added up"  # gradients that containers add up in


@dataclass
class Buffer:
    """One buffer, before any sharing. ``size`` in bytes.

    ``key``: schemes that share by type put together what has the same; None: it is its owner's
    alone. ``lives``: first and last time of each stretch over which what is in it is needed.
    ``handed_on``: a module was given it as the gradient of its output, and reads it last then.
    """

    node: int  # whose module or container owns it
    part: str
    size: int
    key: str | None = None
    lives: list[tuple[int, int]] = field(default_factory=list)
    handed_on: bool = False

    def use(self, time: int) -> None:
        """It is read at a time after its last stretch began."""
        start, end = self.lives[-1]
        self.lives[-1] = (start, max(end, time))


@dataclass(frozen=True)
class _Place:
    """Where a gradient is; ``part``: in a part of a larger one."""

    buffer: Buffer
    part: bool = False


def module_buffers(
    graph: TrainingGraph,
    with_gradient: Bools,
    statistics: Ints,
    *,
    joined: bool = False,
    rerun: bool = False,
) -> list[Buffer]:
    """All buffers that are not parameters.

    Args:
        graph: the training graph.
        with_gradient: over forward nodes, whether a gradient passes through.
        statistics: over forward nodes, bytes of the mean and deviation that BatchNorm saves.
        joined: see :mod:`memcli.frameworks.buffers`.
        rerun: dense layers' BatchNorms share their outputs, too, and are recomputed before they are
            read in the backward pass.
    """
    return _Buffers(graph, with_gradient, statistics, joined, rerun).all()


class _Buffers:
    def __init__(
        self,
        graph: TrainingGraph,
        with_gradient: Bools,
        statistics: Ints,
        joined: bool,
        rerun: bool,
    ) -> None:
        self.graph = graph
        self.statistics = statistics
        self.joined, self.rerun = joined, rerun
        self.n = graph.n_forward
        self.blocks = DenseBlocks(graph)
        self.rebuilt = self.blocks.rebuilt if joined else frozenset()
        # Concats elsewhere are nn.Concat at every level
        self.joins = {v for v in self.blocks.ends if joined and v not in self.rebuilt}
        self.behaviours = {
            v: behaviour_of(graph.op(v), graph.kinds[graph.kind[v]].attrs)
            for v in range(self.n)
            if not graph.variable[v]
        }
        self.sizes = graph.entry_bytes.tolist()
        self.maker = graph.entry_node.tolist()
        self.first = graph.first.tolist()
        self.passes = with_gradient.tolist()
        self.reads = {v: self._reads(v) for v in self.behaviours}
        self.readers: dict[int, list[int]] = {}
        for v, entries in self.reads.items():
            for entry in dict.fromkeys(entries):
                self.readers.setdefault(entry, []).append(v)
        self.raw_readers = readers_of(graph)
        self.given_out = set(graph.outputs[: graph.n_forward_outputs].tolist())
        self.heads: dict[int, set[int]] = {}  # entry that dense layers read: their heads
        self.inside: dict[int, frozenset[int]] = {}  # head: nodes of its layer
        for layer in self.blocks.layers if joined else ():
            self.heads.setdefault(layer.state, set()).update(layer.heads)
            self.inside.update(dict.fromkeys(layer.heads, frozenset(layer.inside)))
        self.overwrites = {v for v, how in self.behaviours.items() if self._overwrites(v, how)}
        self.buffers: list[Buffer] = []

    def all(self) -> list[Buffer]:
        for v, how in self.behaviours.items():
            self._own_output(v, how)
        self.places: dict[int, _Place] = {}
        self.sums: dict[int, Buffer] = {}
        for v in reversed(self.behaviours):
            if self.passes[v]:
                self._own_gradients(v, self.behaviours[v])
        # schemes that take turns do so in the order of the modules
        self.buffers.sort(key=lambda buffer: buffer.node)
        return self.buffers

    def _back(self, node: int) -> int:
        return 2 * self.n - 1 - node

    def _reads(self, v: int) -> list[int]:
        """The tensors that other modules make and this one reads; what is rebuilt is no module."""
        entries = self.graph.inputs(v).tolist()
        if v in self.rebuilt:
            return []
        if v in self.blocks.parent:
            if self.joined:
                entries = self.blocks.pieces(v)
            else:
                entries = [self.blocks.parent[v], *self.blocks.added[v]]
        return [e for e in entries if not self.graph.variable[self.maker[e]]]

    def _overwrites(self, v: int, how: Behaviour) -> bool:
        """Whether a module works on an input's storage; which of its inputs does not matter."""
        if not how.in_place:
            return False
        alone = [e for e in self.reads[v] if self.raw_readers[e] == [v]]
        makers = {e: self.behaviours[self.maker[e]] for e in alone}
        # a sum hands one gradient to all: none of them may be a ReLU that overwrites it
        if how.adds and any(b.view or (b.in_place and not b.adds) for b in makers.values()):
            return False
        return any(
            entry not in self.given_out
            and not maker.reads_output
            and not maker.view
            and self.sizes[entry] == self.sizes[self.first[v]]
            for entry, maker in makers.items()
        )

    def _own(self, node: int, part: str, size: int, key: str | None, *lives: int) -> Buffer:
        buffer = Buffer(node, part, size, key, [(t, t) for t in lives])
        if size:
            self.buffers.append(buffer)
        return buffer

    def _made(self, v: int) -> int:
        """Bytes of a node's outputs that other nodes can read."""
        entries = range(self.first[v], self.first[v + 1])
        return sum(self.sizes[e] for e in entries if self.graph.visible[e])

    def _own_output(self, v: int, how: Behaviour) -> None:
        if how.normalises:
            times = 2 if self.rerun and v in self.inside else 1  # running statistics, to put back
            self._own(v, COPIES, times * int(self.statistics[v]), None, v)
        if how.noise:
            self._own(v, COPIES, self._made(v), None, v)
        if how.view or v in self.overwrites:
            return
        if v in self.rebuilt:
            heads = sorted(self.heads[self.first[v]])
            buffer = self._own(v, OUTPUTS, self._made(v), CONCATENATED, v, self._back(heads[-1]))
            buffer.lives[0] = (v, heads[-1])
            buffer.use(self._back(heads[0]))
            return
        last = self._last_of_layer(v) if self.rerun and how.normalises else None
        if last is None:
            self._own(v, OUTPUTS, self._made(v), None, v)
            return
        buffer = self._own(v, OUTPUTS, self._made(v), NORMALISED, v, self._back(last))
        buffer.lives[0] = (v, last)
        buffer.use(self._back(v))

    def _last_of_layer(self, v: int) -> int | None:
        """Who reads a dense layer's first BatchNorm last; None where that is not its layer."""
        if v not in self.inside or self.first[v] in self.given_out:
            return None
        readers = self.raw_readers.get(self.first[v], [])
        while len(readers) == 1 and readers[0] in self.overwrites:
            if self.first[readers[0]] in self.given_out:
                return None
            readers = self.raw_readers.get(self.first[readers[0]], [])
        if not readers or not self.inside[v].issuperset(readers):
            return None
        return readers[-1]

    def _own_gradients(self, v: int, how: Behaviour) -> None:
        """What a module makes of the gradient of its output."""
        now = self._back(v)
        place = self.places.get(self.first[v])
        if place is not None:
            place.buffer.use(now)
            place.buffer.handed_on = True
            if place.part and not how.concatenates:
                copy = self._own(v, COPIES, self._made(v), None, now)
                place = _Place(copy)
        wanted = [e for e in dict.fromkeys(self.reads[v]) if self.passes[self.maker[e]]]
        in_place, made = v in self.overwrites, self._made(v)
        table = len(wanted) > 1
        for entry in wanted:
            if v in self.joins:
                given = _Place(self._own(v, GRADIENTS, self.sizes[entry], None, now))
            elif how.concatenates and place is not None:
                given = _Place(place.buffer, part=True)
            elif place is not None and (how.view or (in_place and self.sizes[entry] == made)):
                given = place
            else:
                key = None if table else self._key(how, entry)
                given = _Place(self._own(v, GRADIENTS, self.sizes[entry], key, now))
            self._give(v, entry, given, kept=v in self.joins)

    def _key(self, how: Behaviour, entry: int) -> str:
        """By the module's type; a BatchNorm at the head of a branch is of another."""
        first = how.normalises and (len(self.readers[entry]) > 1 or entry in self.heads)
        return f"{how.module}:first" if first else how.module

    def _give(self, v: int, entry: int, given: _Place, *, kept: bool) -> None:
        """Hand a gradient to what made an entry; ``kept``: where others may add theirs to it."""
        heads = self.heads.get(entry, set())
        if v in heads and (self.maker[entry] in self.rebuilt or entry in self.places):
            return  # added to the gradients of the pieces
        others = [r for r in self.readers[entry] if r not in heads and self.passes[r]]
        if kept and others == [v]:
            self.places[entry] = given
            return
        if len(self.readers[entry]) == 1:
            self.places[entry] = given
            return
        if entry not in self.sums:
            buffer = self._own(v, GRADIENTS, self.sizes[entry], ADDED_UP, self._back(v))
            self.sums[entry] = buffer
            self.places[entry] = _Place(buffer)
        self.sums[entry].use(self._back(v))
