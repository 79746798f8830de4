"""The pool once more, arranged for searches that evaluate thousands of plans a second.

Same figures as :mod:`memcli.memory.pool` (a test compares them); what does not depend on the
plan is worked out once per graph: edges to parameters, which never enter the pool, are left out,
in-place pairs that can never hold are dropped, each node's outputs are in the order in which the
engine allocates them, and so is all of the execution order that no mark changes: the forward pass
as a whole, and in the backward pass which gradients follow one another. A gradient waits for other
gradients and for the forward pass, a copy for the forward pass alone, so that copies fall in
between and change nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import TrainingGraph
from memcli.memory.pool import AGAIN, BAD, KEPT, execution_order, lower_bound, mapped

Array = NDArray[Any]
# A pool that no evaluation stops at.
ANY = np.iinfo(np.int64).max
# Sizes of tensors that are told apart in what any pool needs: smaller ones hardly count.
_MOST_LEVELS = 24


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
    work: Array  # over forward nodes: what running it again costs, in any unit
    ignores_all: Array
    widest: int  # most in-place pairs of a node
    level: Array  # over entries: of how many levels of size it is, at least
    level_step: Array  # over levels: bytes by which it is larger than the one below


class Scratch(NamedTuple):
    """Working arrays of :func:`trace` and :func:`fill`, so that nothing is allocated per plan."""

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


def layout(graph: TrainingGraph, work: Array | None = None) -> Layout:
    """The layout of a graph; ``work`` over forward nodes, FLOPs where it is not given."""
    n, m, n_forward = graph.n_nodes, graph.n_entries, graph.n_forward
    none = np.zeros(n_forward, np.uint8)
    order = execution_order(
        n, graph.in_ptr, graph.in_node, graph.dep_ptr, graph.dep_node, graph.owner, graph.heads,
        none,
    )  # fmt: skip
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
        n=n, m=m, n_forward=n_forward, prefix=flat(prefix),
        tour_node=flat(tour[:, 0]), tour_holder=flat(tour[:, 1]),
        visit_ptr=visit_ptr, visit_node=visit_node,
        read_ptr=pointers(reader[reads]), read_node=flat(graph.in_node[reads]),
        read_entry=flat(graph.in_entry[reads]),
        pair_ptr=pointers(of[fits]), pair_node=flat(pair_node[fits]), pair_in=flat(pair_in[fits]),
        pair_slot=flat(slot[fits]), pair_out=flat(pair_out[fits]),
        pair_identity=flat(graph.pair_identity[: len(holds)][holds][fits]),
        out_ptr=pointers(graph.entry_node[made]), out_entry=flat(ranked), out_plain=flat(made),
        size=np.maximum(graph.elements, 0) * 4, true=graph.entry_bytes.astype(np.int64),
        owner=graph.owner.astype(np.int32), least_counts=counts,
        flops=np.asarray(graph.flops[:n_forward], np.float64),
        work=np.asarray(graph.flops[:n_forward] if work is None else work, np.float64),
        ignores_all=graph.ignores_all,
        widest=1 + int(np.diff(graph.in_ptr).max(initial=0)), level=level, level_step=level_step,
    )  # fmt: skip


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


def _levels(sizes: Array, made: Array) -> tuple[Array, Array]:
    """Levels of size: of how many each entry is, and by how many bytes each is above the last.

    ``sizes`` over entries, bytes; ``made``: the entries in question. The largest sizes are a level
    each, and what is smaller is of none.
    """
    steps = np.unique(sizes[made])[-_MOST_LEVELS:]
    level = np.searchsorted(steps, sizes, side="right").astype(np.int32)
    return level, np.diff(steps, prepend=0).astype(np.int64)


def scratch(lay: Layout) -> Scratch:
    """Working arrays for a layout."""
    n, m = lay.n, lay.m
    int32 = np.int32
    edges = 2 * len(lay.read_entry) + 1
    s = Scratch(
        order=np.zeros(2 * n, int32), seen=np.zeros(2 * n, int32), stack=np.zeros(2 * n + 1, int32),
        cursor=np.zeros(2 * n + 1, int32), counts=np.zeros(2 * m, int32),
        storage=np.zeros(2 * m, int32), source_ptr=np.zeros(2 * n + 1, int32),
        source=np.zeros(edges, int32), block_size=np.zeros(2 * m + 1, np.int64),
        block_refs=np.zeros(2 * m + 1, int32), block_live=np.zeros(2 * m + 1, np.int64),
        block_true=np.zeros(2 * m + 1, np.int64),
        before=np.zeros(2 * m + 1, int32), behind=np.zeros(2 * m + 1, int32),
        class_size=np.zeros(2 * m + 1, np.int64), class_head=np.zeros(2 * m + 1, int32),
        class_tail=np.zeros(2 * m + 1, int32), taken=np.zeros(lay.widest, np.uint8),
        epoch=np.zeros(1, int32), block_level=np.zeros(2 * m + 1, int32),
        level_now=np.zeros(len(lay.level_step), np.int64),
        level_most=np.zeros(len(lay.level_step), np.int64),
    )  # fmt: skip
    # the forward pass is the same under every plan
    first = len(lay.prefix)
    reads = [lay.read_entry[lay.read_ptr[v] : lay.read_ptr[v + 1]] for v in lay.prefix]
    s.order[:first] = lay.prefix
    s.seen[lay.prefix] = np.iinfo(int32).max
    s.source_ptr[1 : first + 1] = np.cumsum([len(entries) for entries in reads])
    if first:
        s.source[: s.source_ptr[first]] = np.concatenate(reads)
    return s


@numba.njit(cache=True)
def trace(lay, s, mark):
    """Order of execution and who reads what under a plan, into the scratch arrays.

    Returns ``(steps, flops, work)``: the number of steps, and what runs again in FLOPs and at the
    layout's cost.
    """
    # local names: reading a field of a tuple of arrays again and again is slow
    flops = lay.flops
    least_counts = lay.least_counts
    owner = lay.owner
    read_entry = lay.read_entry
    read_node = lay.read_node
    read_ptr = lay.read_ptr
    tour_holder = lay.tour_holder
    tour_node = lay.tour_node
    visit_node = lay.visit_node
    visit_ptr = lay.visit_ptr
    work = lay.work
    counts = s.counts
    cursor = s.cursor
    order = s.order
    seen = s.seen
    source = s.source
    source_ptr = s.source_ptr
    stack = s.stack
    n, m, n_forward = lay.n, lay.m, lay.n_forward
    s.epoch[0] += 1
    epoch = s.epoch[0]
    count = lay.prefix.shape[0]
    edges = source_ptr[count]
    again = 0.0
    again_flops = 0.0
    for e in range(m):
        counts[e] = least_counts[e]
        counts[m + e] = 0
    for k in range(tour_node.shape[0]):
        node = tour_node[k]
        holder = tour_holder[k]
        if holder < 0:
            order[count] = node
            source_ptr[count] = edges
            count += 1
            own = owner[node]
            turns = own >= 0 and mark[own] != KEPT
            for i in range(read_ptr[node], read_ptr[node + 1]):
                e = read_entry[i]
                if turns:
                    of = read_node[i]
                    if of < n_forward and (mark[of] == AGAIN or (of == own)):
                        e += m
                counts[e] += 1
                source[edges] = e
                edges += 1
            continue
        turns = holder < n and mark[holder] != KEPT
        if turns and (mark[node] == AGAIN or holder == node):
            node += n
        if seen[node] >= epoch:
            continue
        # a copy, with what it waits for before it
        top = 0
        stack[0] = node
        seen[node] = epoch
        cursor[0] = visit_ptr[node - n if node >= n else node]
        while top >= 0:
            node = stack[top]
            base = node - n if node >= n else node
            at = cursor[top]
            if at < visit_ptr[base + 1]:
                nxt = visit_node[at]
                cursor[top] = at + 1
                if node >= n and mark[nxt] == AGAIN:
                    nxt += n
                if seen[nxt] < epoch:
                    seen[nxt] = epoch
                    top += 1
                    stack[top] = nxt
                    cursor[top] = visit_ptr[nxt - n if nxt >= n else nxt]
                continue
            order[count] = node
            source_ptr[count] = edges
            count += 1
            top -= 1
            if node >= n:
                again += work[base]
                again_flops += flops[base]
            for i in range(read_ptr[base], read_ptr[base + 1]):
                e = read_entry[i]
                if node >= n and mark[read_node[i]] == AGAIN:
                    e += m
                counts[e] += 1
                source[edges] = e
                edges += 1
    source_ptr[count] = edges
    return count, again_flops, again


@numba.njit(cache=True)
def fill(lay, s, mark, steps, match_range, ceiling, levels):
    """The pool over the traced order.

    As soon as the pool is above ``ceiling``, bytes, the rest is left undone: what is returned are
    then lower bounds. ``levels``: whether the last of the results is wanted; 0 else.

    Returns ``(total, pool, live peak, least)`` in bytes: MXNet's own figure, which counts every
    element as 4 bytes; the same blocks with true element sizes; the most that is alive at once;
    what any pool needs that gives each tensor a block of its own: as many blocks of each size and
    more as tensors of that size and more are alive at once, small sizes left out.
    """
    # local names: reading a field of a tuple of arrays again and again is slow
    ignores_all = lay.ignores_all
    out_entry = lay.out_entry
    out_plain = lay.out_plain
    out_ptr = lay.out_ptr
    owner = lay.owner
    pair_identity = lay.pair_identity
    pair_in = lay.pair_in
    pair_node = lay.pair_node
    pair_out = lay.pair_out
    pair_ptr = lay.pair_ptr
    pair_slot = lay.pair_slot
    sizes = lay.size
    true = lay.true
    before = s.before
    behind = s.behind
    block_live = s.block_live
    block_true = s.block_true
    block_refs = s.block_refs
    block_size = s.block_size
    class_head = s.class_head
    class_size = s.class_size
    class_tail = s.class_tail
    counts = s.counts
    level = lay.level
    level_step = lay.level_step
    block_level = s.block_level
    level_now = s.level_now
    level_most = s.level_most
    level_now[:] = 0
    level_most[:] = 0
    order = s.order
    source = s.source
    source_ptr = s.source_ptr
    storage = s.storage
    taken = s.taken
    n, m = lay.n, lay.m
    for e in range(2 * m):
        storage[e] = BAD
    n_blocks = 0
    n_classes = 0
    live = 0
    peak = 0
    total = 0
    pool = 0
    for k in range(steps):
        node = order[k]
        copy = node >= n
        base = node - n if copy else node
        shift = m if copy else 0
        if pair_ptr[base + 1] > pair_ptr[base]:
            for p in range(pair_ptr[base], pair_ptr[base + 1]):
                taken[pair_slot[p]] = 0
            for p in range(pair_ptr[base], pair_ptr[base + 1]):
                out = pair_out[p] + shift
                entry = pair_in[p]
                if mapped(pair_node[p], node, mark, owner, n) >= n:
                    entry += m
                block = storage[entry]
                if block < 0 or taken[pair_slot[p]] or storage[out] != BAD:
                    continue
                if counts[out] == 0:
                    continue
                if pair_identity[p] or (block_refs[block] == 1 and not ignores_all[base]):
                    taken[pair_slot[p]] = 1
                    storage[out] = block
                    block_refs[block] += counts[out]
        for j in range(out_ptr[base], out_ptr[base + 1]):
            entry = out_entry[j]
            if storage[entry + shift] != BAD:
                continue
            size = sizes[entry]
            block = -1
            if match_range > 0 and n_classes > 0:
                mid = lower_bound(class_size, size, n_classes)
                chosen = -1
                if mid < n_classes and class_size[mid] <= size * match_range:
                    chosen = mid
                    block = class_head[mid]
                    class_head[mid] = behind[block]
                    if behind[block] >= 0:
                        before[behind[block]] = -1
                elif mid > 0 and class_size[mid - 1] >= size // match_range:
                    chosen = mid - 1
                    block = class_tail[chosen]
                    class_tail[chosen] = before[block]
                    if before[block] >= 0:
                        behind[before[block]] = -1
                    else:
                        class_head[chosen] = -1
                if chosen >= 0:
                    if class_head[chosen] < 0:
                        n_classes -= 1
                        for t in range(chosen, n_classes):
                            class_size[t] = class_size[t + 1]
                            class_head[t] = class_head[t + 1]
                            class_tail[t] = class_tail[t + 1]
                    if size > block_size[block]:
                        total += size - block_size[block]
                        block_size[block] = size
            if block < 0:
                block = n_blocks
                n_blocks += 1
                block_size[block] = size
                block_true[block] = 0
                total += size
            whole = (true[entry] + 3) // 4 * 4
            if whole > block_true[block]:
                pool += whole - block_true[block]
                block_true[block] = whole
            block_refs[block] = counts[entry + shift]
            block_live[block] = true[entry]
            live += true[entry]
            storage[entry + shift] = block
            if levels:
                block_level[block] = level[entry]
                for t in range(level[entry]):
                    level_now[t] += 1
                    level_most[t] = max(level_most[t], level_now[t])
        if live > peak:
            peak = live
        if pool > ceiling:
            break
        n_sources = source_ptr[k + 1] - source_ptr[k]
        n_out = out_ptr[base + 1] - out_ptr[base]
        for i in range(n_sources + n_out):
            if i < n_sources:
                block = storage[source[source_ptr[k] + i]]
                if block < 0:
                    continue
                block_refs[block] -= 1
                if block_refs[block] != 0:
                    continue
            else:
                block = storage[out_plain[out_ptr[base] + i - n_sources] + shift]
                if block < 0 or block_refs[block] != 0:
                    continue
            live -= block_live[block]
            block_live[block] = 0
            if levels:
                for t in range(block_level[block]):
                    level_now[t] -= 1
            size = block_size[block]
            at = lower_bound(class_size, size, n_classes)
            if at == n_classes or class_size[at] != size:
                for t in range(n_classes, at, -1):
                    class_size[t] = class_size[t - 1]
                    class_head[t] = class_head[t - 1]
                    class_tail[t] = class_tail[t - 1]
                n_classes += 1
                class_size[at] = size
                class_head[at] = block
                before[block] = -1
            else:
                last = class_tail[at]
                behind[last] = block
                before[block] = last
            behind[block] = -1
            class_tail[at] = block
    least = 0
    for t in range(level_step.shape[0]):
        least += level_most[t] * level_step[t]
    return total, pool, peak, least
