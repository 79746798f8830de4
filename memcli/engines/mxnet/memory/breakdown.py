"""What is alive at the moment of the live peak, tensor by tensor.

The pool's allocation (:func:`memcli.engines.mxnet.memory.pool.allocate`) tells the most bytes that
are alive at once; here the same run is walked once more, with the same counts of readers and the
same sharing of blocks, to say which tensors those bytes are. Bytes are of true element sizes, so
that they add up to :attr:`memcli.engines.mxnet.memory.model.Cost.live_peak_bytes` exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.graph.cost import DEFAULT_MATCH_RANGE
from memcli.graph.training import Flags, TrainingGraph
from memcli.results.live_peak import FEATURE_MAPS, GRADIENTS, RECOMPUTED, LivePeak, LiveTensor


def forward_op(graph: TrainingGraph, node: int) -> str:
    """The name of the operator that a node belongs to: its own, or that whose gradient it is."""
    owner = int(graph.owner[node])
    return graph.op(owner if node >= graph.n_forward and owner >= 0 else node)


@dataclass
class _Block:
    """A block of the pool while it is in use."""

    refs: int
    size: int
    entry: int  # what it holds now; numbers of copies begin at n_entries


class _Walk:
    """The pool's use, step by step."""

    def __init__(
        self,
        model: MXNetModel,
        mark: Flags,
        order: list[int],
        counts: list[int],
        storage: list[int],
    ) -> None:
        self.graph = model.graph
        self.mark = mark
        self.order = order
        self.counts = counts
        self.storage = storage
        self.blocks: dict[int, _Block] = {}
        # plain lists, because single elements of an array are slow to read
        g = self.graph
        self.first = g.first.tolist()
        self.in_ptr = g.in_ptr.tolist()
        self.in_node = g.in_node.tolist()
        self.in_entry = g.in_entry.tolist()
        self.ignored = g.in_ignored.tolist()

    def read(self, step: int) -> list[int]:
        """Entries whose values the step's node reads; copies from n_entries on."""
        g, node = self.graph, self.order[step]
        base = node - g.n_nodes if node >= g.n_nodes else node
        found = []
        for i in range(self.in_ptr[base], self.in_ptr[base + 1]):
            if not self.ignored[i]:
                copied = self.reads_copy(self.in_node[i], node)
                found.append(self.in_entry[i] + (g.n_entries if copied else 0))
        return found

    def reads_copy(self, source: int, node: int) -> bool:
        """Whether ``node`` reads the recomputed copy of ``source`` (``execution_order.mapped``)."""
        g = self.graph
        if source >= len(self.mark) or not self.mark[source]:
            return False
        if node >= g.n_nodes:
            return True
        owner = int(g.owner[node])
        return owner >= 0 and bool(self.mark[owner])

    def made(self, step: int) -> range:
        """Entries that the step's node makes."""
        g, node = self.graph, self.order[step]
        shift = g.n_entries if node >= g.n_nodes else 0
        base = node - g.n_nodes if node >= g.n_nodes else node
        return range(self.first[base] + shift, self.first[base + 1] + shift)

    def take(self, step: int) -> None:
        """Put the step's outputs into their blocks."""
        g, node = self.graph, self.order[step]
        base = node - g.n_nodes if node >= g.n_nodes else node
        views = self._views(base)
        for entry in self.made(step):
            number = self.storage[entry]
            if number < 0:
                continue
            block = self.blocks.get(number)
            if block is None:
                plain = entry % g.n_entries
                size = int(g.elements[plain] * g.itemsize[plain])
                self.blocks[number] = _Block(self.counts[entry], size, entry)
                continue
            # In place. A view holds what is there already; all others overwrite it.
            block.refs += self.counts[entry]
            if entry - self.made(step).start not in views:
                block.entry = entry

    def _views(self, base: int) -> set[int]:
        g = self.graph
        pairs = range(int(g.pair_ptr[base]), int(g.pair_ptr[base + 1]))
        return {int(g.pair_out[p]) for p in pairs if g.pair_identity[p]}

    def give_back(self, step: int) -> None:
        """Free what the step's node was the last to read, and what nobody reads."""
        for entry in self.read(step):
            number = self.storage[entry]
            block = self.blocks.get(number) if number >= 0 else None
            if block is not None:
                block.refs -= 1
                if block.refs == 0:
                    del self.blocks[number]
        for entry in self.made(step):
            number = self.storage[entry]
            block = self.blocks.get(number) if number >= 0 else None
            if block is not None and block.refs == 0:
                del self.blocks[number]


def live_at_peak(
    model: MXNetModel, flags: Flags, match_range: int = DEFAULT_MATCH_RANGE
) -> LivePeak:
    """The tensors alive when most bytes are, under a plan.

    Blocks that the plan reserves hold nothing; what lives in them later is what is told. Tensors
    that share a block (in-place operators, views) count once, as what the block holds at that
    moment: the tensor written last, where a view does not count as writing.

    Args:
        model: of the joint graph.
        flags: over forward nodes, the plan's marks.
        match_range: MXNet's ``NNVM_EXEC_MATCH_RANGE``.

    Returns:
        Sizes in bytes, which add up to ``model.evaluate(flags, (match_range,)).live_peak_bytes``.
    """
    model = model.without_reserved_blocks
    graph = model.graph
    mark = (flags & model.markable).astype(np.uint8)
    order = model.execution_order(mark)
    counts = model.reference_counts(order, mark)
    storage, _, _, peak_step = model.allocate(order, counts, mark, match_range)
    steps = order.tolist()
    walk = _Walk(model, mark, steps, counts.tolist(), storage.tolist())
    for step in range(int(peak_step) + 1):
        node = steps[step]
        base = node - graph.n_nodes if node >= graph.n_nodes else node
        if graph.variable[base]:
            continue
        walk.take(step)
        # Nothing is freed at the peak itself: what is read and what is made are both there.
        if step < peak_step:
            walk.give_back(step)
    return _peak(walk, int(peak_step))


def _peak(walk: _Walk, step: int) -> LivePeak:
    graph = walk.graph
    n, m = graph.n_nodes, graph.n_entries
    node = walk.order[step] if walk.order else -1
    running = "forward" if node < graph.n_forward else "backward" if node < n else "recomputation"
    peak = LivePeak(step, node - n if node >= n else node, running)
    for block in walk.blocks.values():
        entry = block.entry % m
        owner = int(graph.entry_node[entry])
        if block.entry >= m:
            part = RECOMPUTED
        else:
            part = FEATURE_MAPS if owner < graph.n_forward else GRADIENTS
        if block.size:
            peak.tensors.append(LiveTensor(entry, owner, part, block.size))
    return peak
