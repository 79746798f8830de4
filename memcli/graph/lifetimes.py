"""What of a training step's memory does not depend on the plan.

Marks put copies of forward nodes between the nodes of the graph without marks, and change who
reads which copy. They do not change the order of the other nodes: forward nodes wait for forward
nodes alone, so the depth-first visit of a copy reaches no backward node, and backward nodes are
visited by edges among themselves, which no mark changes (``mapped`` of
:mod:`memcli.engines.mxnet.memory.pool` only ever replaces a forward node). So the *places* of
originals and gradients, in the order of the graph without marks, are the same under every plan as
far as *before* and *after* go, and gradients live from the same place to the same place under all
plans.

Two tensors can share a block in two ways only. By an identity pair, whoever else reads them:
such tensors are one *class* here, and a class counts once. By another in-place pair, if the pair's
operator is the last reader of its input: then the input is not read behind that operator, and here
it does not count while that operator runs, the output does.

This fails where an in-place pair names an input that is read for its shape alone: MXNet does not
count that reading, and may take a block that is somebody else's by then. No operator of MXNet
1.9.1 is registered so (a test asks the table); ``sound`` tells, and no bound is claimed without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from memcli.compiled import compiled
from memcli.graph.execution_order import execution_order
from memcli.graph.training import Flags, Ints, TrainingGraph

NEVER = np.iinfo(np.int64).max


@dataclass
class Spans:
    """When classes of tensors have a block, sorted by class and start: first and last places."""

    classes: Ints
    starts: Ints
    ends: Ints
    entries: Ints  # whose size each span has

    def summed(self, size: Ints, length: int) -> Ints:
        """Over places in the order: the sum of what has a block there.

        Args:
            size: over entries, in any unit.
            length: how many places there are.
        """
        return np.asarray(
            _sum_spans(self.classes, self.starts, self.ends, size[self.entries], length)
        )


@dataclass
class Lifetimes:
    """Facts that hold under every plan. ``place``: number in the order without marks."""

    order: Ints  # nodes without marks in execution order
    place: Ints  # over nodes: place in the order, -1 for nodes that are not run
    n_first: int  # places before the first backward node
    block: Ints  # over entries: class of tensors that may be views of one another
    bytes: Ints  # over entries: bytes in the pool, 0 for what is not in it
    paired: Flags  # over inputs: the reader may write its output over this input
    made: Ints  # over entries: place at which it is made, -1 for what is not in the pool
    until: Ints  # over entries: last place at which it is there whatever the plan
    turn: Ints  # over forward nodes: place by which a copy was run, where there is one, or NEVER
    sound: bool  # whether all of this holds for the graph
    gradients: Ints  # over places: bytes of gradients alone that live while the node runs
    least: Ints  # over places: bytes that live under every plan while the node runs
    gradient_spans: Spans  # what ``gradients`` sums up
    least_spans: Spans  # what ``least`` sums up

    def weighed(self, weight: Ints) -> Lifetimes:
        """The same facts with other sizes.

        Args:
            weight: over entries, equal for entries of one size.
        """
        weight = np.where(self.bytes > 0, weight, 0)
        length = len(self.order)
        return replace(
            self,
            bytes=weight,
            gradients=self.gradient_spans.summed(weight, length),
            least=self.least_spans.summed(weight, length),
        )


@compiled
def _classes(
    n,
    first,
    in_ptr,
    in_entry,
    in_ignored,
    pair_ptr,
    pair_in,
    pair_out,
    pair_identity,
    elements,
    itemsize,
    parent,
    paired,
):
    """Unite what identities share; note which inputs an output may be written over.

    False where a pair names an input that is not counted as read.
    """
    sound = True
    for v in range(n):
        for p in range(pair_ptr[v], pair_ptr[v + 1]):
            i = in_ptr[v] + pair_in[p]
            out = first[v] + pair_out[p]
            if i >= in_ptr[v + 1] or out >= first[v + 1]:
                continue
            source = in_entry[i]
            if elements[source] != elements[out] or itemsize[source] != itemsize[out]:
                continue
            sound &= not in_ignored[i]
            if not pair_identity[p]:
                paired[i] = 1
                continue
            a, b = source, out
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            parent[max(a, b)] = min(a, b)
    for e in range(parent.shape[0]):
        a = e
        while parent[a] != a:
            a = parent[a]
        parent[e] = a
    return sound


@compiled
def _sum_spans(keys, starts, ends, sizes, length):
    """Bytes at each place; of one key's spans, which are sorted by start, each place once."""
    change = np.zeros(length + 1, np.int64)
    current, reached, widest = -1, -1, 0
    k = 0
    while k < keys.shape[0]:
        current = keys[k]
        widest = 0
        last = k
        while last < keys.shape[0] and keys[last] == current:
            # of tensors that may share a block the least: their sizes are equal where they do
            widest = sizes[last] if last == k else min(widest, sizes[last])
            last += 1
        reached = -1
        for j in range(k, last):
            begin = max(starts[j], reached + 1)
            if ends[j] >= begin:
                change[begin] += widest
                change[ends[j] + 1] -= widest
                reached = ends[j]
        k = last
    return np.cumsum(change)[:length]


def step_bound(facts: Lifetimes) -> int:
    """Bytes that are alive at once whatever the plan.

    While a node runs: what it reads and writes; tensors of the forward pass that later forward
    nodes read, in the forward pass; gradients that are made and still to be read, in the backward
    pass; the graph's outputs, which are never freed. All but the first have the same lifetime
    under every plan. 0 where the facts do not hold.
    """
    return int(facts.least.max(initial=0)) if facts.sound else 0


def lifetimes(graph: TrainingGraph) -> Lifetimes:
    """The facts of a graph; linear in its size."""
    n, n_forward = graph.n_nodes, graph.n_forward
    none = np.zeros(n_forward, np.uint8)
    order = execution_order(
        n,
        graph.in_ptr,
        graph.in_node,
        graph.dep_ptr,
        graph.dep_node,
        graph.owner,
        graph.heads,
        none,
    )
    place = np.full(n, -1, np.int64)
    place[order] = np.arange(len(order))
    backward = np.flatnonzero(order >= n_forward)
    n_first = int(backward[0]) if len(backward) else len(order)

    block = np.arange(graph.n_entries)
    paired = np.zeros(len(graph.in_entry), np.uint8)
    sound = _classes(
        n,
        graph.first,
        graph.in_ptr,
        graph.in_entry,
        graph.in_ignored,
        graph.pair_ptr,
        graph.pair_in,
        graph.pair_out,
        graph.pair_identity,
        graph.elements,
        graph.itemsize,
        block,
        paired,
    )
    sound = bool(sound) and bool((order[n_first:] >= n_forward).all())
    pooled = (graph.external == 0) & (graph.variable[graph.entry_node] == 0)
    pooled &= place[graph.entry_node] >= 0
    size = np.where(pooled, graph.entry_bytes, 0)

    turn = np.full(n_forward, NEVER)
    for edges, pointers in ((graph.in_node, graph.in_ptr), (graph.dep_node, graph.dep_ptr)):
        reader = np.repeat(np.arange(n), np.diff(pointers))
        own = (graph.owner[reader] == edges) & (place[reader] >= 0)
        np.minimum.at(turn, edges[own], place[reader[own]])

    # Spans of places at which an entry's class has a block, whatever the plan.
    reader = np.repeat(np.arange(n), np.diff(graph.in_ptr))
    counts = (graph.in_ignored == 0) & (place[reader] >= 0) & (size[graph.in_entry] > 0)
    # Under a plan, a backward node may read a copy, which is there while it runs at the least;
    # a tensor's forward readers read the original.
    fixed = counts & ((graph.in_node >= n_forward) | (reader < n_forward))
    until = np.where(pooled, place[graph.entry_node], -1)
    until_read = place[reader] - paired
    np.maximum.at(until, graph.in_entry[fixed], until_read[fixed])
    results = graph.outputs
    until[results[pooled[results]]] = len(order) - 1
    made = np.flatnonzero(size > 0)
    held = np.flatnonzero(counts & ~fixed & (paired == 0))
    at = place[reader[held]]
    keys = np.concatenate([block[made], block[graph.in_entry[held]]])
    starts = np.concatenate([place[graph.entry_node[made]], at])
    ends = np.concatenate([until[made], at])
    entries = np.concatenate([made, graph.in_entry[held]])
    rank = np.lexsort((ends, starts, keys))
    always = Spans(keys[rank], starts[rank], ends[rank], entries[rank])

    # gradients that can be no view of a forward tensor
    mixed = np.zeros(graph.n_entries, bool)
    mixed[block[graph.entry_node < n_forward]] = True
    alone = made[(graph.entry_node[made] >= n_forward) & ~mixed[block[made]]]
    rank = alone[np.lexsort((until[alone], place[graph.entry_node[alone]], block[alone]))]
    made_alone = Spans(block[rank], place[graph.entry_node[rank]], until[rank], rank)
    until[~pooled] = -1
    begin = np.where(pooled, place[graph.entry_node], -1)
    return Lifetimes(
        order,
        place,
        n_first,
        block,
        size,
        paired,
        begin,
        until,
        turn,
        sound,
        made_alone.summed(size, len(order)),
        always.summed(size, len(order)),
        made_alone,
        always,
    )
