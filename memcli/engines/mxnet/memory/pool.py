"""MXNet's memory planner, emulated exactly: gradient graph with mirroring, order, greedy pool.

Source: MXNet 1.9.1, ``src/nnvm/gradient.cc`` (mirroring), ``src/nnvm/plan_memory.cc`` (the pool),
``src/executor/graph_executor.cc`` (what is mirrored; true sizes) and
``src/executor/inplace_addto_detect_pass.cc``.

Everything here is compiled by numba and works on the arrays of
:class:`memcli.graph.training.TrainingGraph`. Numbering: nodes ``0..n-1`` are the joint graph of
the graph without marks; the recomputed copy (mirror) of forward node ``f`` is ``n + f``. Entries
(tensors) alike: the copy of entry ``e`` is ``m + e``.

``mark`` says what a plan does with each forward node: KEPT, AGAIN for recomputed, BARRIER for
recomputed behind a save barrier. A save barrier is an identity (``_copy``) behind the node, which
is kept and which all readers of the node read: the node's own gradient has the recomputed copy,
everybody else the kept output. Identities share their input's block in both directions, so the
pool is the same as if nobody had put them there and readers were told apart by the mark alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcli.compiled import compiled, lower_bound
from memcli.graph.execution_order import mapped
from memcli.marks import BARRIER

Array = NDArray[Any]

BAD = -1
EXTERNAL = -2
DYNAMIC = -3


class UnreadRules(NamedTuple):
    """What of a graph decides whether a copy that nobody reads may run; see :func:`drop_unread`."""

    in_ptr: Array
    in_node: Array
    in_entry: Array
    in_ignored: Array
    leading: Array  # over entries: 1 for the first output of a node
    own_read: Array  # over forward nodes: its gradient reads its first output
    waited_for: Array  # over forward nodes: its gradient waits for it; that of a sum does not
    fails_unread: Array  # over forward nodes: may not run unread


@compiled
def drop_unread(flags, rules):
    """Take back the recomputation of forward nodes whose copy nobody would read.

    MXNet runs such a copy all the same, with the request to write nothing (``kNullOp``), and some
    operators then fail a check, or leave out what else they make (``fails_unread``); those alone
    are dropped. What decides is the first output of a copy: its own gradient may read it, and
    readers whose copies run do. A copy runs where its gradient waits for it or where another copy
    that runs reads it.

    Args:
        flags: over forward nodes, marks; changed.
        rules: of the graph.
    """
    in_ptr, in_node, in_entry = rules.in_ptr, rules.in_node, rules.in_entry
    in_ignored, leading, waited_for = rules.in_ignored, rules.leading, rules.waited_for
    fails_unread = rules.fails_unread
    wanted = rules.own_read.copy()
    for node in range(flags.shape[0] - 1, -1, -1):
        if not flags[node]:
            continue
        if fails_unread[node] and not wanted[node]:
            flags[node] = 0
            continue
        if not wanted[node] and not waited_for[node]:
            continue
        for i in range(in_ptr[node], in_ptr[node + 1]):
            source = in_node[i]
            if not in_ignored[i] and leading[in_entry[i]] and source < flags.shape[0]:
                wanted[source] |= flags[source] != BARRIER


@compiled
def reference_counts(
    order, n, m, in_ptr, in_node, in_entry, in_ignored, variable, outputs, mark, owner
):
    """How often each entry is read by a node that does not ignore it, or is an output.

    Args:
        order: nodes and copies in the order of execution.
        n: nodes of the joint graph.
        m: its entries.
        in_ptr: nodes + 1; inputs of node ``v`` have the places ``in_ptr[v]`` to ``in_ptr[v + 1] -
            1``.
        in_node: over inputs, the node that makes what is read.
        in_entry: over inputs, the entry that is read.
        in_ignored: over inputs, 1 where it is read for its shape alone.
        variable: over nodes, 1 for variables.
        outputs: entries of the graph's outputs.
        mark: over forward nodes, the plan.
        owner: over nodes, the forward node that a backward node belongs to, -1 for others.

    Returns:
        Over entries, and from ``m`` on over their copies.
    """
    counts = np.zeros(2 * m, np.int64)
    for k in range(order.shape[0]):
        node = order[k]
        base = node - n if node >= n else node
        if variable[base]:
            continue
        for i in range(in_ptr[base], in_ptr[base + 1]):
            if in_ignored[i]:
                continue
            entry = in_entry[i]
            if mapped(in_node[i], node, mark, owner, n) >= n:
                entry += m
            counts[entry] += 1
    for i in range(outputs.shape[0]):
        counts[outputs[i]] += 1
    return counts


@compiled
def _doubled(values):
    grown = np.zeros(2 * values.shape[0], np.int64)
    grown[: values.shape[0]] = values
    return grown


@compiled
def allocate(
    order,
    n,
    m,
    first,
    in_ptr,
    in_node,
    in_entry,
    in_ignored,
    pair_ptr,
    pair_in,
    pair_out,
    pair_identity,
    ignores_all,
    variable,
    elements,
    itemsize,
    outputs,
    n_forward_outputs,
    external,
    counts,
    mark,
    owner,
    match_range,
):
    """The greedy pool over an execution order (``MXAllocMemory`` of plan_memory.cc).

    Args:
        order: nodes and copies in the order of execution.
        n: nodes of the joint graph.
        m: its entries.
        first: nodes + 1; the outputs of node ``v`` are entries ``first[v]`` to ``first[v + 1] -
            1``.
        in_ptr: nodes + 1; inputs of node ``v`` have the places ``in_ptr[v]`` to ``in_ptr[v + 1] -
            1``.
        in_node: over inputs, the node that makes what is read.
        in_entry: over inputs, the entry that is read.
        in_ignored: over inputs, 1 where it is read for its shape alone.
        pair_ptr: nodes + 1; the node's in-place pairs, in the order in which they are tried.
        pair_in: over pairs, the number of the input.
        pair_out: over pairs, the number of the output.
        pair_identity: over pairs, 1 where the output is the input itself.
        ignores_all: over nodes, 1 where every input is read for its shape alone.
        variable: over nodes, 1 for variables.
        elements: over entries; negative where MXNet does not know the shape.
        itemsize: over entries, bytes of an element.
        outputs: entries of the graph's outputs, those of the forward pass first.
        n_forward_outputs: how many of them are of the forward pass.
        external: over entries, 0 or what stands for a block: caller's memory, or allocated at run
            time.
        counts: over entries and copies, as :func:`reference_counts` gives them; changed.
        mark: over forward nodes, the plan.
        owner: over nodes, the forward node that a backward node belongs to, -1 for others.
        match_range: how many times larger or smaller a free block may be that is taken
            (``NNVM_EXEC_MATCH_RANGE``).

    Returns:
        ``(storage, block_bytes, live_peak, live_peak_step)``: over entries and copies the block of
        each, -1 for none, -2 external, -3 dynamic; each block's size in MXNet's count of 4 bytes an
        element; the most bytes, by true element sizes, alive at once; and the place in ``order``
        where they are.
    """
    storage = np.full(2 * m, BAD, np.int64)
    for e in range(m):
        if external[e] != 0:
            storage[e] = external[e]
            storage[m + e] = DYNAMIC if external[e] == DYNAMIC else BAD
    block_bytes = np.zeros(1024, np.int64)
    block_refs = np.zeros(1024, np.int64)
    block_live = np.zeros(1024, np.int64)
    n_blocks = 0
    # Free blocks by size: sizes sorted, and of each size a list in the order of insertion (there
    # are thousands of free blocks in an unrolled network, but few sizes).
    class_size = np.zeros(64, np.int64)
    class_head = np.zeros(64, np.int64)
    class_tail = np.zeros(64, np.int64)
    before = np.zeros(1024, np.int64)
    behind = np.zeros(1024, np.int64)
    n_classes = 0
    live = 0
    live_peak = 0
    live_step = 0
    widest_out = 1
    for b in range(n):
        widest_out = max(widest_out, first[b + 1] - first[b])
    widest_in = 1
    for b in range(n):
        widest_in = max(widest_in, in_ptr[b + 1] - in_ptr[b])
    pending = np.empty(widest_out, np.int64)
    taken = np.zeros(widest_in, np.uint8)

    for k in range(order.shape[0]):
        node = order[k]
        copy = node >= n
        base = node - n if copy else node
        if variable[base]:
            continue
        shift = m if copy else 0
        begin_in = in_ptr[base]
        n_in = in_ptr[base + 1] - begin_in
        # in-place pairs, in the order they are registered
        if pair_ptr[base + 1] > pair_ptr[base]:
            for i in range(n_in):
                taken[i] = 0
            for p in range(pair_ptr[base], pair_ptr[base + 1]):
                i = pair_in[p]
                if i >= n_in or first[base] + pair_out[p] >= first[base + 1]:
                    continue
                out = first[base] + pair_out[p]
                source = in_entry[begin_in + i]
                if mapped(in_node[begin_in + i], node, mark, owner, n) >= n:
                    source_id = source + m
                else:
                    source_id = source
                block = storage[source_id]
                if taken[i] or storage[out + shift] != BAD or block < 0:
                    continue
                if counts[out + shift] == 0 or elements[out] != elements[source]:
                    continue
                if itemsize[out] != itemsize[source]:
                    continue
                if pair_identity[p] or (block_refs[block] == 1 and not ignores_all[base]):
                    taken[i] = 1
                    storage[out + shift] = block
                    block_refs[block] += counts[out + shift]
        # what is left is allocated largest first; of equal ones the last first (multimap)
        n_pending = 0
        for e in range(first[base], first[base + 1]):
            if storage[e + shift] == BAD:
                at = n_pending
                while at > 0 and elements[pending[at - 1]] > elements[e]:
                    pending[at] = pending[at - 1]
                    at -= 1
                pending[at] = e
                n_pending += 1
        for j in range(n_pending - 1, -1, -1):
            e = pending[j]
            if elements[e] < 0:
                continue
            size = elements[e] * 4
            block = -1
            if match_range > 0:
                begin = lower_bound(class_size, size // match_range, n_classes)
                mid = lower_bound(class_size, size, n_classes)
                chosen = -1
                if mid < n_classes and class_size[mid] <= size * match_range:
                    chosen = mid
                    block = class_head[mid]
                    class_head[mid] = behind[block]
                    if behind[block] >= 0:
                        before[behind[block]] = -1
                elif mid > begin:
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
                    if size > block_bytes[block]:
                        block_bytes[block] = size
            if block < 0:
                if n_blocks == block_bytes.shape[0]:
                    block_bytes = _doubled(block_bytes)
                    block_refs = _doubled(block_refs)
                    block_live = _doubled(block_live)
                    before = _doubled(before)
                    behind = _doubled(behind)
                block = n_blocks
                n_blocks += 1
                block_bytes[block] = size
            block_refs[block] = counts[e + shift]
            block_live[block] = elements[e] * itemsize[e]
            live += block_live[block]
            storage[e + shift] = block
        if live > live_peak:
            live_peak = live
            live_step = k
        # free what is read for the last time, then what nobody reads
        for i in range(begin_in, begin_in + n_in + first[base + 1] - first[base]):
            if i < begin_in + n_in:
                if in_ignored[i]:
                    continue
                entry = in_entry[i]
                if mapped(in_node[i], node, mark, owner, n) >= n:
                    entry += m
                block = storage[entry]
                if block < 0:
                    continue
                block_refs[block] -= 1
                if block_refs[block] != 0:
                    continue
            else:
                block = storage[first[base] + i - begin_in - n_in + shift]
                if block < 0 or block_refs[block] != 0:
                    continue
            live -= block_live[block]
            block_live[block] = 0
            size = block_bytes[block]
            at = lower_bound(class_size, size, n_classes)
            if at == n_classes or class_size[at] != size:
                if n_classes == class_size.shape[0]:
                    class_size = _doubled(class_size)
                    class_head = _doubled(class_head)
                    class_tail = _doubled(class_tail)
                for t in range(n_classes, at, -1):
                    class_size[t] = class_size[t - 1]
                    class_head[t] = class_head[t - 1]
                    class_tail[t] = class_tail[t - 1]
                n_classes += 1
                class_size[at] = size
                class_head[at] = block
                before[block] = -1
            else:
                # behind all of the same size: a multimap keeps the order of insertion
                last = class_tail[at]
                behind[last] = block
                before[block] = last
            behind[block] = -1
            class_tail[at] = block
    return storage, block_bytes[:n_blocks], live_peak, live_step


@compiled
def true_block_bytes(storage, n_blocks, elements, itemsize, m):
    """Bytes of each block by the true element sizes, in whole float32 words.

    ``InitDataEntryMemory`` of graph_executor.cc: the largest entry of each block.

    Args:
        storage: over entries and copies, the block of each.
        n_blocks: how many blocks.
        elements: over entries.
        itemsize: over entries, bytes of an element.
        m: entries of the joint graph.
    """
    result = np.zeros(n_blocks, np.int64)
    for e in range(2 * m):
        block = storage[e]
        if block >= 0:
            base = e - m if e >= m else e
            size = (elements[base] * itemsize[base] + 3) // 4 * 4
            if size > result[block]:
                result[block] = size
    return result


@compiled
def merge_added(
    order,
    n,
    m,
    first,
    in_ptr,
    in_node,
    in_entry,
    is_grad_add,
    variable,
    outputs,
    storage,
    mark,
    owner,
):
    """Let gradients that are only added to a sum share its block.

    ``DetectInplaceAddTo`` of inplace_addto_detect_pass.cc.

    Args:
        order: nodes and copies in the order of execution.
        n: nodes of the joint graph.
        m: its entries.
        first: nodes + 1; the outputs of node ``v`` are entries ``first[v]`` to ``first[v + 1] -
            1``.
        in_ptr: nodes + 1; inputs of node ``v`` have the places ``in_ptr[v]`` to ``in_ptr[v + 1] -
            1``.
        in_node: over inputs, the node that makes what is read.
        in_entry: over inputs, the entry that is read.
        is_grad_add: over nodes, 1 for ``_grad_add``.
        variable: over nodes, 1 for variables.
        outputs: entries of the graph's outputs.
        storage: over entries and copies, the block of each; changed.
        mark: over forward nodes, the plan.
        owner: over nodes, the forward node that a backward node belongs to, -1 for others.

    Returns:
        Over nodes: 1 where the addition is never executed.
    """
    counts = np.zeros(2 * m, np.int64)
    place = np.full(2 * n, -1, np.int64)
    for k in range(order.shape[0]):
        node = order[k]
        place[node] = k
        base = node - n if node >= n else node
        for i in range(in_ptr[base], in_ptr[base + 1]):
            entry = in_entry[i]
            if mapped(in_node[i], node, mark, owner, n) >= n:
                entry += m
            counts[entry] += 1
    for i in range(outputs.shape[0]):
        counts[outputs[i]] += 1
    skipped = np.zeros(2 * n, np.uint8)
    for k in range(order.shape[0]):
        node = order[k]
        if node >= n or not is_grad_add[node]:
            continue
        left, right = in_ptr[node], in_ptr[node] + 1
        block = storage[in_entry[left]]
        if block != storage[first[node]]:
            continue
        if variable[in_node[left]] or variable[in_node[right]]:
            continue
        if counts[in_entry[right]] != 1:
            continue
        if place[in_node[left]] >= place[in_node[right]]:
            continue
        if storage[in_entry[right]] == DYNAMIC:
            continue
        storage[in_entry[right]] = block
        skipped[node] = 1
    return skipped


@compiled
def touched_bytes(order, n, m, first, in_ptr, variable, storage, block_bytes, skipped):
    """Bytes of blocks that have been written to after each step of ``order``.

    MXNet allocates a block when an operator first touches it.

    Args:
        order: nodes and copies in the order of execution.
        n: nodes of the joint graph.
        m: its entries.
        first: nodes + 1; the outputs of node ``v`` are entries ``first[v]`` to ``first[v + 1] -
            1``.
        in_ptr: nodes + 1, of inputs.
        variable: over nodes, 1 for variables.
        storage: over entries and copies, the block of each.
        block_bytes: over blocks.
        skipped: over nodes, 1 where it is never executed.

    Returns:
        Over steps.
    """
    seen = np.zeros(block_bytes.shape[0], np.uint8)
    result = np.zeros(order.shape[0], np.int64)
    total = 0
    for k in range(order.shape[0]):
        node = order[k]
        copy = node >= n
        base = node - n if copy else node
        if not variable[base] and not skipped[node]:
            shift = m if copy else 0
            for e in range(first[base], first[base + 1]):
                block = storage[e + shift]
                if block >= 0 and not seen[block]:
                    seen[block] = 1
                    total += block_bytes[block]
        result[k] = total
    return result


@compiled
def live_bytes(
    order,
    n,
    m,
    first,
    in_ptr,
    in_node,
    in_entry,
    in_ignored,
    variable,
    storage,
    counts,
    elements,
    itemsize,
    mark,
    owner,
):
    """Bytes of tensors that are alive while each step of ``order`` runs, what it makes included.

    Tensors that share a block count once.

    Args:
        order: nodes and copies in the order of execution.
        n: nodes of the joint graph.
        m: its entries.
        first: nodes + 1; the outputs of node ``v`` are entries ``first[v]`` to ``first[v + 1] -
            1``.
        in_ptr: nodes + 1; inputs of node ``v`` have the places ``in_ptr[v]`` to ``in_ptr[v + 1] -
            1``.
        in_node: over inputs, the node that makes what is read.
        in_entry: over inputs, the entry that is read.
        in_ignored: over inputs, 1 where it is read for its shape alone.
        variable: over nodes, 1 for variables.
        storage: as :func:`allocate` gives it.
        counts: as :func:`allocate` takes them.
        elements: over entries.
        itemsize: over entries, bytes of an element.
        mark: over forward nodes, the plan.
        owner: over nodes, the forward node that a backward node belongs to, -1 for others.

    Returns:
        Over steps.
    """
    refs = np.zeros(2 * m + 1, np.int64)
    size = np.full(2 * m + 1, -1, np.int64)  # of what a block holds; -1: nothing
    result = np.zeros(order.shape[0], np.int64)
    live = 0
    for k in range(order.shape[0]):
        node = order[k]
        copy = node >= n
        base = node - n if copy else node
        if variable[base]:
            result[k] = live
            continue
        shift = m if copy else 0
        for e in range(first[base], first[base + 1]):
            block = storage[e + shift]
            if block < 0:
                continue
            if size[block] < 0:
                size[block] = elements[e] * itemsize[e]
                live += size[block]
            refs[block] += counts[e + shift]
        result[k] = live
        for i in range(in_ptr[base], in_ptr[base + 1]):
            if in_ignored[i]:
                continue
            entry = in_entry[i]
            if mapped(in_node[i], node, mark, owner, n) >= n:
                entry += m
            block = storage[entry]
            if block < 0 or size[block] < 0:
                continue
            refs[block] -= 1
            if refs[block] == 0:
                live -= size[block]
                size[block] = -1
        for e in range(first[base], first[base + 1]):
            block = storage[e + shift]
            if block >= 0 and size[block] >= 0 and refs[block] == 0:
                live -= size[block]
                size[block] = -1
    return result
