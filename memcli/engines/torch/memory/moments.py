"""What of a recorded PyTorch step no plan changes: who is alive at which moment, and needed when.

Autograd asks for saved tensors in one order whatever the plan, and everything that runs again runs
when it asks (:mod:`memcli.engines.torch.run`). Between two requests gradients and temporaries come
and go as they always do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.memory.trace import Trace

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]


@dataclass
class Moments:
    """Requests of the backward pass, and moments at which memory can be highest. Sizes in bytes.

    A storage is held at a moment if every plan has it alive then: the forward pass will still read
    it, autograd has asked for it and not let go of it, or the graph gives it out. ``sizes``: of
    each storage, the smaller of what it takes when made first and when recomputed.

    Over requests, in their order: ``wanted`` (the storage), ``before`` (bytes alive just before,
    whatever the plan) and ``held_before`` (which storages these bytes count). Over moments, in
    their order: ``most`` (bytes alive), ``held``, ``following`` (the first request that is still
    to come), and ``made`` (steps that have run in the forward pass). Rows of what is held are bits:
    see :func:`columns`.
    """

    sizes: Ints
    wanted: Ints
    before: Ints
    held_before: Bits
    most: Ints
    held: Bits
    following: Ints
    made: Ints


def columns(rows: Bits, storages: Ints) -> NDArray[np.bool_]:
    """Which of some storages are in each row."""
    return np.asarray(rows[:, storages >> 3] >> (storages & 7) & 1, bool)


class _Recorder:
    """Goes through the events and keeps the highest moment between each two requests or calls."""

    def __init__(self, trace: Trace, block: int) -> None:
        self.trace = trace
        self.sizes = rounded(np.minimum(trace.storage_bytes, trace.again_bytes), block)
        self.first_sizes = rounded(trace.storage_bytes, block)
        self.reasons = [0] * len(self.sizes)  # for which each storage is held
        self.held = np.zeros(len(self.sizes), bool)
        self.live = 0
        self.made = 0
        self.requests: list[tuple[int, int, Bits]] = []
        self.moments: list[tuple[int, Bits, int, int]] = []
        self.high = -1  # since the last request or call
        self.at_high: Bits | None = None  # what was held then; None: what is held now

    def change(self, size: int) -> None:
        """Memory is taken, or given back, that every plan takes."""
        self.live += size
        if self.live > self.high:
            self.high, self.at_high = self.live, None

    def _turn(self, storage: int, held: bool) -> None:
        if self.at_high is None:
            self.at_high = self._now()
        self.held[storage] = held
        self.change(int(self.sizes[storage]) * (1 if held else -1))

    def _now(self) -> Bits:
        return np.packbits(self.held, bitorder="little")

    def hold(self, storage: int) -> None:
        """One reason more for which a storage is there under every plan."""
        self.reasons[storage] += 1
        if self.reasons[storage] == 1:
            self._turn(storage, True)

    def release(self, storage: int) -> None:
        """One reason less."""
        if self.reasons[storage]:
            self.reasons[storage] -= 1
            if not self.reasons[storage]:
                self._turn(storage, False)

    def part(self) -> None:
        """A moment ends: what follows has another request before it, or another step made."""
        if self.high >= 0:
            held = self._now() if self.at_high is None else self.at_high
            self.moments.append((self.high, held, len(self.requests), self.made))
        self.high, self.at_high = -1, None

    def request(self, storage: int) -> None:
        """Autograd asks for a storage."""
        self.part()
        self.requests.append((storage, self.live, self._now()))
        self.hold(storage)
        self.change(0)

    def end(self, step: int) -> None:
        """A step of the forward pass returned."""
        self.part()
        made = range(int(self.trace.first[step]), int(self.trace.first[step + 1]))
        # tensors of the call that turn out to be its results were counted by it
        self.live -= int(self.first_sizes[made.start : made.stop].sum())
        self.made = step + 1
        for storage in made:
            if not self.trace.auxiliary[storage]:
                self.hold(storage)


def moments_of(trace: Trace, block: int = 1) -> Moments:
    """Everything about a trace that holds under all plans.

    ``block``: every storage is rounded up to a multiple of it.
    """
    at = _Recorder(trace, block)
    handle_storage, auxiliary = trace.handle_storage.tolist(), trace.auxiliary.tolist()
    change = rounded(trace.event_bytes, block).tolist()
    asked: set[int] = set()
    again = False
    for kind, number, size in zip(
        trace.kinds.tolist(), trace.numbers.tolist(), change, strict=True
    ):
        if kind in (events.AGAIN, events.AGAIN_END):
            again = kind == events.AGAIN
        elif again:
            continue  # what a second run would take: no plan has to
        elif kind == events.ALLOCATED:
            at.change(size)
        elif kind == events.FREED:
            at.change(-size)
        elif kind == events.END:
            at.end(number)
        elif kind == events.OUTPUT:
            at.hold(number)
        elif kind == events.UNUSED:
            if not auxiliary[number]:
                at.release(number)
        elif kind == events.UNPACKED:
            if number not in asked:
                asked.add(number)
                at.request(handle_storage[number])
        elif kind in (events.DONE, events.GONE) and number in asked:
            asked.discard(number)
            at.release(handle_storage[number])
    at.part()
    bits = (-1, -(-len(at.sizes) // 8))
    return Moments(
        sizes=at.sizes,
        wanted=np.array([r[0] for r in at.requests], np.int64),
        before=np.array([r[1] for r in at.requests], np.int64),
        held_before=np.array([r[2] for r in at.requests], np.uint8).reshape(bits),
        most=np.array([m[0] for m in at.moments], np.int64),
        held=np.array([m[1] for m in at.moments], np.uint8).reshape(bits),
        following=np.array([m[2] for m in at.moments], np.int64),
        made=np.array([m[3] for m in at.moments], np.int64),
    )


def rounded(sizes: NDArray[np.int64], block: int) -> Ints:
    """Sizes rounded up to whole blocks."""
    return np.asarray(-(-sizes // block) * block, np.int64)
