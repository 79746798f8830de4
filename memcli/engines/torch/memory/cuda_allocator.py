"""PyTorch's caching allocator for CUDA, played through: what a step takes from the device.

After ``c10/cuda/CUDACachingAllocator.cpp`` with its default settings (no expandable segments, no
rounding to powers of two, no limit on splitting, one stream): sizes are rounded up to 512 bytes;
up to 1 MiB come from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, more from segments
of their own in steps of 2 MiB; the smallest free block that fits is taken, and split where enough
is left; neighbours are joined when freed; segments are never given back.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory import kernels
from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.memory.trace import Trace

_BLOCK = 512
_SMALL = 1 << 20  # the largest request that the small pool serves
_SMALL_SEGMENT = 2 << 20
_LARGE_SEGMENT = 20 << 20
_OWN_SEGMENT = 10 << 20  # from here on a request gets a segment of its own
_OWN_STEP = 2 << 20


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes. ``allocated_peak``: over what was there before the step, parameters' gradients
    included, as ``torch.cuda.max_memory_allocated`` counts. ``reserved_peak``: taken from the
    device in all, parameters, states and inputs (``resident``) included.
    """

    allocated_peak: int
    reserved_peak: int
    resident: int


class CachingAllocator:
    """Addresses are made up: segments lie far apart in the order in which they are taken."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self.allocated_peak = 0
        self._free: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])  # size, address
        self._size: dict[int, int] = {}  # of every block by address
        self._before: dict[int, int] = {}  # address of the block before it in its segment
        self._small: dict[int, bool] = {}
        self._is_free: set[int] = set()
        self._next = 0

    def allocate(self, size: int) -> int:
        """The address of a block; -1 for no bytes."""
        if size <= 0:
            return -1
        size = -(-size // _BLOCK) * _BLOCK
        small = size <= _SMALL
        pool = self._free[small]
        at = bisect.bisect_left(pool, (size, -1))
        if at < len(pool):
            found, address = pool.pop(at)
            self._is_free.discard(address)
        else:
            found, address = self._segment(size, small)
        left = found - size
        if left >= _BLOCK if small else left > _SMALL:
            self._size[address] = size
            rest = address + size
            self._put(rest, left, address, small)
            after = rest + left
            if after in self._before:
                self._before[after] = rest
            bisect.insort(pool, (left, rest))
            self._is_free.add(rest)
        self.allocated += self._size[address]
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        return address

    def free(self, address: int) -> None:
        """Gives a block back, joined with free neighbours."""
        if address < 0:
            return
        small = self._small[address]
        pool = self._free[small]
        size = self._size[address]
        self.allocated -= size
        after = address + size
        if after in self._is_free and self._before.get(after) == address:
            size += self._take_out(after, pool)
        before = self._before[address]
        if before in self._is_free:
            length = self._take_out(before, pool, forget=False)
            self._forget(address)
            address, size = before, size + length
        self._size[address] = size
        if address + size in self._before:
            self._before[address + size] = address
        bisect.insort(pool, (size, address))
        self._is_free.add(address)

    def _segment(self, size: int, small: bool) -> tuple[int, int]:
        if small:
            length = _SMALL_SEGMENT
        elif size < _OWN_SEGMENT:
            length = _LARGE_SEGMENT
        else:
            length = -(-size // _OWN_STEP) * _OWN_STEP
        address = self._next
        self._next += length + _BLOCK  # never neighbours of another segment's blocks
        self.reserved += length
        self._put(address, length, -1, small)
        return length, address

    def _put(self, address: int, size: int, before: int, small: bool) -> None:
        self._size[address] = size
        self._before[address] = before
        self._small[address] = small

    def _take_out(self, address: int, pool: list[tuple[int, int]], *, forget: bool = True) -> int:
        size = self._size[address]
        pool.pop(bisect.bisect_left(pool, (size, address)))
        self._is_free.discard(address)
        if forget:
            self._forget(address)
        return size

    def _forget(self, address: int) -> None:
        del self._size[address], self._before[address], self._small[address]


def replay(trace: Trace, ends: list[int], log: NDArray[np.int64]) -> DeviceMemory:
    """Play a step through the allocator.

    ``ends``: the event with which each operation of the memory model ends; ``log``: what a plan
    frees and runs again at which operation (see ``torch_kernels.State``).
    """
    allocator = CachingAllocator()
    for size in trace.resident_bytes.tolist():
        allocator.allocate(size)
    resident, allocator.allocated_peak = allocator.allocated, allocator.allocated
    player = _Player(trace, allocator)
    rows = log.tolist()
    row = begin = 0
    for operation, end in enumerate(ends):
        player.play(begin, end)
        begin = end
        while row < len(rows) and rows[row][0] == operation:
            player.decide(rows[row][1], rows[row][2])
            row += 1
    player.play(begin, len(trace.kinds))
    return DeviceMemory(allocator.allocated_peak - resident, allocator.reserved, resident)


class _Player:
    def __init__(self, trace: Trace, allocator: CachingAllocator) -> None:
        self.trace = trace
        self.allocator = allocator
        self.address: dict[int, int] = {}  # by number of the allocation
        self.again: dict[int, list[int]] = {}  # addresses of recomputed storages
        self.kinds = trace.kinds.tolist()
        self.numbers = trace.numbers.tolist()
        self.sizes = trace.event_bytes.tolist()
        self.skip: dict[int, int] = {}  # where second runs begin and end
        self.second: dict[tuple[int, int], tuple[int, int]] = {}
        begin = 0
        for i, kind in enumerate(self.kinds):
            if kind == events.AGAIN:
                begin = i
            elif kind == events.AGAIN_END:
                self.skip[begin] = i
                self.second[self.numbers[begin], self.sizes[begin]] = begin + 1, i

    def play(self, begin: int, end: int) -> None:
        """The events that every plan has."""
        i = begin
        while i < end:
            i = self.skip.get(i, i)
            kind, number = self.kinds[i], self.numbers[i]
            if kind in (events.ALLOCATED, events.PARAMETER_GRADIENT):
                self.address[number] = self.allocator.allocate(self.sizes[i])
            elif kind == events.FREED and number in self.address:
                self.allocator.free(self.address.pop(number))
            i += 1

    def decide(self, what: int, number: int) -> None:
        """One row of the log."""
        if what == kernels.FREED_FIRST:
            self.allocator.free(self.address.pop(int(self.trace.storage_number[number]), -1))
        elif what == kernels.FREED_AGAIN:
            self.allocator.free(self.again[number].pop(0))
        else:
            self._run(number, what - kernels.RAN)

    def _run(self, step: int, capture: int) -> None:
        begin, end = self.second[step, capture]
        here: dict[int, int] = {}
        for i in range(begin, end):
            number = self.numbers[i]
            if self.kinds[i] == events.ALLOCATED:
                here[number] = self.allocator.allocate(self.sizes[i])
            elif self.kinds[i] == events.FREED and number in here:
                self.allocator.free(here.pop(number))
        trace = self.trace
        for s in range(int(trace.first[step]), int(trace.first[step + 1])):
            address = here.pop(int(trace.again_number[capture, s]), -1)
            self.again.setdefault(s, []).append(address)
        for address in here.values():
            self.allocator.free(address)
