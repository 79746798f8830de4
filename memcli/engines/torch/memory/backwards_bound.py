"""A bound by search: the least memory of any order of recomputations, searched backwards.

A relaxation of what plans can do: at each request of the backward pass any steps may run again, in
any order and as often as it pays, and each tensor may be let go or held at any time, apart from
all others. Every plan is one such schedule, so that the best schedule bounds every plan.

The search begins at the last request and goes back in time. Its state is a request and the set of
tensors that have to be there at it for what follows: a set, so that nothing is ever chosen to be
let go. A tensor of the set was made at this request (its step ran then: in the place of what the
step made come what it read), or was there before (the set is handed on to the request before,
with what that one asks for). At the first request the set is what the forward pass has to keep. A
state's price is the most memory of what follows it; the cheapest are gone on with first, as in
Dijkstra's algorithm (Numerische Mathematik 1, 1959) with the greatest price in place of the sum.
So the first state to come through the forward pass is the best, and until then the price of the
state at hand is a bound. With a limit on recomputed FLOPs, states of one set that have spent
fewer are gone on with, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memcli.compiled import compiled
from memcli.engines.torch.memory.model import TorchModel, storage_steps
from memcli.engines.torch.memory.moments import Ints, Moments, columns

# Tensors that count: those of more than this part of the bound so far; last all that take any.
_PARTS = (1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 0)
_MOST_STORAGES = 512
_STATES = 200_000  # of one search; about a second
_FEW_STATES = 2_000  # for which it is tried first

_ONE = np.uint64(1)
_WORD = 64
_END = -1  # in place of a request: through the forward pass

Sets = NDArray[np.uint64]  # a row of words for each


@compiled
def _bytes(table, members):
    """Of a set of tensors; ``table``: of each byte of a set, whatever its value."""
    total = np.int64(0)
    at = 0
    for word in members:
        for _ in range(_WORD // 8):
            total += table[at, word & np.uint64(255)]
            word >>= np.uint64(8)
            at += 1
    return total


@compiled
def _before(a, b, price, place, spent):
    """Whether state a is gone on with first: cheaper, then earlier in time, then fewer FLOPs."""
    if price[a] != price[b]:
        return price[a] < price[b]
    if place[a] != place[b]:
        return place[a] < place[b]
    return spent[a] < spent[b]


@compiled
def _push(heap, count, state, price, place, spent):
    at = count
    heap[at] = state
    while at > 0 and _before(heap[at], heap[(at - 1) // 2], price, place, spent):
        up = (at - 1) // 2
        heap[at], heap[up] = heap[up], heap[at]
        at = up


@compiled
def _pop(heap, count, price, place, spent):
    """The first of ``count`` states, taken out."""
    first = heap[0]
    count -= 1
    heap[0] = heap[count]
    at = 0
    while True:
        least = at
        for down in (2 * at + 1, 2 * at + 2):
            if down < count and _before(heap[down], heap[least], price, place, spent):
                least = down
        if least == at:
            return first
        heap[at], heap[least] = heap[least], heap[at]
        at = least


@compiled
def _find(table, sets, place, members, request):
    """Where the table has the first state of this set at this request, or where it belongs."""
    mixed = np.uint64(request + 1) * np.uint64(0xC2B2AE3D27D4EB4F)
    for word in members:
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ word) * np.uint64(0x9E3779B97F4A7C15)
    at = np.int64((mixed ^ (mixed >> np.uint64(32))) % np.uint64(table.shape[0]))
    while table[at] >= 0:
        state = table[at]
        if place[state] == request:
            k = 0
            while k < members.shape[0] and sets[state, k] == members[k]:
                k += 1
            if k == members.shape[0]:
                break
        at = (at + 1) % table.shape[0]
    return at


@compiled
def _handed_on(members, j, bound, held, made, moments, most, sizes, asked, held_before, rest):
    """The price if the set was there before request ``j``; ``rest``: the set at the one before."""
    words = members.shape[0]
    for m in range(moments[j], moments[j + 1]):
        for k in range(words):
            rest[k] = members[k] & ~held[m, k] & made[m, k]
        bound = max(bound, most[m] + _bytes(sizes, rest))
    for k in range(words):
        rest[k] = np.uint64(0)
        if j > 0:
            rest[k] = (members[k] | asked[j - 1, k]) & ~held_before[j - 1, k]
    return bound


@compiled
def _run_at(members, j, u, before, working, inside, makes, reads, sizes, held_before, rest):
    """What it takes that step ``u`` ran at request ``j``; ``rest``: the set without it.

    Less than 0 where nothing is needed now that was not needed before it ran.
    """
    takes = before[j] + working[u, 0]
    less = True
    for k in range(members.shape[0]):
        if members[k] & inside[u, k]:
            takes = before[j] + working[u, 1]
        rest[k] = ((members[k] & ~makes[u, k]) | reads[u, k]) & ~held_before[j, k]
        if rest[k] & ~members[k]:
            less = False
    takes += _bytes(sizes, rest)
    return -takes if less else takes


@compiled
def _search(
    sizes,
    step_of,
    reads,
    makes,
    inside,
    working,
    flops,
    asked,
    before,
    held_before,
    most,
    held,
    made,
    moments,
    low,
    ceiling,
    limit,
    room,
):
    """A bound between ``low`` and ``ceiling``, and whether the search came to its end.

    Sets are bits: of each step what it ``reads`` and ``makes`` (``inside``: auxiliaries), of each
    request what is ``asked`` for and held before it, of each moment what is held and has been made.
    ``sizes``: see :func:`_bytes`. ``working``: over steps, run for its results or for auxiliaries,
    too. ``moments``: those before each request, CSR. ``room``: for how many states.
    """
    words, storages = reads.shape[1], step_of.shape[0]
    sets = np.zeros((room, words), np.uint64)
    place = np.zeros(room, np.int64)
    price = np.zeros(room, np.int64)
    spent = np.zeros(room, np.float64)
    # of the first state of each set: the least FLOPs it was gone on with, the cheapest that waits
    done = np.full(room, np.inf)
    queued = np.full(room, np.iinfo(np.int64).max)
    queued_flops = np.full(room, np.inf)
    heap = np.zeros(room, np.int64)
    table = np.full(2 * room + 1, -1, np.int64)
    rest = np.zeros(words, np.uint64)
    place[0] = asked.shape[0] - 1
    price[0] = low
    for k in range(words):
        sets[0, k] = asked[place[0], k] & ~held_before[place[0], k]
    table[_find(table, sets, place, sets[0], place[0])] = 0
    count = waiting = 1
    while waiting:
        state = _pop(heap, waiting, price, place, spent)
        waiting -= 1
        bound, j, members = price[state], place[state], sets[state]
        if j == _END:
            return bound, True
        first = table[_find(table, sets, place, members, j)]
        if done[first] <= spent[state]:
            continue
        done[first] = spent[state]
        # If a step can have run without more memory and the set is only smaller for it, it did.
        forced = -1
        if limit == np.inf:
            for s in range(storages):
                if members[s // _WORD] >> np.uint64(s % _WORD) & _ONE and forced < 0:
                    takes = _run_at(
                        members,
                        j,
                        step_of[s],
                        before,
                        working,
                        inside,
                        makes,
                        reads,
                        sizes,
                        held_before,
                        rest,
                    )
                    if takes <= 0 and -takes <= bound:
                        forced = s
        previous = -1
        for s in range(-1, storages):
            used, to = spent[state], j
            if forced >= 0 and s != forced:
                continue
            if s < 0:
                to = j - 1
                key = _handed_on(
                    members, j, bound, held, made, moments, most, sizes, asked, held_before, rest
                )
            else:
                u = step_of[s]
                there = members[s // _WORD] >> np.uint64(s % _WORD) & _ONE
                if not there or u == previous or used + flops[u] > limit:
                    continue
                previous = u
                used += flops[u]
                takes = _run_at(
                    members, j, u, before, working, inside, makes, reads, sizes, held_before, rest
                )
                key = max(bound, abs(takes))
            if key >= ceiling:
                continue
            at = _find(table, sets, place, rest, to)
            first = table[at]
            if first >= 0 and (
                done[first] <= used or (queued[first] <= key and queued_flops[first] <= used)
            ):
                continue
            if count == room:
                return bound, False
            for k in range(words):
                sets[count, k] = rest[k]
            place[count], price[count], spent[count] = to, key, used
            if first < 0:
                first = count
                table[at] = count
            queued[first], queued_flops[first] = key, used
            _push(heap, waiting, count, price, place, spent)
            count += 1
            waiting += 1
    return ceiling, True


def backwards_bound(model: TorchModel, moments: Moments, low: int, ceiling: int) -> int:
    """Bytes that no plan's live peak is under.

    ``low``: a bound that is known; ``ceiling``: a plan's live peak, where the search ends.
    Searched first with the largest tensors alone, as if the others were always there and took
    nothing, then with more and more of them, as long as a search comes to its end.
    """
    if low >= ceiling or not len(moments.wanted):
        return low
    for part in _PARTS:
        chosen = np.flatnonzero(moments.sizes > part * low)
        if len(chosen) > _MOST_STORAGES:
            break
        low, ended = _of_some(model, moments, chosen, low, ceiling, np.inf)
        if low >= ceiling or not ended:
            break
    return low


def limited_bound(model: TorchModel, moments: Moments, low: int, ceiling: int, limit: float) -> int:
    """Bytes that no plan's live peak is under that recomputes at most ``limit`` FLOPs.

    ``low``: a bound of all plans; the rest as in :func:`backwards_bound`. All tensors count: what
    was taken to be always there would need no FLOPs either.
    """
    everything = np.arange(len(moments.sizes))
    if low >= ceiling or not len(moments.wanted) or len(everything) > _MOST_STORAGES:
        return low
    return _of_some(model, moments, everything, low, ceiling, limit)[0]


def _of_some(
    model: TorchModel, moments: Moments, chosen: Ints, low: int, ceiling: int, limit: float
) -> tuple[int, bool]:
    """A bound by the search with some of the storages, and whether it came to its end."""
    trace = model.trace
    step_of = storage_steps(trace)
    number = np.full(len(step_of), -1, np.int64)
    number[chosen] = np.arange(len(chosen))
    reads = np.zeros((trace.n_steps, len(chosen)), bool)
    reader = np.repeat(np.arange(trace.n_steps), np.diff(trace.input_first))
    read = number[trace.inputs]
    reads[reader[read >= 0], read[read >= 0]] = True
    makes = step_of[chosen] == np.arange(trace.n_steps)[:, None]
    plain, capturing = model.again_peaks
    least = np.where(model.has_auxiliaries, np.minimum(plain, capturing), plain)
    given = (
        _size_table(moments.sizes[chosen]),
        step_of[chosen],
        _sets(reads),
        _sets(makes),
        _sets(makes & trace.auxiliary[chosen]),
        np.stack([least, capturing], axis=1),
        np.zeros(trace.n_steps) if np.isinf(limit) else trace.flops.astype(np.float64),
        _sets(moments.wanted[:, None] == chosen),
        moments.before,
        _sets(columns(moments.held_before, chosen)),
        moments.most,
        _sets(columns(moments.held, chosen)),
        _sets(step_of[chosen] < moments.made[:, None]),
        np.searchsorted(moments.following, np.arange(len(moments.wanted) + 1)),
    )
    ended = False
    for room in (_FEW_STATES, _STATES):
        if not ended:
            low, ended = _search(*given, low, ceiling, limit, room)
    return int(low), bool(ended)


def _sets(rows: NDArray[np.bool_]) -> Sets:
    """Each row as a set."""
    padded = np.zeros((len(rows), max(1, -(-rows.shape[1] // _WORD)) * _WORD), bool)
    padded[:, : rows.shape[1]] = rows
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def _size_table(sizes: Ints) -> Ints:
    """Over bytes of a set and their values: the bytes of memory of the tensors in it."""
    padded = np.zeros(max(1, -(-len(sizes) // _WORD)) * _WORD, np.int64)
    padded[: len(sizes)] = sizes
    values = np.arange(256)
    chosen = values[:, None] >> np.arange(8) & 1
    return np.asarray(padded.reshape(-1, 8) @ chosen.T, np.int64)
