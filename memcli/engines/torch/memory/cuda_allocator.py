"""PyTorch's caching allocator for CUDA, played through: what a step takes from the device.

After ``c10/cuda/CUDACachingAllocator.cpp`` (no rounding to powers of two, no limit on splitting):
sizes are rounded up to 512 bytes; up to 1 MiB come from segments of 2 MiB, up to 10 MiB from
segments of 20 MiB, more from segments of their own in steps of 2 MiB; the smallest free block of
the stream that fits is taken, and split where enough is left; neighbours are joined when freed;
free segments are given back only where the device has no memory left. With expandable segments
(``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True``) each stream has one range of addresses for
small and one for large blocks, of which pages of 2 and of 20 MiB are taken as they are needed.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 512  # every size is rounded up to a multiple of it
SMALL = 1 << 20  # the largest request that the small pool serves; the most that is not split off
_SMALL_SEGMENT = 2 << 20
_LARGE_SEGMENT = 20 << 20
_OWN_SEGMENT = 10 << 20  # from here on a request gets a segment of its own
_OWN_STEP = 2 << 20
# Addresses of an expandable segment: more than any device has.
_ADDRESS_SPACE = 1 << 40


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on a device in a training step that is not the first.

    ``requested_peak`` and ``allocated_peak``: over what is there before the step, parameters'
    gradients included, as ``torch.cuda.memory_stats`` counts ``requested_bytes`` and
    ``allocated_bytes``, the second with what is not split off from blocks that are too long.
    ``reserved_peak``: taken from the device in all, with parameters, states and inputs
    (``resident``) and what cuBLAS keeps (``workspaces``).
    """

    requested_peak: int
    allocated_peak: int
    reserved_peak: int
    resident: int
    workspaces: int = 0


class OutOfMemory(Exception):
    """The device has no memory left for a segment, not even without the free ones."""


class Block:
    """A stretch of a segment: allocated, free, or (``mapped`` False) addresses without memory."""

    __slots__ = (
        "address",
        "after",
        "allocated",
        "before",
        "expandable",
        "mapped",
        "requested",
        "size",
        "small",
        "stream",
    )

    def __init__(self, address: int, size: int, stream: int, small: bool) -> None:
        self.address = address
        self.size = size
        self.stream = stream
        self.small = small
        self.requested = 0  # bytes that were asked for
        self.allocated = False
        self.mapped = True
        self.expandable = False
        self.before: Block | None = None
        self.after: Block | None = None


def rounded(size: int) -> int:
    """A request as the allocator serves it: whole blocks of 512 bytes."""
    return -(-size // BLOCK) * BLOCK


def segment_size(size: int) -> int:
    """The segment that is taken from the device for a request of ``size`` bytes, rounded."""
    if size <= SMALL:
        return _SMALL_SEGMENT
    if size < _OWN_SEGMENT:
        return _LARGE_SEGMENT
    return -(-size // _OWN_STEP) * _OWN_STEP


class CachingAllocator:
    """The allocator of one device.

    ``allocated``, ``requested`` and ``reserved``: bytes now, as ``torch.cuda.memory_stats`` counts
    them (``requested_bytes`` is before rounding); ``*_peak``: the most so far.

    Args:
        expandable: as with ``expandable_segments:True``.
        capacity: bytes that the device has for segments; None: no end of them.
        place: the address of a new segment of so many bytes for a stream's small or large blocks.
            Left out, addresses are made up: segments lie far apart in the order in which they
            are taken.
    """

    def __init__(
        self,
        *,
        expandable: bool = False,
        capacity: int | None = None,
        place: Callable[[int, int, bool], int] | None = None,
    ) -> None:
        self.expandable = expandable
        self.capacity = capacity
        self.blocks: dict[int, Block] = {}  # allocated ones by address
        self.allocated = self.requested = self.reserved = 0
        self.allocated_peak = self.requested_peak = self.reserved_peak = 0
        self._place = place or self._far_apart
        self._next = 0
        # free blocks of each stream's small and large pool, in order of size and address
        self._free: dict[tuple[int, bool], list[tuple[int, int, Block]]] = {}
        # of expandable segments: where addresses without memory are
        self._unmapped: dict[tuple[int, bool], list[tuple[int, Block]]] = {}

    def allocate(self, size: int, stream: int = 0) -> int:
        """The address of a block; -1 for no bytes.

        Raises:
            OutOfMemory: there is no free block that fits, and no memory for another segment.
        """
        if size <= 0:
            return -1
        asked, size = size, rounded(size)
        block = self.fitting(size, stream)
        if block is not None:
            self._take_out(block)
        elif self.expandable:
            block = self._mapped(size, stream)
        else:
            length = segment_size(size)
            self._ask_device(length)
            block = self.add_segment(self._place(length, stream, size <= SMALL), length, stream)
            self._take_out(block)
        left = block.size - size
        if left >= BLOCK if block.small or block.expandable else left > SMALL:
            self._split(block, size)
        self._hold(block, asked)
        return block.address

    def free(self, address: int) -> None:
        """Gives a block back, joined with free neighbours; nothing for an address of -1."""
        if address < 0:
            return
        block = self.blocks.pop(address)
        block.allocated = False
        self.allocated -= block.size
        self.requested -= block.requested
        block.requested = 0
        self._put(self._joined(block))

    def empty_cache(self) -> None:
        """Gives every segment back that is free as a whole, as ``torch.cuda.empty_cache`` does.

        Of expandable segments: every page that is.
        """
        for pool in list(self._free.values()):
            for _, _, block in list(pool):
                if block.expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    self._take_out(block)
                    self.reserved -= block.size

    def fitting(self, size: int, stream: int = 0) -> Block | None:
        """The free block that a request of ``size`` bytes (rounded) is served from; None: none."""
        pool = self._free.get((stream, size <= SMALL))
        if not pool:
            return None
        at = bisect.bisect_left(pool, (size, -1))
        if at == len(pool):
            return None
        block = pool[at][2]
        if self.expandable:
            # What an expandable block could grow to counts as its size.
            while block.expandable and at + 1 < len(pool) and _room(pool[at + 1][2]) < _room(block):
                at += 1
                block = pool[at][2]
        return block

    def add_segment(
        self,
        address: int,
        length: int,
        stream: int = 0,
        small: bool | None = None,
        held: list[tuple[int, int, int]] | None = None,
    ) -> Block:
        """A segment of the device's memory.

        Args:
            address: where it lies.
            length: its bytes.
            stream: whose blocks come from it.
            small: of which pool; left out, it is told by the length.
            held: blocks of it that are allocated, in order: address, bytes, bytes asked for.

        Returns:
            Its first block.
        """
        small = length == _SMALL_SEGMENT if small is None else small
        self.reserved += length
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        block = Block(address, length, stream, small)
        self._fill(block, held or [])
        return block

    def add_expandable(
        self,
        address: int,
        stream: int,
        small: bool,
        pages: list[tuple[int, int]],
        held: list[tuple[int, int, int]],
    ) -> None:
        """An expandable segment with memory at some of its addresses.

        Args:
            address: where it begins.
            stream: whose blocks come from it.
            small: of which pool.
            pages: where it has memory, in order: address, bytes; no two touch.
            held: blocks that are allocated, in order: address, bytes, bytes asked for.
        """
        end = address + _ADDRESS_SPACE
        block = Block(address, _ADDRESS_SPACE, stream, small)
        block.expandable, block.mapped = True, False
        for start, length in pages:
            if start > block.address:
                self._put_unmapped(block)
                block = self._cut(block, start)
            after = self._cut(block, start + length) if start + length < end else None
            block.mapped = True
            self.reserved += length
            self._fill(block, [h for h in held if start <= h[0] < start + length])
            if after is None:
                return
            after.mapped = False
            block = after
        self._put_unmapped(block)
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def remove_segment(self, address: int, length: int) -> bool:
        """The segment is given back; False where it is not there, or not free as a whole."""
        for pool in self._free.values():
            at = bisect.bisect_left(pool, (length, address))
            if at < len(pool) and pool[at][:2] == (length, address):
                block = pool[at][2]
                if block.before is None and block.after is None and not block.expandable:
                    self._take_out(block)
                    self.reserved -= length
                    return True
        return False

    def remove_pages(self, address: int, length: int) -> bool:
        """The pages of an expandable segment are given back; False where they are not free."""
        for pool in self._free.values():
            for _, start, block in pool:
                if start <= address and address + length <= start + block.size:
                    if not block.expandable:
                        return False
                    self._unmap(block, address, length)
                    return True
        return False

    def _far_apart(self, length: int, stream: int, small: bool) -> int:
        address = self._next
        self._next += length + BLOCK  # never neighbours of another segment's blocks
        return address

    def _ask_device(self, length: int) -> None:
        if self.capacity is None or self.reserved + length <= self.capacity:
            return
        self.empty_cache()
        if self.reserved + length > self.capacity:
            raise OutOfMemory(f"{length} bytes")

    def _fill(self, block: Block, held: list[tuple[int, int, int]]) -> None:
        """The blocks of memory that has only just come: those that are held, and what is free."""
        for address, size, asked in held:
            if address > block.address:
                rest = self._cut(block, address)
                self._put(block)
                block = rest
            end = address + size
            after = self._cut(block, end) if end < block.address + block.size else None
            self._hold(block, asked)
            if after is None:
                return
            block = after
        self._put(block)

    def _hold(self, block: Block, asked: int) -> None:
        block.allocated = True
        block.requested = asked
        self.blocks[block.address] = block
        self.allocated += block.size
        self.requested += asked
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        self.requested_peak = max(self.requested_peak, self.requested)

    def _cut(self, block: Block, address: int) -> Block:
        """The block's part from an address on, as a block of its own that is nowhere listed."""
        rest = Block(address, block.address + block.size - address, block.stream, block.small)
        rest.expandable, rest.mapped = block.expandable, block.mapped
        block.size -= rest.size
        rest.before, rest.after = block, block.after
        if rest.after is not None:
            rest.after.before = rest
        block.after = rest
        return rest

    def _split(self, block: Block, size: int) -> None:
        self._put(self._cut(block, block.address + size))

    def _joined(self, block: Block) -> Block:
        """A free block, nowhere listed, with the free ones beside it."""
        before, after = block.before, block.after
        if before is not None and before.mapped == block.mapped and not before.allocated:
            self._take_out(before)
            before.size += block.size
            before.after = after
            if after is not None:
                after.before = before
            block = before
        if after is not None and after.mapped == block.mapped and not after.allocated:
            self._take_out(after)
            block.size += after.size
            block.after = after.after
            if after.after is not None:
                after.after.before = block
        return block

    def _put(self, block: Block) -> None:
        pool = self._free.setdefault((block.stream, block.small), [])
        bisect.insort(pool, (block.size, block.address, block))

    def _put_unmapped(self, block: Block) -> None:
        pool = self._unmapped.setdefault((block.stream, block.small), [])
        bisect.insort(pool, (block.address, block))

    def _take_out(self, block: Block) -> None:
        if block.mapped:
            pool = self._free[block.stream, block.small]
            pool.pop(bisect.bisect_left(pool, (block.size, block.address)))
        else:
            unmapped = self._unmapped[block.stream, block.small]
            unmapped.pop(bisect.bisect_left(unmapped, (block.address,)))

    # Expandable segments

    def _mapped(self, size: int, stream: int) -> Block:
        """A block of ``size`` bytes or more at addresses that get memory now; nowhere listed."""
        block = self._expandable_block(size, stream)
        if not block.mapped:
            block = self._map(block, min(block.size, size))
        while block.size < size:
            after = block.after
            assert after is not None
            block = self._map(after, min(size - block.size, after.size))
        self._take_out(block)
        return block

    def _expandable_block(self, size: int, stream: int) -> Block:
        small = size <= SMALL
        for _, block in self._unmapped.get((stream, small), []):
            first = block
            if block.before is not None and not block.before.allocated:
                first = block.before
            room, at = 0, first
            while at is not None and not at.allocated and room < size:
                room += at.size
                at = at.after  # type: ignore[assignment]  # ends with None
            if room >= size:
                return first
        block = Block(self._place(_ADDRESS_SPACE, stream, small), _ADDRESS_SPACE, stream, small)
        block.expandable, block.mapped = True, False
        self._put_unmapped(block)
        return block

    def _map(self, block: Block, size: int) -> Block:
        """Memory for the first ``size`` bytes of a block, in whole pages; joined with free ones."""
        page = _SMALL_SEGMENT if block.small else _LARGE_SEGMENT
        length = min(-(-size // page) * page, block.size)
        self._ask_device(length)
        self._take_out(block)
        if length < block.size:
            self._put_unmapped(self._cut(block, block.address + length))
        block.mapped = True
        self.reserved += length
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        block = self._joined(block)
        self._put(block)
        return block

    def _unmap(self, block: Block, address: int | None = None, length: int | None = None) -> None:
        """Takes the memory from a free block: of its whole pages, or of those that are named."""
        if address is None or length is None:
            page = _SMALL_SEGMENT if block.small else _LARGE_SEGMENT
            base = block
            while base.before is not None:
                base = base.before
            start = base.address + -(-(block.address - base.address) // page) * page
            end = base.address + (block.address + block.size - base.address) // page * page
            if end <= start:
                return
            address, length = start, end - start
        self._take_out(block)
        if address > block.address:
            rest = self._cut(block, address)
            self._put(block)
            block = rest
        if address + length < block.address + block.size:
            self._put(self._cut(block, address + length))
        block.mapped = False
        self.reserved -= length
        self._put_unmapped(self._joined(block))


def _room(block: Block) -> int:
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)
