"""Walks a step's events under a plan: the executor's rules for what lives, counted in bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcli.compiled import compiled
from memcli.marks import AUXILIARY, EACH, RESULTS

Array = NDArray[Any]

# Without reference counts: nothing is allocated here, and counting those of the arrays at every
# call of a helper takes ten times as long as the walk itself.
_kernel = compiled(nogil=True, _nrt=False)

# Operations, each with a number (of a step, a storage or a handle) and up to four sizes.
CALL, SEGMENT, SAVED, UNUSED, OUTPUT, UNPACKED, DONE, GONE, STAGE = range(9)

_KEPT_REFERENCE, _MEMO_REFERENCE, _OWN_REFERENCE = 1, 2, 3
_LIVE, _PEAK, _GRADIENTS, _ALL_PEAK, _HIGH, _AT, _DEPTH = range(7)
# What a log says: a storage of the forward pass is freed, a recomputed one is, a step runs again
# (plain, with auxiliaries).
FREED_FIRST, FREED_AGAIN, RAN, RAN_CAPTURING = range(4)


# Columns. Few arrays of several columns: the compiler's time grows with the number of arrays.
_CODE, _NUMBER, _SIZES = 0, 1, 2  # sizes: highest and last, without and with gradients
_FIRST, _INPUTS, _PEAK_AGAIN = 0, 1, 2  # while it runs again: plain, with auxiliaries
_STEP, _BYTES, _AGAIN, _IS_AUXILIARY = range(4)
_MARK, _REFERENCES, _COUNT, _MEMO, _INSTANCE = range(5)
_LEFT, _HOLDING, _RUNS = range(3)
_SERVED, _HELD = range(2)


class Program(NamedTuple):
    """What does not depend on the plan. Numbers and CSR pointers as in ``Trace``."""

    operations: Array  # code, number, four sizes
    steps: Array  # steps + 1: first storage, first input, two peaks of running again
    storages: Array  # step, bytes, bytes when recomputed, whether an auxiliary
    inputs: Array
    handle_storage: Array


class State(NamedTuple):
    """Working arrays, so that nothing is allocated per plan."""

    # mark; what holds it if kept; requests if dropped; whether it is held for later requests;
    # what holds the recomputed one
    storages: Array
    steps: Array  # requests on all it made; whether it holds tokens on what it reads; runs
    handles: Array  # whether served; kind of reference
    stack: Array  # of storages to release
    frames: Array  # steps + 1: step, next input, final, bytes of inputs, begin of its group
    live: Array  # running counts; DEPTH: frames below the one that the limit stopped
    # what the walk decides, where wanted (else empty): operation, what, number of it
    log: Array
    logged: Array  # number of rows


def state_for(program: Program, rows: int = 0) -> State:
    """Fresh working arrays; ``rows``: of the log."""
    n, s, h = len(program.steps), len(program.storages), len(program.handle_storage)
    stack = len(program.inputs) + s + 1
    shapes = (s, 5), (n, 3), (h, 2), (stack,), (n, 5), (7,), (rows, 3), (1,)
    return State(*(np.zeros(shape, np.int64) for shape in shapes))


def recomputations(state: State) -> Array:
    """Over steps: how often the last walk ran each again."""
    return state.steps[:-1, _RUNS]


@_kernel
def _bump(live, plain, with_gradients):
    high = live[_LIVE] + plain
    if high > live[_PEAK]:
        live[_PEAK] = high
    if high > live[_HIGH]:
        live[_HIGH] = high
    high = live[_LIVE] + live[_GRADIENTS] + with_gradients
    if high > live[_ALL_PEAK]:
        live[_ALL_PEAK] = high


@_kernel
def _note(st, what, number):
    at = st.logged[0]
    if at < len(st.log):
        st.log[at, 0] = st.live[_AT]
        st.log[at, 1] = what
        st.log[at, 2] = number
        st.logged[0] = at + 1


@_kernel
def _drop_kept(p, st, s):
    st.storages[s, _REFERENCES] -= 1
    if st.storages[s, _REFERENCES] == 0:
        st.live[_LIVE] -= p.storages[s, _BYTES]
        _note(st, FREED_FIRST, s)


@_kernel
def _drop_instance(p, st, s):
    st.storages[s, _INSTANCE] -= 1
    if st.storages[s, _INSTANCE] == 0:
        st.live[_LIVE] -= p.storages[s, _AGAIN]
        _note(st, FREED_AGAIN, s)


@_kernel
def _release(p, st, s):
    """One request less on a storage, and what follows from it back through the graph."""
    stack = st.stack
    stack[0] = s
    top = 1
    while top > 0:
        top -= 1
        s = stack[top]
        if st.storages[s, _MARK] == 0:
            _drop_kept(p, st, s)
            continue
        st.storages[s, _COUNT] -= 1
        if st.storages[s, _COUNT] == 0 and st.storages[s, _MEMO] == 1:
            st.storages[s, _MEMO] = 0
            _drop_instance(p, st, s)
        u = p.storages[s, _STEP]
        st.steps[u, _LEFT] -= 1
        if st.steps[u, _LEFT] == 0 and st.steps[u, _HOLDING] == 1:
            st.steps[u, _HOLDING] = 0
            for at in range(p.steps[u, _INPUTS], p.steps[u + 1, _INPUTS]):
                stack[top] = p.inputs[at]
                top += 1


@_kernel
def _take(p, st, s):
    """One request more."""
    if st.storages[s, _MARK] == 0:
        st.storages[s, _REFERENCES] += 1
    else:
        st.storages[s, _COUNT] += 1
        st.steps[p.storages[s, _STEP], _LEFT] += 1


@_kernel
def _call(p, st, marks, u):
    """A step of the forward pass returned."""
    dropped = False
    for s in range(p.steps[u, _FIRST], p.steps[u + 1, _FIRST]):
        mark = marks[u] & RESULTS
        if p.storages[s, _IS_AUXILIARY]:
            mark = (mark if mark else 1) if marks[u] & AUXILIARY else 0
        st.storages[s, _MARK] = mark
        dropped = dropped or mark != 0
        if not (p.storages[s, _IS_AUXILIARY] and mark):
            st.live[_LIVE] += p.storages[s, _BYTES]
        else:
            _note(st, FREED_FIRST, s)
        if not p.storages[s, _IS_AUXILIARY]:
            _take(p, st, s)
    if dropped:
        st.steps[u, _HOLDING] = 1
        for at in range(p.steps[u, _INPUTS], p.steps[u + 1, _INPUTS]):
            _take(p, st, p.inputs[at])


@_kernel
def _gather(p, st, marks, depth):
    """Goes through what a step reads; whether another must run first (its frame is pushed)."""
    frames = st.frames
    u = frames[depth, 0]
    end = p.steps[u + 1, _INPUTS]
    while frames[depth, 1] < end:
        a = frames[depth, 1]
        q = p.storages[p.inputs[a], _STEP]
        b = a
        missing = False
        wanted = 0
        while b < end and p.storages[p.inputs[b], _STEP] == q:
            s = p.inputs[b]
            if st.storages[s, _MARK] != 0:
                wanted += 1
                missing = missing or st.storages[s, _MEMO] == 0
            b += 1
        frames[depth, 1] = b
        if missing:
            each = marks[q] & RESULTS == EACH
            last = frames[depth, 2] == 1 and st.steps[q, _LEFT] == wanted
            frames[depth + 1, 0] = q
            frames[depth + 1, 1] = p.steps[q, _INPUTS]
            frames[depth + 1, 2] = 1 if not each or last else 0
            frames[depth + 1, 3] = 0
            frames[depth + 1, 4] = a
            return True
    return False


@_kernel
def _obtain(p, st, marks, wanted, work, limit):
    """Recomputes a dropped storage and what it needs; the number of runs so far."""
    frames = st.frames
    live = st.live
    u = p.storages[wanted, _STEP]
    frames[0, 0] = u
    frames[0, 1] = p.steps[u, _INPUTS]
    frames[0, 2] = 1 if marks[u] & RESULTS != EACH or st.steps[u, _LEFT] == 1 else 0
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
        st.steps[u, _RUNS] += 1
        capture = 0
        for s in range(p.steps[u, _FIRST], p.steps[u + 1, _FIRST]):
            if p.storages[s, _IS_AUXILIARY] and st.storages[s, _MARK] != 0:
                capture = 1
        _bump(live, p.steps[u, _PEAK_AGAIN + capture], p.steps[u, _PEAK_AGAIN + capture])
        _note(st, RAN + capture, u)
        if frames[depth, 3] > 0:
            live[_LIVE] -= frames[depth, 3]
            for at in range(p.steps[u, _INPUTS], p.steps[u + 1, _INPUTS]):
                s = p.inputs[at]
                if st.storages[s, _MARK] != 0 and marks[p.storages[s, _STEP]] & RESULTS == EACH:
                    _note(st, FREED_AGAIN, s)
        for s in range(p.steps[u, _FIRST], p.steps[u + 1, _FIRST]):
            if st.storages[s, _MARK] != 0:
                live[_LIVE] += p.storages[s, _AGAIN]
        if frames[depth, 2] == 1 and st.steps[u, _HOLDING] == 1:
            st.steps[u, _HOLDING] = 0
            for at in range(p.steps[u, _INPUTS], p.steps[u + 1, _INPUTS]):
                _release(p, st, p.inputs[at])
        each = marks[u] & RESULTS == EACH
        for s in range(p.steps[u, _FIRST], p.steps[u + 1, _FIRST]):
            if st.storages[s, _MARK] == 0:
                _note(st, FREED_AGAIN, s)  # the first one is still there
                continue
            if not each and st.storages[s, _COUNT] > 0:
                if st.storages[s, _MEMO] == 1:
                    _drop_instance(p, st, s)
                st.storages[s, _MEMO] = 1
                st.storages[s, _INSTANCE] += 1
                continue
            asked = depth == 0 and s == wanted
            if depth > 0:
                v = frames[depth - 1, 0]
                at = frames[depth, 4]
                while at < p.steps[v + 1, _INPUTS] and p.storages[p.inputs[at], _STEP] == u:
                    asked = asked or p.inputs[at] == s
                    at += 1
                if asked:
                    frames[depth - 1, 3] += p.storages[s, _AGAIN]
            if not asked:
                live[_LIVE] -= p.storages[s, _AGAIN]
                _note(st, FREED_AGAIN, s)
        depth -= 1
    return work


@_kernel
def _unpack(p, st, marks, h, work, limit):
    s = p.handle_storage[h]
    if st.storages[s, _MARK] == 0:
        st.storages[s, _REFERENCES] += 1
        st.handles[h, _HELD] = _KEPT_REFERENCE
        return work
    if st.storages[s, _MEMO] == 0:
        work = _obtain(p, st, marks, s, work, limit)
        if work > limit:
            return work
    if st.storages[s, _MEMO] == 1:
        st.storages[s, _INSTANCE] += 1
        st.handles[h, _HELD] = _MEMO_REFERENCE
    else:
        st.handles[h, _HELD] = _OWN_REFERENCE
    st.handles[h, _SERVED] = 1
    _release(p, st, s)
    return work


@_kernel
def walk(p, st, marks, limit, highs):
    """Bytes at the peak without and with parameters' gradients, and the operation of the first.

    ``marks`` over steps; ``limit``: of recomputations, past which the peaks are -1 (EACH behind
    EACH can double them at every step). ``highs``: over operations, the most that is live during
    each (without parameters' gradients); empty: not wanted. ``st.runs`` has the recomputations.
    """
    st.storages[:] = 0
    st.steps[:] = 0
    st.handles[:] = 0
    st.live[:] = 0
    st.logged[:] = 0
    live = st.live
    peak_at = 0
    work = 0
    for i in range(len(p.operations)):
        code = p.operations[i, _CODE]
        number = p.operations[i, _NUMBER]
        before = live[_PEAK]
        live[_AT] = i
        live[_HIGH] = live[_LIVE]
        if code <= SEGMENT:
            _bump(live, p.operations[i, _SIZES + 0], p.operations[i, _SIZES + 1])
            live[_LIVE] += p.operations[i, _SIZES + 2]
            live[_GRADIENTS] += p.operations[i, _SIZES + 3] - p.operations[i, _SIZES + 2]
            if code == CALL:
                _call(p, st, marks, number)
        elif code == SAVED:
            _take(p, st, p.handle_storage[number])
        elif code == UNUSED:
            if st.storages[number, _MARK] != 0:
                live[_LIVE] -= p.storages[number, _BYTES]
                _note(st, FREED_FIRST, number)
            _release(p, st, number)
        elif code == OUTPUT:
            if st.storages[number, _MARK] != 0:
                u = p.storages[number, _STEP]
                st.storages[number, _MARK] = 0
                st.storages[number, _REFERENCES] = st.storages[number, _COUNT]
                st.steps[u, _LEFT] -= st.storages[number, _COUNT]
                if st.steps[u, _LEFT] == 0 and st.steps[u, _HOLDING] == 1:
                    st.steps[u, _HOLDING] = 0
                    for at in range(p.steps[u, _INPUTS], p.steps[u + 1, _INPUTS]):
                        _release(p, st, p.inputs[at])
        elif code == UNPACKED:
            work = _unpack(p, st, marks, number, work, limit)
            if work > limit:
                return -1, -1, i
        elif code == DONE:
            s = p.handle_storage[number]
            if st.handles[number, _HELD] == _KEPT_REFERENCE:
                _drop_kept(p, st, s)
            elif st.handles[number, _HELD] == _MEMO_REFERENCE:
                _drop_instance(p, st, s)
            elif st.handles[number, _HELD] == _OWN_REFERENCE:
                live[_LIVE] -= p.storages[s, _AGAIN]
                _note(st, FREED_AGAIN, s)
        elif code == GONE and st.handles[number, _SERVED] == 0:
            _release(p, st, p.handle_storage[number])
        if live[_PEAK] > before:
            peak_at = i
        if len(highs):
            highs[i] = max(live[_HIGH], live[_LIVE])
    return live[_PEAK], live[_ALL_PEAK], peak_at
