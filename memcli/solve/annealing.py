"""Simulated annealing over sequences."""

from __future__ import annotations

import math

import numpy as np

from memcli.compiled import compiled
from memcli.solve.sequence import closure, draw, evaluate, index, spliced


@compiled(nogil=True)
def anneal(
    start, sizes, seconds, read_ptr, reads, budget, capacity, steps, hot, cold, weight, seed, floor
):
    """Anneal a sequence within a budget.

    Ends early once a fitting sequence takes no more than ``floor``.

    Args:
        start: the sequence, as for :func:`memcli.solve.sequence.evaluate`.
        sizes: over values, bytes.
        seconds: over values, in the graph's unit.
        read_ptr: values + 1; value ``v`` reads ``reads[read_ptr[v]:read_ptr[v + 1]]``.
        reads: values.
        budget: bytes.
        capacity: the longest sequence.
        steps: proposals.
        hot: the first temperature, in the unit of ``seconds``.
        cold: the last one.
        weight: price of a byte over budget for one step, in the unit of ``seconds``; adapted so
            that a fifth to a half of what is visited fits.
        seed: of random numbers.
        floor: a time that need not be improved on.

    Returns:
        ``(best, best_time, current, weight, lowest, lowest_peak)``: the best sequence that fits
        (empty, and infinity, where none was seen), the last visited, the last price, and, where
        none was seen that fits, the sequence of least peak with that peak.
    """
    n = sizes.shape[0]
    random = np.empty(1, np.uint64)
    random[0] = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x1234567)
    for _ in range(8):
        draw(random)
    wanted = np.zeros(n, np.uint8)
    marked = np.zeros(n, np.uint8)
    last = np.zeros(n, np.int64)
    copy_now = np.zeros(n, np.int64)
    found = np.empty(n, np.int64)
    seq = np.empty(capacity, np.int64)
    candidate = np.empty(capacity, np.int64)
    out = np.empty(capacity, np.int64)
    out_memory = np.empty(capacity, np.int64)
    memory = np.empty(capacity, np.int64)
    last_use = np.empty(capacity, np.int64)
    recomputed = np.empty(capacity, np.int64)
    n_gap = 4 * reads.shape[0] + 64
    gap_value = np.empty(n_gap, np.int64)
    gap_begin = np.empty(n_gap, np.int64)
    gap_end = np.empty(n_gap, np.int64)
    best = np.empty(0, np.int64)
    best_time = np.inf
    lowest = start.copy()
    lowest_peak = np.int64(0x7FFFFFFFFFFFFFFF)

    begin, time, over = evaluate(
        start,
        start.shape[0],
        sizes,
        seconds,
        read_ptr,
        reads,
        budget,
        np.inf,
        weight,
        wanted,
        out,
        out_memory,
    )
    count = capacity - begin
    seq[:count] = out[begin:]
    memory[:count] = out_memory[begin:]
    gaps, n_recomputed = index(
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
    if over == 0:
        best = seq[:count].copy()
        best_time = time
    else:
        lowest = seq[:count].copy()
        lowest_peak = memory[:count].max()
    cooling = (cold / hot) ** (1.0 / max(1, steps))
    heat = hot
    fitted = 0
    visited = 0
    changed = 0
    for step in range(steps):
        if best_time <= floor:
            break
        if over > 0 and step - changed > 2000:
            # Stuck above the budget.
            weight *= 1.5
            changed = step
        heat *= cooling
        kind = draw(random)
        if n_recomputed == 0:
            kind = 0.0
        length = -1
        ceiling = time + weight * over - heat * math.log(1.0 - draw(random))
        if kind < 0.45:
            length = _insertion(
                seq,
                count,
                seconds,
                read_ptr,
                reads,
                last_use,
                memory,
                over,
                gap_value,
                gap_begin,
                gap_end,
                gaps,
                random,
                copy_now,
                marked,
                found,
                0,
                0,
                ceiling - time,
                candidate,
            )
        elif kind < 0.75:
            begin_drop, end_drop = _some_recomputed(recomputed, n_recomputed, random)
            length = spliced(seq, count, begin_drop, end_drop, -1, found, 0, candidate)
        elif kind < 0.88:
            p = recomputed[int(draw(random) * n_recomputed)]
            length = _shift(seq, count, p, draw(random), draw(random), candidate)
        else:
            begin_drop, end_drop = _some_recomputed(recomputed, n_recomputed, random)
            length = _insertion(
                seq,
                count,
                seconds,
                read_ptr,
                reads,
                last_use,
                memory,
                over,
                gap_value,
                gap_begin,
                gap_end,
                gaps,
                random,
                copy_now,
                marked,
                found,
                begin_drop,
                end_drop,
                np.inf,
                candidate,
            )
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
            ceiling,
            weight,
            wanted,
            out,
            out_memory,
        )
        if begin < 0 or new_time + weight * new_over > ceiling:
            continue
        time = new_time
        over = new_over
        count = capacity - begin
        seq[:count] = out[begin:]
        memory[:count] = out_memory[begin:]
        gaps, n_recomputed = index(
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
        visited += 1
        changed = step
        if over == 0:
            fitted += 1
            if time < best_time:
                best_time = time
                best = seq[:count].copy()
        elif best_time == np.inf:
            peak = memory[:count].max()
            if peak < lowest_peak:
                lowest_peak = peak
                lowest = seq[:count].copy()
        if visited == 200:
            if fitted < 40:
                weight *= 1.15
            elif fitted > 90:
                weight *= 0.9
            visited = 0
            fitted = 0
    return best, best_time, seq[:count].copy(), weight, lowest, lowest_peak


@compiled(nogil=True)
def _some_recomputed(recomputed, n_recomputed, random):
    """A recomputation, or now and then a few neighbouring ones, as a range of steps."""
    first = int(draw(random) * n_recomputed)
    end = first + 1
    while end < n_recomputed and draw(random) < 0.25:
        end += 1
    return recomputed[first], recomputed[end - 1] + 1


@compiled(nogil=True)
def _insertion(
    seq,
    count,
    seconds,
    read_ptr,
    reads,
    last_use,
    memory,
    over,
    gap_value,
    gap_begin,
    gap_end,
    gaps,
    random,
    copy_at,
    marked,
    found,
    drop_begin,
    drop_end,
    most,
    out,
):
    """End a gap early: recompute its value just before it is read.

    While the sequence is over budget, gaps that cover a step over budget are preferred. What
    takes longer than ``most`` cannot be accepted and is not looked at further (-1).
    """
    if gaps == 0:
        return -1
    g = int(draw(random) * gaps)
    if drop_end > drop_begin and draw(random) < 0.8:
        # What was dropped made room until there: a gap around it can make it instead.
        for _ in range(12):
            if gap_begin[g] < drop_begin - 1 < gap_end[g]:
                break
            g = int(draw(random) * gaps)
    elif over > 0:
        hot = -1
        for _ in range(4):
            p = int(draw(random) * count)
            if hot < 0 or memory[p] > memory[hot]:
                hot = p
        for _ in range(6):
            if gap_begin[g] < hot < gap_end[g]:
                break
            g = int(draw(random) * gaps)
    step = gap_end[g]
    if draw(random) < 0.15:
        # anywhere after the value's last use: shared inputs may still be live there
        step = gap_begin[g] + 1 + int(draw(random) * (gap_end[g] - gap_begin[g]))
    pick = draw(random)
    chance = 1.0 if pick < 0.4 else (0.0 if pick < 0.6 else 0.5)
    n_found = closure(
        seq, step, gap_value[g], read_ptr, reads, last_use, chance, random, copy_at, marked, found
    )
    added = 0.0
    for k in range(n_found):
        added += seconds[found[k]]
    if added > most:
        return -1
    return spliced(seq, count, drop_begin, drop_end, step, found, n_found, out)


@compiled(nogil=True)
def _shift(seq, count, p, direction, distance, out):
    """Move the recomputation at ``p`` some steps earlier or later (-1 where it cannot)."""
    far = 1 + int(-math.log(1.0 - distance) * 4.0)
    target = p + far if direction < 0.5 else p - far
    if target < 0 or target >= count:
        return -1
    v = ~seq[p]
    e = seq[p]
    out[:count] = seq[:count]
    if target > p:
        for q in range(p, target):
            out[q] = seq[q + 1]
            if out[q] == v or out[q] == e:
                return -1
    else:
        for q in range(p, target, -1):
            out[q] = seq[q - 1]
            if out[q] == v or out[q] == e:
                return -1
    out[target] = e
    return count
