"""The pool once more, for searches that evaluate thousands of plans a second.

Same figures as :mod:`memcli.engines.mxnet.memory.pool` (a test compares them), on graphs that are
arranged for it (:mod:`memcli.engines.mxnet.memory.pool_layout`): :func:`trace` puts a plan's copies
into the order of execution, :func:`fill` walks it and allocates.
"""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled, lower_bound
from memcli.engines.mxnet.memory.pool import BAD
from memcli.graph.execution_order import mapped
from memcli.marks import AGAIN, KEPT

# A pool that no evaluation stops at.
ANY = np.iinfo(np.int64).max
# Reserved blocks of a plan that reserves none.
NOTHING = np.zeros(0, np.int64)


@compiled
def trace(layout, scratch, mark):
    """Put the order of execution, and who reads what, under a plan into the scratch arrays.

    Args:
        layout: of the graph, a ``Layout``.
        scratch: its ``Scratch``; ``order``, ``source``, ``source_ptr`` and ``counts`` are filled.
        mark: over forward nodes, the plan.

    Returns:
        The number of steps, and what is recomputed in FLOPs and at the layout's cost of operators.
    """
    # local names: reading a field of a tuple of arrays again and again is slow
    flops = layout.flops
    least_counts = layout.least_counts
    owner = layout.owner
    read_entry = layout.read_entry
    read_node = layout.read_node
    read_ptr = layout.read_ptr
    tour_holder = layout.tour_holder
    tour_node = layout.tour_node
    visit_node = layout.visit_node
    visit_ptr = layout.visit_ptr
    work = layout.work
    counts = scratch.counts
    cursor = scratch.cursor
    order = scratch.order
    seen = scratch.seen
    source = scratch.source
    source_ptr = scratch.source_ptr
    stack = scratch.stack
    n, m, n_forward = layout.n, layout.m, layout.n_forward
    scratch.epoch[0] += 1
    epoch = scratch.epoch[0]
    count = layout.prefix.shape[0]
    edges = source_ptr[count]
    recomputed_work = 0.0
    recomputed_flops = 0.0
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
                recomputed_work += work[base]
                recomputed_flops += flops[base]
            for i in range(read_ptr[base], read_ptr[base + 1]):
                e = read_entry[i]
                if node >= n and mark[read_node[i]] == AGAIN:
                    e += m
                counts[e] += 1
                source[edges] = e
                edges += 1
    source_ptr[count] = edges
    return count, recomputed_flops, recomputed_work


@compiled
def _release(block, size, before, behind, class_size, class_head, class_tail, n_classes):
    """Put a block among the free ones, behind those of its size; how many sizes there are then.

    :func:`fill` has the same lines where it lets go of what was read: with a call there a whole
    evaluation takes twice the time.
    """
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
    return n_classes


@compiled
def fill(layout, scratch, mark, steps, match_range, ceiling, levels, reserved):
    """The pool over the traced order.

    Args:
        layout: of the graph, a ``Layout``.
        scratch: its ``Scratch``, as :func:`trace` left it.
        mark: over forward nodes, the plan.
        steps: as :func:`trace` gives them.
        match_range: MXNet's ``NNVM_EXEC_MATCH_RANGE``.
        ceiling: bytes; as soon as the pool is above, the rest is left undone, and what is returned
            are lower bounds.
        levels: whether the last of the results is wanted; it is 0 else.
        reserved: elements of blocks that are there, and free, from the layout's ``reserve_at`` on;
            0 for none (:mod:`memcli.engines.mxnet.rewrites.reserved_blocks`).

    Returns:
        ``(total, pool, live peak, least)`` in bytes: MXNet's own figure, which counts every element
        as 4 bytes; the same blocks with true element sizes; the most that is alive at once; what
        any pool needs that gives each tensor a block of its own: as many blocks of each size and
        more as tensors of that size and more are alive at once, small sizes left out.
    """
    # local names: reading a field of a tuple of arrays again and again is slow
    ignores_all = layout.ignores_all
    out_entry = layout.out_entry
    out_plain = layout.out_plain
    out_ptr = layout.out_ptr
    owner = layout.owner
    pair_identity = layout.pair_identity
    pair_in = layout.pair_in
    pair_node = layout.pair_node
    pair_out = layout.pair_out
    pair_ptr = layout.pair_ptr
    pair_slot = layout.pair_slot
    reserve_at = layout.reserve_at
    reserve_copied = layout.reserve_copied
    reserve_extra = layout.reserve_extra
    reserve_item = layout.reserve_item
    sizes = layout.size
    true = layout.true
    before = scratch.before
    behind = scratch.behind
    block_live = scratch.block_live
    block_true = scratch.block_true
    block_refs = scratch.block_refs
    block_size = scratch.block_size
    class_head = scratch.class_head
    class_size = scratch.class_size
    class_tail = scratch.class_tail
    counts = scratch.counts
    level = layout.level
    level_step = layout.level_step
    block_level = scratch.block_level
    level_now = scratch.level_now
    level_most = scratch.level_most
    level_now[:] = 0
    level_most[:] = 0
    order = scratch.order
    source = scratch.source
    source_ptr = scratch.source_ptr
    storage = scratch.storage
    taken = scratch.taken
    n, m = layout.n, layout.m
    for e in range(2 * m):
        storage[e] = BAD
    n_blocks = 0
    n_classes = 0
    live = 0
    peak = 0
    total = 0
    pool = 0
    for k in range(steps):
        if k == reserve_at:
            n_reserved = 0
            taken_by_copy = -1
            for q in range(reserved.shape[0]):
                size = reserved[q] * 4
                if size == 0:
                    continue
                n_reserved += 1
                # the copy of the argument takes one that fits, or a smaller one that grows
                low, high = reserve_copied // match_range, reserve_copied * match_range
                if not low <= size <= high:
                    continue
                best = reserved[taken_by_copy] * 4 if taken_by_copy >= 0 else 0
                if size >= reserve_copied:
                    better = best < reserve_copied or size < best
                else:
                    better = best < size
                if better:
                    taken_by_copy = q
            for q in range(reserved.shape[0]):
                size = reserved[q] * 4
                if size == 0:
                    continue
                whole = reserved[q] * reserve_item
                if q == taken_by_copy:
                    total += max(size, reserve_copied)
                    pool += max(whole, reserve_copied)
                    continue
                block = n_blocks
                n_blocks += 1
                block_size[block] = size
                block_true[block] = whole
                block_live[block] = 0
                total += size
                pool += whole
                n_classes = _release(
                    block, size, before, behind, class_size, class_head, class_tail, n_classes
                )
            if n_reserved:
                besides = reserve_extra + (reserve_copied if taken_by_copy < 0 else 0)
                total += besides
                pool += besides
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
