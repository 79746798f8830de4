"""Training steps played through CUDA's caching allocator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory import kernels
from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.memory.cuda_allocator import CachingAllocator, DeviceMemory
from memcli.engines.torch.memory.trace import Trace

# cuBLAS's work space, by the rule of ``parseChosenWorkspaceSize`` (ATen/cuda/CublasHandlePool.cpp).
_HOPPER_WORKSPACE = 4096 * 8 * 1024
_OTHER_WORKSPACE = (4096 * 2 + 16 * 8) * 1024
# What is taken where nobody says which card it is.
BLAS_WORKSPACE = _HOPPER_WORKSPACE


def blas_workspace(capability: int | None, config: str = "") -> int:
    """Bytes of cuBLAS's work space in each thread that multiplies matrices.

    Args:
        capability: the card's major compute capability; None: not known.
        config: ``CUBLAS_WORKSPACE_CONFIG``, such as ``:4096:8``, sizes in KiB and how many.

    Returns:
        Bytes: 32 MiB on Hopper and Blackwell, 8.125 MiB elsewhere; the larger where not known.
    """
    parts = config.split(":")
    if config.startswith(":") and len(parts) % 2 and all(p.isdecimal() for p in parts[1:]):
        numbers = [int(p) for p in parts[1:]]
        sizes = zip(numbers[::2], numbers[1::2], strict=True)
        return sum(size * count for size, count in sizes) * 1024
    if capability is None or capability in (9, 10):
        return _HOPPER_WORKSPACE
    return _OTHER_WORKSPACE


def replay(
    trace: Trace, ends: list[int], log: NDArray[np.int64], workspace: int, steps: int = 2
) -> DeviceMemory:
    """Plays training steps through the allocator; the last one's peaks.

    ``ends``: the event with which each operation of the memory model ends; ``log``: what a plan
    frees and runs again at which operation (see ``kernels.State``).
    """
    allocator = CachingAllocator()
    for size in trace.resident_bytes.tolist():
        allocator.allocate(size)
    resident = allocator.allocated
    player = _Player(trace, allocator, workspace)
    for number in range(steps):
        player.end()
        if number == steps - 1:
            before = allocator.requested, allocator.allocated
            allocator.requested_peak, allocator.allocated_peak = before
        player.step(ends, log)
    return DeviceMemory(
        requested_peak=allocator.requested_peak - before[0],
        allocated_peak=allocator.allocated_peak - before[1],
        reserved_peak=allocator.reserved_peak,
        resident=resident,
        workspaces=workspace * len(player.workspaces),
    )


def allocations(
    trace: Trace, ends: list[int], log: NDArray[np.int64]
) -> list[tuple[int, int, str]]:
    """What a step allocates and frees in order: number of the allocation, bytes, and where.

    Bytes are below 0 where it is freed.
    """
    player = _Player(trace, CachingAllocator(), 0)
    player.step(ends, log)
    return player.made


class _Player:
    """Plays the events of a trace. ``made``: as :func:`allocations` gives it."""

    def __init__(self, trace: Trace, allocator: CachingAllocator, workspace: int) -> None:
        self.trace = trace
        self.allocator = allocator
        self.workspace = workspace
        self.workspaces: set[int] = set()  # threads that have theirs
        self.made: list[tuple[int, int, str]] = []
        self.number: dict[int, tuple[int, int]] = {}  # of what is allocated, by address
        self.count = 0
        self.where = ""
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

    def step(self, ends: list[int], log: NDArray[np.int64]) -> None:
        """One training step under the plan whose log it is."""
        rows = log.tolist()
        row = begin = 0
        for operation, end in enumerate(ends):
            self.play(begin, end)
            begin = end
            while row < len(rows) and rows[row][0] == operation:
                self.decide(rows[row][1], rows[row][2])
                row += 1
        self.play(begin, len(self.kinds))

    def end(self) -> None:
        """What a step leaves goes: outputs, and the parameters' gradients."""
        for address in self.address.values():
            self._free(address)
        for addresses in self.again.values():
            for address in addresses:
                self._free(address)
        self.address.clear()
        self.again.clear()

    def play(self, begin: int, end: int) -> None:
        """The events that every plan has."""
        i = begin
        while i < end:
            i = self.skip.get(i, i)
            kind, number = self.kinds[i], self.numbers[i]
            if kind in (events.ALLOCATED, events.PARAMETER_GRADIENT):
                self.address[number] = self._allocate(self.sizes[i])
            elif kind == events.FREED and number in self.address:
                self._free(self.address.pop(number))
            elif kind == events.WORKSPACE and number not in self.workspaces:
                self.workspaces.add(number)
                self.allocator.allocate(self.workspace)
            elif kind == events.BEGIN:
                self.where = f"forward {self.trace.names[number]}"
            elif kind == events.BACKWARD:
                self.where = f"backward {self.trace.names[number] if number >= 0 else ''}"
            i += 1

    def decide(self, what: int, number: int) -> None:
        """One row of the log."""
        if what == kernels.FREED_FIRST:
            self._free(self.address.pop(int(self.trace.storage_number[number]), -1))
        elif what == kernels.FREED_AGAIN:
            self._free(self.again[number].pop(0))
        else:
            self._run(number, what - kernels.RAN)

    def _allocate(self, size: int) -> int:
        address = self.allocator.allocate(size)
        if address >= 0:
            self.made.append((self.count, size, self.where))
            self.number[address] = self.count, size
            self.count += 1
        return address

    def _free(self, address: int) -> None:
        self.allocator.free(address)
        if address in self.number:
            number, size = self.number.pop(address)
            self.made.append((number, -size, self.where))

    def _run(self, step: int, capture: int) -> None:
        begin, end = self.second[step, capture]
        here: dict[int, int] = {}
        where, self.where = self.where, f"{self.where}, {self.trace.names[step]} again"
        for i in range(begin, end):
            number = self.numbers[i]
            if self.kinds[i] == events.ALLOCATED:
                here[number] = self._allocate(self.sizes[i])
            elif self.kinds[i] == events.FREED and number in here:
                self._free(here.pop(number))
        self.where = where
        trace = self.trace
        for s in range(int(trace.first[step]), int(trace.first[step + 1])):
            address = here.pop(int(trace.again_number[capture, s]), -1)
            self.again.setdefault(s, []).append(address)
        for address in here.values():
            self._free(address)
