"""Walks a step's events under a plan: the executor's rules for what lives, counted in bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Operations, each with a number (of a step, a storage or a handle) and up to four sizes.
CALL, SEGMENT, SAVED, UNUSED, OUTPUT, UNPACKED, DONE, GONE, STAGE = range(9)

EACH = 2
AUXILIARY = 4
_KEPT_REFERENCE, _MEMO_REFERENCE, _OWN_REFERENCE = 1, 2, 3
OWN_REFERENCE = _OWN_REFERENCE
_LIVE, _PEAK, _GRADIENTS, _ALL_PEAK, _HIGH, _DEPTH = range(6)
PEAK, DEPTH = _PEAK, _DEPTH


class Program(NamedTuple):
    """What does not depend on the plan. CSR pointers as in ``Trace``."""

    codes: Array
    numbers: Array
    sizes: Array  # operations x 4: highest and last, without and with parameters' gradients
    first: Array
    step_of: Array  # over storages
    bytes: Array
    again: Array
    auxiliary: Array
    input_first: Array
    inputs: Array
    handle_storage: Array
    again_peak: Array  # steps x 2: while it runs again, plain and with auxiliaries


class State(NamedTuple):
    """Working arrays, so that nothing is allocated per plan."""

    mark: Array  # over storages
    references: Array  # over storages: what holds a kept one
    count: Array  # over storages: requests on a dropped one
    memo: Array  # over storages: held for later requests
    instance: Array  # over storages: what holds the recomputed one
    left: Array  # over steps: requests on all they made
    holding: Array  # over steps: whether it holds tokens on what it reads
    runs: Array  # over steps: recomputations
    served: Array  # over handles
    held: Array  # over handles: kind of reference
    stack: Array  # of storages to release
    frames: Array  # steps + 1 x 5: step, next input, final, bytes of inputs, begin of its group
    live: Array  # running counts; DEPTH: frames below the one that the limit stopped


def state_for(program: Program) -> State:
    """Fresh working arrays."""
    n, s, h = len(program.first) - 1, len(program.bytes), len(program.handle_storage)
    i64 = np.int64
    return State(
        np.zeros(s, i64), np.zeros(s, i64), np.zeros(s, i64), np.zeros(s, i64), np.zeros(s, i64),
        np.zeros(n, i64), np.zeros(n, i64), np.zeros(n, i64), np.zeros(h, i64), np.zeros(h, i64),
        np.zeros(len(program.inputs) + s + 1, i64), np.zeros((n + 1, 5), i64), np.zeros(6, i64),
    )  # fmt: skip


@numba.njit(cache=True)
def _bump(live, plain, with_gradients):
    high = live[_LIVE] + plain
    if high > live[_PEAK]:
        live[_PEAK] = high
    if high > live[_HIGH]:
        live[_HIGH] = high
    high = live[_LIVE] + live[_GRADIENTS] + with_gradients
    if high > live[_ALL_PEAK]:
        live[_ALL_PEAK] = high


@numba.njit(cache=True)
def _drop_kept(p, st, s):
    st.references[s] -= 1
    if st.references[s] == 0:
        st.live[_LIVE] -= p.bytes[s]


@numba.njit(cache=True)
def _drop_instance(p, st, s):
    st.instance[s] -= 1
    if st.instance[s] == 0:
        st.live[_LIVE] -= p.again[s]


@numba.njit(cache=True)
def _release(p, st, s):
    """One request less on a storage, and what follows from it back through the graph."""
    stack = st.stack
    stack[0] = s
    top = 1
    while top > 0:
        top -= 1
        s = stack[top]
        if st.mark[s] == 0:
            _drop_kept(p, st, s)
            continue
        st.count[s] -= 1
        if st.count[s] == 0 and st.memo[s] == 1:
            st.memo[s] = 0
            _drop_instance(p, st, s)
        u = p.step_of[s]
        st.left[u] -= 1
        if st.left[u] == 0 and st.holding[u] == 1:
            st.holding[u] = 0
            for at in range(p.input_first[u], p.input_first[u + 1]):
                stack[top] = p.inputs[at]
                top += 1


@numba.njit(cache=True)
def _take(p, st, s):
    """One request more."""
    if st.mark[s] == 0:
        st.references[s] += 1
    else:
        st.count[s] += 1
        st.left[p.step_of[s]] += 1


@numba.njit(cache=True)
def _call(p, st, marks, u):
    """A step of the forward pass returned."""
    dropped = False
    for s in range(p.first[u], p.first[u + 1]):
        mark = marks[u] & ~AUXILIARY
        if p.auxiliary[s]:
            if marks[u] & AUXILIARY:
                mark = mark if mark else 1
            else:
                mark = 0
        st.mark[s] = mark
        dropped = dropped or mark != 0
        if not (p.auxiliary[s] and mark):
            st.live[_LIVE] += p.bytes[s]
        if not p.auxiliary[s]:
            _take(p, st, s)
    if dropped:
        st.holding[u] = 1
        for at in range(p.input_first[u], p.input_first[u + 1]):
            _take(p, st, p.inputs[at])


@numba.njit(cache=True)
def _gather(p, st, marks, depth):
    """Goes through what a step reads; whether another must run first (its frame is pushed)."""
    frames = st.frames
    u = frames[depth, 0]
    end = p.input_first[u + 1]
    while frames[depth, 1] < end:
        a = frames[depth, 1]
        q = p.step_of[p.inputs[a]]
        b = a
        missing = False
        wanted = 0
        while b < end and p.step_of[p.inputs[b]] == q:
            s = p.inputs[b]
            if st.mark[s] != 0:
                wanted += 1
                missing = missing or st.memo[s] == 0
            b += 1
        frames[depth, 1] = b
        if missing:
            each = marks[q] & ~AUXILIARY == EACH
            last = frames[depth, 2] == 1 and st.left[q] == wanted
            frames[depth + 1, 0] = q
            frames[depth + 1, 1] = p.input_first[q]
            frames[depth + 1, 2] = 1 if not each or last else 0
            frames[depth + 1, 3] = 0
            frames[depth + 1, 4] = a
            return True
    return False


@numba.njit(cache=True)
def _obtain(p, st, marks, wanted, work, limit):
    """Recomputes a dropped storage and what it needs; the number of runs so far."""
    frames = st.frames
    live = st.live
    u = p.step_of[wanted]
    frames[0, 0] = u
    frames[0, 1] = p.input_first[u]
    frames[0, 2] = 1 if marks[u] & ~AUXILIARY != EACH or st.left[u] == 1 else 0
    frames[0, 3] = 0
    frames[0, 4] = -1
    depth = 0
    while depth >= 0:
        if _gather(p, st, marks, depth):
            depth += 1
            continue
        u = frames[depth, 0]
        work += 1
        if work > limit:
            live[_DEPTH] = depth
            return work
        st.runs[u] += 1
        capture = 0
        for s in range(p.first[u], p.first[u + 1]):
            if p.auxiliary[s] and st.mark[s] != 0:
                capture = 1
        _bump(live, p.again_peak[u, capture], p.again_peak[u, capture])
        live[_LIVE] -= frames[depth, 3]
        for s in range(p.first[u], p.first[u + 1]):
            if st.mark[s] != 0:
                live[_LIVE] += p.again[s]
        if frames[depth, 2] == 1 and st.holding[u] == 1:
            st.holding[u] = 0
            for at in range(p.input_first[u], p.input_first[u + 1]):
                _release(p, st, p.inputs[at])
        each = marks[u] & ~AUXILIARY == EACH
        for s in range(p.first[u], p.first[u + 1]):
            if st.mark[s] == 0:
                continue
            if not each and st.count[s] > 0:
                if st.memo[s] == 1:
                    _drop_instance(p, st, s)
                st.memo[s] = 1
                st.instance[s] += 1
                continue
            asked = depth == 0 and s == wanted
            if depth > 0:
                v = frames[depth - 1, 0]
                at = frames[depth, 4]
                while at < p.input_first[v + 1] and p.step_of[p.inputs[at]] == u:
                    asked = asked or p.inputs[at] == s
                    at += 1
                if asked:
                    frames[depth - 1, 3] += p.again[s]
            if not asked:
                live[_LIVE] -= p.again[s]
        depth -= 1
    return work


@numba.njit(cache=True)
def _unpack(p, st, marks, h, work, limit):
    s = p.handle_storage[h]
    if st.mark[s] == 0:
        st.references[s] += 1
        st.held[h] = _KEPT_REFERENCE
        return work
    if st.memo[s] == 0:
        work = _obtain(p, st, marks, s, work, limit)
        if work > limit:
            return work
    if st.memo[s] == 1:
        st.instance[s] += 1
        st.held[h] = _MEMO_REFERENCE
    else:
        st.held[h] = _OWN_REFERENCE
    st.served[h] = 1
    _release(p, st, s)
    return work


@numba.njit(cache=True, nogil=True)
def walk(p, st, marks, limit, highs):
    """Bytes at the peak without and with parameters' gradients, and the operation of the first.

    ``marks`` over steps; ``limit``: of recomputations, past which the peaks are -1 (EACH behind
    EACH can double them at every step). ``highs``: over operations, the most that is live during
    each (without parameters' gradients); empty: not wanted. ``st.runs`` has the recomputations.
    """
    for array in (st.references, st.count, st.memo, st.instance, st.left, st.holding):
        array[:] = 0
    st.runs[:] = 0
    st.served[:] = 0
    st.held[:] = 0
    st.live[:] = 0
    live = st.live
    peak_at = 0
    work = 0
    for i in range(len(p.codes)):
        code = p.codes[i]
        number = p.numbers[i]
        before = live[_PEAK]
        live[_HIGH] = live[_LIVE]
        if code == CALL or code == SEGMENT:
            _bump(live, p.sizes[i, 0], p.sizes[i, 1])
            live[_LIVE] += p.sizes[i, 2]
            live[_GRADIENTS] += p.sizes[i, 3] - p.sizes[i, 2]
            if code == CALL:
                _call(p, st, marks, number)
        elif code == SAVED:
            _take(p, st, p.handle_storage[number])
        elif code == UNUSED:
            if st.mark[number] != 0:
                live[_LIVE] -= p.bytes[number]
            _release(p, st, number)
        elif code == OUTPUT:
            if st.mark[number] != 0:
                u = p.step_of[number]
                st.mark[number] = 0
                st.references[number] = st.count[number]
                st.left[u] -= st.count[number]
                if st.left[u] == 0 and st.holding[u] == 1:
                    st.holding[u] = 0
                    for at in range(p.input_first[u], p.input_first[u + 1]):
                        _release(p, st, p.inputs[at])
        elif code == UNPACKED:
            work = _unpack(p, st, marks, number, work, limit)
            if work > limit:
                return -1, -1, i
        elif code == DONE:
            s = p.handle_storage[number]
            if st.held[number] == _KEPT_REFERENCE:
                _drop_kept(p, st, s)
            elif st.held[number] == _MEMO_REFERENCE:
                _drop_instance(p, st, s)
            elif st.held[number] == _OWN_REFERENCE:
                live[_LIVE] -= p.again[s]
        elif code == GONE and st.served[number] == 0:
            _release(p, st, p.handle_storage[number])
        if live[_PEAK] > before:
            peak_at = i
        if len(highs):
            highs[i] = max(live[_HIGH], live[_LIVE])
    return live[_PEAK], live[_ALL_PEAK], peak_at
