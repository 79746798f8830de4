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
    """Prune and cost the sequence ``seq[:count]``.

    Recomputations that nobody reads are left out. ``out`` (capacity c) receives the pruned
    sequence right-aligned, ``memory`` the bytes at each of its steps, alike. ``wanted`` must be
    all zeros and is again when this returns.

    Returns ``(begin, time, over)``: the sequence is ``out[begin:]``, its time, and the sum over
    its steps of the bytes above ``budget``. Gives up with ``begin = -1`` once
    ``time + weight * over`` exceeds ``ceiling``.
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
    seq, count, read_ptr, reads, last, last_use, copy_now, gap_value, gap_begin, gap_end, again
):
    """What the moves need to know of a sequence.

    A gap is a stretch of steps during which a value is only held: ``gap_value`` is held from
    after step ``gap_begin`` until step ``gap_end``, which reads it. ``last_use[p]`` is the last
    step that reads what step ``p`` computed (``p`` where none does); ``again`` are the steps
    that recompute. Returns ``(gaps, recomputations)``, the counts.
    """
    gaps = 0
    n_again = 0
    for p in range(count):
        e = seq[p]
        v = e
        if e < 0:
            v = ~e
            again[n_again] = p
            n_again += 1
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
    return gaps, n_again


@compiled(nogil=True)
def closure(
    seq, step, value, read_ptr, reads, last_use, depth_chance, random, copy_at, marked, found
):
    """What to compute just before ``step`` so that ``value`` is there anew.

    An input that is no longer live at ``step`` is recomputed too with probability
    ``depth_chance``; else it is kept until then. Returns how many values are in ``found``
    (ascending). ``marked`` must be all zeros and is again when this returns.
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
    """``seq`` without its recomputations in ``[drop_begin, drop_end)``, ``found`` before ``step``.

    Writes to ``out`` and returns the count, or -1 where ``out`` is too small.
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
