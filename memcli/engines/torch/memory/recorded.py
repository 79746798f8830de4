"""Recorded events of PyTorch's CUDA allocator, held against the emulated one address by address.

A recording is what ``torch.cuda.memory._record_memory_history`` keeps: the events, as many as there
was room for, and the segments at the end. The state at its start follows from the end, played
backwards. What is left open there is inferred from what follows: a block that was there before and
is freed later may be longer than its event says, because up to 1 MiB is not split off.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from typing import Any

from memcli.engines.torch.memory.cuda_allocator import (
    BLOCK,
    SMALL,
    Block,
    CachingAllocator,
    rounded,
    segment_size,
)

ALLOC, FREE = "alloc", "free_completed"
SEGMENT_ALLOC, SEGMENT_FREE = "segment_alloc", "segment_free"
SEGMENT_MAP, SEGMENT_UNMAP = "segment_map", "segment_unmap"
_KNOWN = {ALLOC, FREE, SEGMENT_ALLOC, SEGMENT_FREE, SEGMENT_MAP, SEGMENT_UNMAP}
# Inferences about the state at the start, past which a recording is taken for inconsistent.
_MOST_INFERRED = 10_000


class BadRecording(ValueError):
    """Not a recording of the allocator, or one that contradicts itself."""


@dataclass
class Replayed:
    """What became of a recording.

    ``allocations`` and ``segments`` are how many there were, ``exact`` how many of the allocations
    went to the address, and ``exact_segments`` how many new segments were as long and came when
    the rules say. ``inferred``: blocks and segments of which the state at the start was inferred.
    ``misses``: the first that went elsewhere. ``allocated_peak`` and ``reserved_peak``: bytes.
    """

    allocations: int = 0
    exact: int = 0
    segments: int = 0
    exact_segments: int = 0
    inferred: int = 0
    misses: list[str] = field(default_factory=list)
    allocated_peak: int = 0
    reserved_peak: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything went where the rules say."""
        return self.exact == self.allocations and self.exact_segments == self.segments


@dataclass
class _Segment:
    address: int
    size: int
    small: bool
    stream: int | None
    pages: bool  # a part of an expandable segment


@dataclass(frozen=True)
class _Event:
    action: str
    address: int
    size: int
    stream: int


def replay_recording(data: Any) -> Replayed:
    """Plays a recording through the emulated allocator.

    Args:
        data: ``{"events": [[action, address, bytes, stream], ...], "segments": [...], "settings":
            {...}}``, the segments as in ``torch.cuda.memory._snapshot()``, each with ``blocks``:
            ``[bytes, state]`` or ``{"size": ..., "state": ...}``.

    Returns:
        How many allocations and new segments went where the rules say.

    Raises:
        BadRecording: it is no recording, or contradicts itself.
    """
    recording = _Recording(data)
    start = recording.rewound()
    known: dict[int, int] = {}  # lengths of blocks at the start, by address
    foreign: set[int] = set()  # segments of which other streams or pools are served
    while True:
        play = _Play(recording, start, known, foreign)
        result = play.run()
        if play.learnt is None or len(known) + len(foreign) > _MOST_INFERRED:
            result.inferred = len(known) + len(foreign)
            return result
        kind, address, size = play.learnt
        if kind == "length":
            known[address] = size
        else:
            foreign.add(address)


class _Recording:
    """The events and the end, checked."""

    def __init__(self, data: Any) -> None:
        if not isinstance(data, dict) or not isinstance(data.get("events"), list):
            raise BadRecording("no list of events")
        if not isinstance(data.get("segments"), list):
            raise BadRecording("no list of segments")
        settings = data.get("settings")
        settings = settings if isinstance(settings, dict) else {}
        self.events = [e for e in map(_event, data["events"]) if e.action in _KNOWN]
        self.segments: list[_Segment] = []
        self.held: dict[int, int] = {}  # allocated at the end: address, bytes
        for segment in data["segments"]:
            self._add(segment)
        self.expandable = bool(settings.get("expandable_segments")) or any(
            s.pages for s in self.segments
        )

    def _add(self, segment: Any) -> None:
        if not isinstance(segment, dict) or not isinstance(segment.get("blocks"), list):
            raise BadRecording("a segment without blocks")
        address, size = _number(segment.get("address")), _number(segment.get("total_size"))
        stream = segment.get("stream")
        small = segment.get("segment_type", "small" if size == segment_size(1) else "large")
        self.segments.append(
            _Segment(
                address,
                size,
                small == "small",
                None if stream is None else _number(stream),
                bool(segment.get("is_expandable")),
            )
        )
        at = address
        for block in segment["blocks"]:
            if isinstance(block, dict):
                block = [block.get("size"), block.get("state")]
            if not isinstance(block, list) or len(block) != 2 or not isinstance(block[1], str):
                raise BadRecording("a block that is not [bytes, state]")
            length = _number(block[0])
            if block[1].startswith("active"):
                self.held[at] = length
            at += length
        if at > address + size:
            raise BadRecording("blocks past the end of their segment")

    def rewound(self) -> tuple[list[_Segment], dict[int, int], set[int]]:
        """The state at the start: segments, allocated blocks, those of uncertain length."""
        held = dict(self.held)
        uncertain: set[int] = set()
        segments = _Segments(self.segments)
        for event in reversed(self.events):
            action, address = event.action, event.address
            if action == ALLOC:
                if held.pop(address, None) is None:
                    raise BadRecording(f"an allocation at {address:#x} that nothing freed is gone")
                uncertain.discard(address)
                segments.used(event)
            elif action == FREE:
                if address in held:
                    raise BadRecording(f"a block at {address:#x} was freed while another is there")
                held[address] = rounded(event.size)
                uncertain.add(address)
                segments.used(event)
            elif action in (SEGMENT_ALLOC, SEGMENT_MAP):
                segments.remove(event)
            else:
                segments.add(event)
        return segments.listed(), held, uncertain


class _Segments:
    """Segments by address while a recording is played backwards."""

    def __init__(self, segments: list[_Segment]) -> None:
        self.all = [_Segment(**vars(s)) for s in segments]
        self.streams: dict[int, int] = {}  # learnt from events: address of a segment, stream
        self.now: dict[int, _Segment] = {}
        self.order: list[int] = []
        for segment in self.all:
            self._insert(segment)

    def of(self, address: int) -> _Segment | None:
        at = bisect.bisect_right(self.order, address) - 1
        if at < 0:
            return None
        segment = self.now[self.order[at]]
        return segment if address < segment.address + segment.size else None

    def used(self, event: _Event) -> None:
        segment = self.of(event.address)
        if segment is None or event.address + event.size > segment.address + segment.size:
            raise BadRecording(f"a block at {event.address:#x} lies in no segment")
        if segment.stream is None:
            segment.stream = event.stream
        if not segment.pages and event.action == ALLOC and segment.small != (event.size <= SMALL):
            raise BadRecording(f"a block at {event.address:#x} lies in a segment of the other pool")

    def remove(self, event: _Event) -> None:
        segment = self.of(event.address)
        end = event.address + event.size
        if segment is None or end > segment.address + segment.size:
            raise BadRecording(f"a segment at {event.address:#x} was taken and is not there")
        self._drop(segment)
        if not segment.pages and segment.size != event.size:
            raise BadRecording(f"a segment at {event.address:#x} changed its length")
        if segment.address < event.address:
            self._insert(self._part(segment, segment.address, event.address))
        if end < segment.address + segment.size:
            self._insert(self._part(segment, end, segment.address + segment.size))

    def add(self, event: _Event) -> None:
        end = event.address + event.size
        if event.size <= 0 or self.of(event.address) or self.of(end - 1):
            raise BadRecording(f"a segment at {event.address:#x} was given back and is still there")
        pages = event.action == SEGMENT_UNMAP
        small = event.size == segment_size(1)
        if pages:
            beside = self.of(event.address - 1) or self.of(end)
            small = beside.small if beside is not None else event.size % segment_size(SMALL + 1) > 0
        self._insert(_Segment(event.address, event.size, small, event.stream, pages))

    def listed(self) -> list[_Segment]:
        return [self.now[a] for a in self.order]

    @staticmethod
    def _part(segment: _Segment, start: int, end: int) -> _Segment:
        return _Segment(start, end - start, segment.small, segment.stream, segment.pages)

    def _drop(self, segment: _Segment) -> None:
        del self.now[segment.address]
        self.order.pop(bisect.bisect_left(self.order, segment.address))

    def _insert(self, segment: _Segment) -> None:
        if segment.pages:  # blocks may lie over pages that were taken one after the other
            before, after = self.of(segment.address - 1), self.of(segment.address + segment.size)
            for other in (before, after):
                if other is not None and other.pages and other.small == segment.small:
                    self._drop(other)
                    start = min(segment.address, other.address)
                    stream = segment.stream if other.stream is None else other.stream
                    size = segment.size + other.size
                    segment = _Segment(start, size, segment.small, stream, True)
        self.now[segment.address] = segment
        bisect.insort(self.order, segment.address)


class _Play:
    """One way through the events. ``learnt``: what of the start was found to be otherwise."""

    def __init__(
        self,
        recording: _Recording,
        start: tuple[list[_Segment], dict[int, int], set[int]],
        known: dict[int, int],
        foreign: set[int],
    ) -> None:
        self.recording = recording
        self.segments, held, uncertain = start
        self.known = known
        self.foreign = foreign
        self.learnt: tuple[str, int, int] | None = None
        self.result = Replayed()
        self.position = 0
        self.taken: list[_Event] = []  # segments and pages taken since the last allocation
        self.several = len({e.stream for e in recording.events}) > 1
        self.allocator = CachingAllocator(expandable=recording.expandable, place=self._place)
        self.open: set[int] = set()  # blocks of uncertain length that are still allocated
        self._begin(dict(held), set(uncertain))

    def _begin(self, held: dict[int, int], uncertain: set[int]) -> None:
        order = sorted(held)
        touched = {s.address for s in self.segments if s.stream is not None}
        pages: dict[tuple[int, bool], list[_Segment]] = {}
        for segment in self.segments:
            stream = 0 if segment.stream is None else segment.stream
            if segment.address in self.foreign:
                stream = -1 - segment.address  # of nobody
            if segment.pages:
                pages.setdefault((stream, segment.small), []).append(segment)
                continue
            inside = self._inside(segment, order, held, uncertain)
            if segment.address not in touched and self.several:
                self.open.add(segment.address)
            self.allocator.add_segment(segment.address, segment.size, stream, segment.small, inside)
        for (stream, small), parts in pages.items():
            base = min(
                [p.address for p in parts] + self._later_pages(parts[0].address, small, stream)
            )
            spans: list[tuple[int, int]] = []
            for part in sorted(parts, key=lambda p: p.address):
                if spans and sum(spans[-1]) == part.address:
                    spans[-1] = (spans[-1][0], spans[-1][1] + part.size)
                else:
                    spans.append((part.address, part.size))
            inside = [h for p in parts for h in self._inside(p, order, held, set())]
            self.allocator.add_expandable(base, stream, small, spans, sorted(inside))

    def _later_pages(self, near: int, small: bool, stream: int) -> list[int]:
        """Pages mapped later on below those of the start, in the same range of addresses."""
        return [
            e.address
            for e in self.recording.events
            if e.action == SEGMENT_MAP
            and e.stream == stream
            and e.address < near
            and near - e.address < 1 << 36
            and (e.size % segment_size(SMALL + 1) > 0) == small
        ]

    def _inside(
        self, segment: _Segment, order: list[int], held: dict[int, int], uncertain: set[int]
    ) -> list[tuple[int, int, int]]:
        end = segment.address + segment.size
        first = bisect.bisect_left(order, segment.address)
        last = bisect.bisect_left(order, end)
        inside = []
        for number in range(first, last):
            address = order[number]
            limit = order[number + 1] if number + 1 < last else end
            asked = size = held[address]
            if address + size > limit:
                raise BadRecording(f"blocks at {address:#x} lie over one another")
            if address in uncertain and not segment.small:
                if limit - address - size <= SMALL:
                    size = limit - address  # too little to be a block of its own
                else:
                    size = self.known.get(address, size)
                    self.open.add(address)
            inside.append((address, size, asked))
        return inside

    def _place(self, length: int, stream: int, small: bool) -> int:
        """Where the device put a segment: the rules say nothing about it."""
        if self.taken:
            return self.taken[0].address
        return -(1 << 62) + self.position * (1 << 42)

    def run(self) -> Replayed:
        events = self.recording.events
        result = self.result
        taken = self.taken
        for self.position, event in enumerate(events):
            if event.action in (SEGMENT_ALLOC, SEGMENT_MAP):
                taken.append(event)
                continue
            if event.action == ALLOC:
                self._allocation(event, taken)
                taken.clear()
                if self.learnt is not None:
                    return result
            elif event.action == FREE:
                self.open.discard(event.address)
                if event.address not in self.allocator.blocks:
                    raise BadRecording(f"a block at {event.address:#x} is freed and is not there")
                self.allocator.free(event.address)
            else:
                remove = (
                    self.allocator.remove_segment
                    if event.action == SEGMENT_FREE
                    else self.allocator.remove_pages
                )
                if not remove(event.address, event.size):
                    self._miss(f"a segment at {event.address:#x} was given back and is not free")
        result.allocated_peak = self.allocator.allocated_peak
        result.reserved_peak = self.allocator.reserved_peak
        return result

    def _allocation(self, event: _Event, taken: list[_Event]) -> None:
        result, allocator = self.result, self.allocator
        size = rounded(event.size)
        result.allocations += 1
        result.segments += len(taken)
        chosen = allocator.fitting(size, event.stream)
        if not taken and chosen is not None and chosen.address == event.address:
            result.exact += 1
            allocator.allocate(event.size, event.stream)
            return
        if self._infer(event, size, chosen, bool(taken)):
            return
        if taken and chosen is None:
            before = allocator.reserved
            allocator_block = allocator.allocate(event.size, event.stream)
            grown = allocator.reserved - before
            exact = grown == sum(t.size for t in taken)
            result.exact_segments += len(taken) if exact else 0
            if exact and allocator_block == event.address:
                result.exact += 1
                return
            self._miss(
                f"{event.size} bytes went to {event.address:#x} in a segment of other length"
            )
            if allocator_block != event.address:
                allocator.free(allocator_block)
                self._force(event, size, taken)
            return
        where = "a new segment" if chosen is None else f"{chosen.address:#x}"
        self._miss(f"{event.size} bytes went to {event.address:#x}, by the rules to {where}")
        self._force(event, size, taken)

    def _infer(self, event: _Event, size: int, chosen: Block | None, new: bool) -> bool:
        """Whether something that the start leaves open explains where an allocation went."""
        if chosen is not None and chosen.before is not None and chosen.address != event.address:
            before = chosen.before
            tail = event.address - chosen.address
            if before.address in self.open:
                if 0 < tail <= SMALL:  # the allocation shows where the block before it ends
                    return self._learn("length", before.address, before.size + tail)
                # not chosen: what is free behind the block is shorter
                longer = chosen.size - size + BLOCK
                most = before.requested + SMALL - before.size
                if longer <= most and (chosen.size - longer > SMALL):
                    return self._learn("length", before.address, before.size + longer)
        if not new:
            block = self._around(event.address)
            if block is not None and block.before is not None and not block.allocated:
                before = block.before
                tail = event.address - block.address
                if before.address in self.open and 0 < tail <= SMALL:
                    return self._learn("length", before.address, before.size + tail)
        if chosen is not None and chosen.before is None and chosen.address in self.open:
            return self._learn("foreign", chosen.address, 0)
        return False

    def _learn(self, kind: str, address: int, size: int) -> bool:
        self.learnt = (kind, address, size)
        return True

    def _around(self, address: int) -> Block | None:
        for pool in self.allocator._free.values():
            for size, start, block in pool:
                if start <= address < start + size:
                    return block
        return None

    def _force(self, event: _Event, size: int, taken: list[_Event]) -> None:
        """Goes on from where the allocation really went."""
        allocator = self.allocator
        for new in taken:
            if self._around(new.address) is None:
                allocator.add_segment(new.address, new.size, new.stream, size <= SMALL)
        block = self._around(event.address)
        if block is None or event.address + size > block.address + block.size:
            raise BadRecording(f"an allocation at {event.address:#x}, where nothing is free")
        allocator._take_out(block)
        if event.address > block.address:
            rest = allocator._cut(block, event.address)
            allocator._put(block)
            block = rest
        left = block.size - size
        if left >= BLOCK if block.small or block.expandable else left > SMALL:
            allocator._split(block, size)
        allocator._hold(block, event.size)

    def _miss(self, text: str) -> None:
        if len(self.result.misses) < 10:
            self.result.misses.append(f"event {self.position}: {text}")


def _event(row: Any) -> _Event:
    if isinstance(row, dict):  # as in torch.cuda.memory._snapshot()
        row = [row.get("action"), row.get("addr"), row.get("size"), row.get("stream", 0)]
    if not isinstance(row, list) or len(row) < 3 or not isinstance(row[0], str):
        raise BadRecording("an event that is not [action, address, bytes, stream]")
    if row[0] not in _KNOWN:
        return _Event(row[0], 0, 0, 0)
    return _Event(row[0], _number(row[1]), _number(row[2]), _number(row[3]) if len(row) > 3 else 0)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRecording(f"{str(value)[:40]!r} where a number belongs")
    if value != int(value) or not 0 <= value < 1 << 63:
        raise BadRecording(f"{value} where an address or bytes belong")
    return int(value)
