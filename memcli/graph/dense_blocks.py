"""Growing concatenations: blocks whose layers read all that the layers before them made.

Source: Huang et al., "Densely Connected Convolutional Networks", arXiv 1608.06993. Found by what
is read, not by names: a Concat *extends* another tensor where it begins with all the pieces of
that tensor. ``Concat(Concat(a, b), c)`` and ``Concat(a, b, c)`` beside ``Concat(a, b)`` are the
same thing here, so that recursive concatenation and lists of features come to one structure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from memcli.graph.training import TrainingGraph

CONCATS = frozenset({"Concat", "concat"})


@dataclass(frozen=True)
class DenseLayer:
    """A layer that reads a state (all pieces so far) and makes what the next Concat adds to it."""

    state: int  # entry that it reads: what a Concat makes, or the block's first piece
    concat: int  # the Concat that makes the state; -1: the first piece, which none makes
    end: int  # the Concat that extends the state
    heads: tuple[int, ...]  # forward nodes that read the state, in order
    inside: tuple[int, ...]  # forward nodes on a way from the state to what is added, in order
    added: tuple[int, ...]  # entries that it adds

    def last(self, graph: TrainingGraph) -> frozenset[int]:
        """The nodes that make what is added."""
        return frozenset(int(graph.entry_node[e]) for e in self.added)


class DenseBlocks:
    """The growing concatenations of a graph.

    ``parent``: {Concat: entry of the state that it extends, its first piece where no shorter
    state is there}. ``added``: {Concat: entries behind the parent's pieces}. ``layers``: in
    order. Only Concats that grow at their end are seen; of files whose operators' attributes are
    not known here, all Concats are taken for ones along the same axis.
    """

    def __init__(self, graph: TrainingGraph) -> None:
        self.graph = graph
        self.readers = readers_of(graph)
        self.parent: dict[int, int] = {}
        self.added: dict[int, tuple[int, ...]] = {}
        self._find_states()
        found = (self._layer(concat) for concat in self.parent)
        self.layers = [layer for layer in found if layer is not None]

    @cached_property
    def rebuilt(self) -> frozenset[int]:
        """Concats that nobody but their own layers reads, and the Concats that extend them.

        These can be put together anew for each layer; all others have to stay.
        """
        heads: dict[int, set[int]] = {}
        for layer in self.layers:
            heads.setdefault(layer.concat, set()).update(layer.heads)
        heads.pop(-1, None)
        graph = self.graph
        given_out = set(graph.outputs[: graph.n_forward_outputs].tolist())
        return frozenset(
            concat
            for concat, own in heads.items()
            if (state := int(graph.first[concat])) not in given_out
            and all(v in own or self.parent.get(v) == state for v in self.readers.get(state, ()))
        )

    @cached_property
    def ends(self) -> frozenset[int]:
        """The Concats that layers add to."""
        return frozenset(layer.end for layer in self.layers)

    def pieces(self, concat: int) -> list[int]:
        """What a Concat puts together where all Concats are rebuilt that can be.

        Args:
            concat: a Concat of :attr:`parent`.

        Returns:
            Entries, in order.
        """
        result: list[int] = []
        while True:
            result[:0] = self.added[concat]
            state = self.parent[concat]
            concat = int(self.graph.entry_node[state])
            if concat not in self.rebuilt:
                return [state, *result]

    def _find_states(self) -> None:
        graph = self.graph
        # of sequences of pieces: the number of one with a piece more, and the entry that is it
        longer: dict[tuple[int, int], int] = {}
        state_of: dict[int, int] = {}
        pieces: dict[int, list[int]] = {}
        for v in range(graph.n_forward):
            if graph.op(v) not in CONCATS or not len(graph.inputs(v)):
                continue
            own = graph.inputs(v).tolist()
            before = int(graph.entry_node[own[0]])
            if before in pieces and _axis(graph, before) == _axis(graph, v):
                own[:1] = pieces[before]
            pieces[v] = own
            at, covered, parent = -1, 1, own[0]
            for count, entry in enumerate(own, 1):
                at = longer.setdefault((at, entry), len(longer))
                if count < len(own) and at in state_of:
                    covered, parent = count, state_of[at]
            state_of.setdefault(at, int(graph.first[v]))
            self.parent[v], self.added[v] = parent, tuple(own[covered:])

    def _layer(self, concat: int) -> DenseLayer | None:
        """What leads from the state that a Concat extends to what it adds; None where nothing."""
        graph, state, added = self.graph, self.parent[concat], self.added[concat]
        maker = int(graph.entry_node[state])
        if graph.variable[maker]:
            return None
        back = _ancestors(graph, (int(graph.entry_node[e]) for e in added), maker)
        reached: set[int] = set()
        heads = []
        for v in sorted(back):
            reads = graph.inputs(v).tolist()
            if state in reads:
                heads.append(v)
            if state in reads or any(int(graph.entry_node[e]) in reached for e in reads):
                reached.add(v)
        if not heads:
            return None
        made_here = maker if maker in self.parent else -1
        return DenseLayer(state, made_here, concat, tuple(heads), tuple(sorted(reached)), added)


def readers_of(graph: TrainingGraph) -> dict[int, list[int]]:
    """{entry: forward nodes that read it, each once, in order}."""
    result: dict[int, list[int]] = {}
    for v in range(graph.n_forward):
        for entry in dict.fromkeys(graph.inputs(v).tolist()):
            result.setdefault(entry, []).append(v)
    return result


def _ancestors(graph: TrainingGraph, nodes: Iterable[int], after: int) -> set[int]:
    """``nodes`` and what they need, as far as it comes after a node."""
    found: set[int] = set()
    waiting = list(nodes)
    while waiting:
        v = waiting.pop()
        if v > after and v not in found and not graph.variable[v]:
            found.add(v)
            waiting += graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]].tolist()
    return found


def _axis(graph: TrainingGraph, node: int) -> str:
    attrs = graph.kinds[graph.kind[node]].attrs
    return str(attrs.get("dim", attrs.get("axis", "1")))
