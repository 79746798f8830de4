"""Sequences while they are searched: an encoding, its evaluation, and what can be inserted where.

A sequence here holds ``v`` where value ``v`` is first computed and ``~v`` (negative) where it is
recomputed. Any sequence whose first computations are in order is a schedule, so that a move
can insert or remove recomputations freely: what changes is how long values live.

All functions are compiled by numba. Sequences and buffers are int64 arrays of a fixed capacity,
with the count of entries in use beside them.
"""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled


@compiled(nogil=True)
def evaluate(
    seq, count, sizes, seconds, read_ptr, reads, budget, ceiling, weight, wanted, out, memory
):
    """Prune and cost a sequence of computations: recomputations that nobody reads are left out.

    Args:
        seq: values in the order in which they are computed, ``~v`` where ``v`` is recomputed.
        count: how many of ``seq`` there are.
        sizes: over values, bytes.
        seconds: over values, in the graph's unit.
        read_ptr: values + 1; value ``v`` reads ``reads[read_ptr[v]:read_ptr[v + 1]]``.
        reads: values.
        budget: bytes.
        ceiling: of ``time + weight * over``, beyond which nothing more is worked out.
        weight: the price of a byte over budget for one step.
        wanted: over values, all zeros, and so again at the end.
        out: room for the pruned sequence, which is put at its end.
        memory: the same for the bytes at each of its steps.

    Returns:
        ``(begin, time, over)``: the sequence is ``out[begin:]``, its time, and the sum over its
        steps of the bytes above ``budget``. ``begin`` is -1 where ``ceiling`` is exceeded.
    """
    begin = out.shape[0]
    live = 0
    over = 0
    time = 0.0
    for p in range(count - 1, -1, -1):
        e = seq[p]
        v = e
        if e < 0:
            v = ~e
            if wanted[v] == 0:
                continue
        if wanted[v] == 0:
            live += sizes[v]
        wanted[v] = 0
        for i in range(read_ptr[v], read_ptr[v + 1]):
            u = reads[i]
            if wanted[u] == 0:
                wanted[u] = 1
                live += sizes[u]
        begin -= 1
        memory[begin] = live
        out[begin] = e
        time += seconds[v]
        if live > budget:
            over += live - budget
            if time + weight * over > ceiling:
                wanted[:] = 0
                return -1, time, over
        live -= sizes[v]
    return begin, time, over


@compiled(nogil=True)
def index(
    seq, count, read_ptr, reads, last, last_use, copy_now, gap_value, gap_begin, gap_end, recomputed
):
    """What the moves need to know of a sequence: its gaps and its recomputations.

    A gap is a stretch of steps during which a value is only held.

    Args:
        seq: the sequence.
        count: of its steps.
        read_ptr: as for :func:`evaluate`.
        reads: as for :func:`evaluate`.
        last: over values, room for the latest step that makes or reads each.
        last_use: over steps ``p``, filled with the last step that reads what ``p`` computed; ``p``
            where none does.
        copy_now: over values, room for the latest step that makes each.
        gap_value: filled with the value that each gap holds.
        gap_begin: filled with the step after which it does.
        gap_end: filled with the step until which it does, and which reads the value.
        recomputed: filled with the steps that recompute.

    Returns:
        How many gaps, and how many recomputations there are.
    """
    gaps = 0
    n_recomputed = 0
    for p in range(count):
        e = seq[p]
        v = e
        if e < 0:
            v = ~e
            recomputed[n_recomputed] = p
            n_recomputed += 1
        for i in range(read_ptr[v], read_ptr[v + 1]):
            u = reads[i]
            last_use[copy_now[u]] = p
            if p - last[u] > 1 and gaps < gap_value.shape[0]:
                gap_value[gaps] = u
                gap_begin[gaps] = last[u]
                gap_end[gaps] = p
                gaps += 1
            last[u] = p
        last[v] = p
        copy_now[v] = p
        last_use[p] = p
    return gaps, n_recomputed


@compiled(nogil=True)
def closure(
    seq, step, value, read_ptr, reads, last_use, depth_chance, random, copy_at, marked, found
):
    """What to compute just before a step so that a value is there anew.

    Args:
        seq: the sequence.
        step: of the sequence.
        value: that is to be there.
        read_ptr: as for :func:`evaluate`.
        reads: as for :func:`evaluate`.
        last_use: as :func:`index` fills it.
        depth_chance: how often an input that is no longer live at ``step`` is recomputed too, 0 to
            1; else it is kept until then.
        random: one word, the state of the random numbers; changed.
        copy_at: over values, the step of the latest computation before ``step``.
        marked: over values, all zeros, and so again at the end.
        found: filled with the values, rising.

    Returns:
        How many values are in ``found``.
    """
    for p in range(step):
        e = seq[p]
        copy_at[e if e >= 0 else ~e] = p
    found[0] = value
    marked[value] = 1
    count = 1
    k = 0
    while k < count:
        v = found[k]
        k += 1
        for i in range(read_ptr[v], read_ptr[v + 1]):
            u = reads[i]
            if marked[u] == 0 and last_use[copy_at[u]] < step:
                if depth_chance < 1.0 and draw(random) >= depth_chance:
                    continue
                marked[u] = 1
                found[count] = u
                count += 1
    for k in range(count):
        marked[found[k]] = 0
    found[:count].sort()
    return count


@compiled(nogil=True)
def draw(state):
    """A number in [0, 1) from ``state`` (one uint64, not 0): xorshift64*."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return np.float64((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@compiled(nogil=True)
def spliced(seq, count, drop_begin, drop_end, step, found, n_found, out):
    """A sequence without some recomputations, and with others put in.

    Args:
        seq: the sequence.
        count: of its steps.
        drop_begin: the first step whose recomputation is left out.
        drop_end: the first one behind those.
        step: before which ``found`` is put in.
        found: values to recompute.
        n_found: how many.
        out: filled with the new sequence.

    Returns:
        The count of its steps; -1 where ``out`` is too small.
    """
    if count + n_found > out.shape[0]:
        return -1
    k = 0
    for p in range(count):
        if p == step:
            for i in range(n_found):
                out[k] = ~found[i]
                k += 1
        if drop_begin <= p < drop_end and seq[p] < 0:
            continue
        out[k] = seq[p]
        k += 1
    return k
