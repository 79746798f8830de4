"""What of a graph does not depend on the plan, arranged for the pool's kernel.

The kernel is :mod:`memcli.engines.mxnet.memory.pool_kernel`. Worked out once for a graph: edges to
parameters, which never enter the pool, are left out, in-place pairs that can never hold are
dropped, each node's outputs are in the order in which the engine allocates them, and so is all of
the execution order that no mark changes: the forward pass as a whole, and in the backward pass
which gradients follow one another. A gradient waits for other gradients and for the forward pass, a
copy for the forward pass alone, so that copies fall in between and change nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcli.graph.execution_order import execution_order
from memcli.graph.training import TrainingGraph

Array = NDArray[Any]
# Sizes of tensors that are told apart in what any pool needs: smaller ones hardly count.
_MOST_LEVELS = 24
# The most blocks that a plan may reserve.
MOST_RESERVED = 96


class Layout(NamedTuple):
    """What of a graph does not depend on the plan. Nodes and entries are numbered as there."""

    n: int  # nodes
    m: int  # entries
    n_forward: int
    prefix: Array  # forward nodes in execution order
    tour_node: Array  # the backward pass: nodes to run, and forward nodes that they wait for
    tour_holder: Array  # -1 to run it, else the forward node whose gradient waits, n for none
    visit_ptr: Array  # nodes + 1: what a node waits for, inputs before control dependencies
    visit_node: Array
    read_ptr: Array  # nodes + 1: pool entries that a node reads and does not ignore
    read_node: Array
    read_entry: Array
    pair_ptr: Array  # nodes + 1: in-place pairs that can hold
    pair_node: Array
    pair_in: Array  # entry
    pair_slot: Array  # input number
    pair_out: Array  # entry
    pair_identity: Array
    out_ptr: Array  # nodes + 1: outputs in the order of allocation
    out_entry: Array
    out_plain: Array  # the same outputs in their own order
    size: Array  # over entries: bytes, elements counted as 4
    true: Array  # over entries: bytes
    owner: Array
    least_counts: Array  # over entries: how often each is an output, or read in the forward pass
    flops: Array  # over forward nodes
    work: Array  # over forward nodes: what recomputing it costs, in any unit
    ignores_all: Array
    widest: int  # most in-place pairs of a node
    level: Array  # over entries: of how many levels of size it is, at least
    level_step: Array  # over levels: bytes by which it is larger than the one below
    reserve_at: int  # before which step of the order a plan's reserved blocks are allocated
    reserve_item: int  # bytes of an element of theirs
    reserve_copied: int  # bytes of what takes one of them, or a block of its own
    reserve_extra: int  # bytes that reserving some takes besides


class Scratch(NamedTuple):
    """Working arrays of an evaluation, so that nothing is allocated per plan."""

    order: Array
    seen: Array
    stack: Array
    cursor: Array
    counts: Array
    storage: Array
    source_ptr: Array
    source: Array
    block_size: Array
    block_refs: Array
    block_live: Array
    block_true: Array
    before: Array
    behind: Array
    class_size: Array
    class_head: Array
    class_tail: Array
    taken: Array
    epoch: Array
    block_level: Array
    level_now: Array
    level_most: Array


class Reservable(NamedTuple):
    """Where a graph may reserve blocks of its pool, and what that takes."""

    before: int  # forward node
    itemsize: int  # bytes of an element of theirs
    least: int  # elements of a block
    copied: int  # bytes of the argument, whose copy stays
    extra: int  # bytes at most that the pool has besides


def layout_of(
    graph: TrainingGraph, work: Array | None = None, reservable: Reservable | None = None
) -> Layout:
    """The layout of a graph.

    Args:
        graph: the joint graph.
        work: over forward nodes, what recomputing one costs, in any unit; None: its FLOPs.
        reservable: where a plan may reserve blocks; None: nowhere.
    """
    n, m, n_forward = graph.n_nodes, graph.n_entries, graph.n_forward
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
    variable = graph.variable.astype(bool)
    forward = order[np.cumsum(order >= n_forward) == 0]
    prefix = forward[~variable[forward]]
    pooled = graph.external == 0

    reader = np.repeat(np.arange(n), np.diff(graph.in_ptr))
    reads = (graph.in_ignored == 0) & ~variable[graph.in_node] & pooled[graph.in_entry]
    waiter = np.concatenate([reader, np.repeat(np.arange(n), np.diff(graph.dep_ptr))])
    waits = np.argsort(waiter, kind="stable")  # inputs before control dependencies
    source = np.concatenate([graph.in_node, graph.dep_node])[waits]
    visits = ~variable[source]
    made = np.flatnonzero(pooled & (graph.elements >= 0) & ~variable[graph.entry_node])
    # largest first, of equal ones the last first
    ranked = made[np.lexsort((-made, -graph.elements[made], graph.entry_node[made]))]

    of = np.repeat(np.arange(n), np.diff(graph.pair_ptr))
    slot, pair_out = graph.pair_in[: len(of)], graph.first[of] + graph.pair_out[: len(of)]
    holds = ~variable[of] & (slot < np.diff(graph.in_ptr)[of]) & (pair_out < graph.first[of + 1])
    of, slot, pair_out = of[holds], slot[holds], pair_out[holds]
    pair_node = graph.in_node[graph.in_ptr[of] + slot]
    pair_in = graph.in_entry[graph.in_ptr[of] + slot]
    same = (graph.elements[pair_in] == graph.elements[pair_out]) & (
        graph.itemsize[pair_in] == graph.itemsize[pair_out]
    )
    fits = same & pooled[pair_out] & pooled[pair_in] & ~variable[pair_node]
    counts = np.zeros(m, np.int32)
    np.add.at(counts, graph.outputs, 1)
    np.add.at(counts, graph.in_entry[reads & np.isin(reader, prefix)], 1)

    def pointers(nodes: Array) -> Array:
        return np.concatenate([[0], np.cumsum(np.bincount(nodes, minlength=n))]).astype(np.int32)

    def flat(values: Array) -> Array:
        return np.asarray(values, np.int32)

    level, level_step = _levels(graph.entry_bytes, made)
    visit_ptr, visit_node = pointers(waiter[waits][visits]), flat(source[visits])
    tour = _tour(graph, visit_ptr.tolist(), visit_node.tolist(), set(prefix.tolist()))
    return Layout(
        n=n,
        m=m,
        n_forward=n_forward,
        prefix=flat(prefix),
        tour_node=flat(tour[:, 0]),
        tour_holder=flat(tour[:, 1]),
        visit_ptr=visit_ptr,
        visit_node=visit_node,
        read_ptr=pointers(reader[reads]),
        read_node=flat(graph.in_node[reads]),
        read_entry=flat(graph.in_entry[reads]),
        pair_ptr=pointers(of[fits]),
        pair_node=flat(pair_node[fits]),
        pair_in=flat(pair_in[fits]),
        pair_slot=flat(slot[fits]),
        pair_out=flat(pair_out[fits]),
        pair_identity=flat(graph.pair_identity[: len(holds)][holds][fits]),
        out_ptr=pointers(graph.entry_node[made]),
        out_entry=flat(ranked),
        out_plain=flat(made),
        size=np.maximum(graph.elements, 0) * 4,
        true=graph.entry_bytes.astype(np.int64),
        owner=graph.owner.astype(np.int32),
        least_counts=counts,
        flops=np.asarray(graph.flops[:n_forward], np.float64),
        work=np.asarray(graph.flops[:n_forward] if work is None else work, np.float64),
        ignores_all=graph.ignores_all,
        widest=1 + int(np.diff(graph.in_ptr).max(initial=0)),
        level=level,
        level_step=level_step,
        reserve_at=0 if reservable is None else int(np.flatnonzero(prefix == reservable.before)[0]),
        reserve_item=4 if reservable is None else reservable.itemsize,
        reserve_copied=0 if reservable is None else reservable.copied,
        reserve_extra=0 if reservable is None else reservable.extra,
    )


def _tour(
    graph: TrainingGraph, visit_ptr: list[int], visit_node: list[int], before: set[int]
) -> Array:
    """The backward pass in execution order: pairs of a node and who waits for it.

    ``visit_node[visit_ptr[v]:]`` is what a node waits for. With -1 the node runs; else it is a
    forward node that the gradient of another one waits for (the graph's number of nodes where it
    is nobody's gradient), whose copy runs now, if there is one and it did not yet. Forward nodes
    of ``before`` have run already.
    """
    n, n_forward = graph.n_nodes, graph.n_forward
    owner, variable = graph.owner.tolist(), graph.variable.tolist()
    tour: list[tuple[int, int]] = []
    seen: set[int] = set()

    def waited_for(node: int) -> Iterator[int]:
        return iter(dict.fromkeys(visit_node[visit_ptr[node] : visit_ptr[node + 1]]))

    def needs(node: int, holder: int) -> None:
        if holder < n or node not in before:
            tour.append((node, holder))

    for head in graph.heads.tolist():
        if head < n_forward:
            if not variable[head]:
                needs(head, n)
            continue
        if head in seen:
            continue
        seen.add(head)
        stack = [(head, waited_for(head))]
        while stack:
            node, rest = stack[-1]
            for source in rest:
                if source < n_forward:
                    needs(source, owner[node] if owner[node] >= 0 else n)
                elif source not in seen:
                    seen.add(source)
                    stack.append((source, waited_for(source)))
                    break
            else:
                tour.append((node, -1))
                stack.pop()
    return np.array(tour, np.int64).reshape(-1, 2)


def _levels(sizes: Array, made: Array, most: int = _MOST_LEVELS) -> tuple[Array, Array]:
    """Levels of size: of how many each entry is, and by how many bytes each is above the last.

    ``sizes`` over entries, bytes; ``made``: the entries in question. The ``most`` largest sizes
    are a level each, and what is smaller is of none.
    """
    steps = np.unique(sizes[made])[-most:]
    level = np.searchsorted(steps, sizes, side="right").astype(np.int32)
    return level, np.diff(steps, prepend=0).astype(np.int64)


def with_levels(layout: Layout, most: int) -> Layout:
    """The layout with the ``most`` largest sizes told apart in what any pool needs."""
    level, level_step = _levels(layout.true, layout.out_entry, most)
    return layout._replace(level=level, level_step=level_step)


def scratch(layout: Layout) -> Scratch:
    """Working arrays for a layout."""
    n, m = layout.n, layout.m
    int32 = np.int32
    edges = 2 * len(layout.read_entry) + 1
    blocks = 2 * m + 1 + MOST_RESERVED
    s = Scratch(
        order=np.zeros(2 * n, int32),
        seen=np.zeros(2 * n, int32),
        stack=np.zeros(2 * n + 1, int32),
        cursor=np.zeros(2 * n + 1, int32),
        counts=np.zeros(2 * m, int32),
        storage=np.zeros(2 * m, int32),
        source_ptr=np.zeros(2 * n + 1, int32),
        source=np.zeros(edges, int32),
        block_size=np.zeros(blocks, np.int64),
        block_refs=np.zeros(blocks, int32),
        block_live=np.zeros(blocks, np.int64),
        block_true=np.zeros(blocks, np.int64),
        before=np.zeros(blocks, int32),
        behind=np.zeros(blocks, int32),
        class_size=np.zeros(blocks, np.int64),
        class_head=np.zeros(blocks, int32),
        class_tail=np.zeros(blocks, int32),
        taken=np.zeros(layout.widest, np.uint8),
        epoch=np.zeros(1, int32),
        block_level=np.zeros(blocks, int32),
        level_now=np.zeros(len(layout.level_step), np.int64),
        level_most=np.zeros(len(layout.level_step), np.int64),
    )
    # the forward pass is the same under every plan
    first = len(layout.prefix)
    reads = [layout.read_entry[layout.read_ptr[v] : layout.read_ptr[v + 1]] for v in layout.prefix]
    s.order[:first] = layout.prefix
    s.seen[layout.prefix] = np.iinfo(int32).max
    s.source_ptr[1 : first + 1] = np.cumsum([len(entries) for entries in reads])
    if first:
        s.source[: s.source_ptr[first]] = np.concatenate(reads)
    return s
