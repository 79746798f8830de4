"""A first schedule: relieve the fullest step by the cheapest recomputation, again and again."""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled
from memcli.solve.sequence import closure, evaluate, index, spliced


@compiled(nogil=True)
def relieve(start, sizes, seconds, read_ptr, reads, budget, capacity):
    """Insert recomputations into a sequence until it fits a budget or nothing helps.

    Each turn takes the fullest step, and for each value that is only held there tries to recompute
    it just before its next use: once with all inputs that are gone by then recomputed too, once
    with these held instead. The one that takes least time for each byte by which it lowers the
    excess (summed over steps) stays.

    Args:
        start: the sequence.
        sizes: over values, bytes.
        seconds: over values, in the graph's unit.
        read_ptr: values + 1; value ``v`` reads ``reads[read_ptr[v]:read_ptr[v + 1]]``.
        reads: values.
        budget: bytes.
        capacity: the longest sequence.

    Returns:
        ``(sequence, time, over)``; ``over`` is 0 where it fits.
    """
    n = sizes.shape[0]
    random = np.ones(1, np.uint64)
    wanted = np.zeros(n, np.uint8)
    marked = np.zeros(n, np.uint8)
    last = np.zeros(n, np.int64)
    copy_now = np.zeros(n, np.int64)
    found = np.empty(n, np.int64)
    seq = np.empty(capacity, np.int64)
    candidate = np.empty(capacity, np.int64)
    out = np.empty(capacity, np.int64)
    best = np.empty(capacity, np.int64)
    memory = np.empty(capacity, np.int64)
    out_memory = np.empty(capacity, np.int64)
    last_use = np.empty(capacity, np.int64)
    recomputed = np.empty(capacity, np.int64)
    n_gap = 4 * reads.shape[0] + 64
    gap_value = np.empty(n_gap, np.int64)
    gap_begin = np.empty(n_gap, np.int64)
    gap_end = np.empty(n_gap, np.int64)
    begin, time, over = evaluate(
        start,
        start.shape[0],
        sizes,
        seconds,
        read_ptr,
        reads,
        budget,
        np.inf,
        0.0,
        wanted,
        out,
        memory,
    )
    count = capacity - begin
    seq[:count] = out[begin:]
    hot = int(np.argmax(memory[begin:]))
    while over > 0:
        gaps, _ = index(
            seq,
            count,
            read_ptr,
            reads,
            last,
            last_use,
            copy_now,
            gap_value,
            gap_begin,
            gap_end,
            recomputed,
        )
        best_score = np.inf
        best_count = 0
        best_hot = 0
        best_time = 0.0
        best_over = over
        for g in range(gaps):
            if not gap_begin[g] < hot < gap_end[g]:
                continue
            for whole in range(2):
                n_found = closure(
                    seq,
                    gap_end[g],
                    gap_value[g],
                    read_ptr,
                    reads,
                    last_use,
                    float(whole),
                    random,
                    copy_now,
                    marked,
                    found,
                )
                if whole == 1 and n_found == 1:
                    continue
                length = spliced(seq, count, 0, 0, gap_end[g], found, n_found, candidate)
                if length < 0:
                    continue
                begin, new_time, new_over = evaluate(
                    candidate,
                    length,
                    sizes,
                    seconds,
                    read_ptr,
                    reads,
                    budget,
                    np.inf,
                    0.0,
                    wanted,
                    out,
                    out_memory,
                )
                if new_over >= over:
                    continue
                score = max(new_time - time, 0.0) / (over - new_over)
                if score < best_score:
                    best_score = score
                    best_count = capacity - begin
                    best[:best_count] = out[begin:]
                    best_hot = int(np.argmax(out_memory[begin:]))
                    best_time = new_time
                    best_over = new_over
        if best_count == 0:
            break
        seq[:best_count] = best[:best_count]
        count, time, over, hot = best_count, best_time, best_over, best_hot
    return seq[:count].copy(), time, over
