"""The emulated allocator of CUDA: rules that hold after any operations, and recordings of it."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.engines.torch.memory.cuda_allocator import (
    SMALL,
    CachingAllocator,
    OutOfMemory,
    rounded,
    segment_size,
)
from memcli.engines.torch.memory.recorded import BadRecording, replay_recording

_ROOT = Path(__file__).parents[2]
_TRACES = _ROOT.parent / "shared" / "truth" / "traces"

_SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, SMALL + 4096),
    st.integers(SMALL - 1024, 12 << 20),
    st.integers(9 << 20, 90 << 20),
)
# an allocation of so many bytes on a stream, a release of one of those that are there, a clean-up
_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), _SIZES, st.integers(0, 1)),
        st.tuples(st.just("alloc"), _SIZES, st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 1 << 30), st.just(0)),
        st.tuples(st.just("empty"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


class _Recorded:
    """An allocator and a recording of what it does, made from its state after each operation."""

    def __init__(self, expandable: bool) -> None:
        self.allocator = CachingAllocator(expandable=expandable)
        self.events: list[list] = []
        self.sizes: dict[int, int] = {}

    def memory(self) -> dict[int, tuple[int, int, bool, bool]]:
        """Where memory is: for each segment or page its length, stream, pool, and kind."""
        found: dict[int, tuple[int, int, bool, bool]] = {}
        for block in self._firsts():
            at = block
            start = length = 0
            while at is not None:
                if at.mapped:
                    start = start if length else at.address
                    length += at.size
                if length and (at.after is None or not at.after.mapped):
                    found[start] = (length, at.stream, at.small, at.expandable)
                    length = 0
                at = at.after
        return found

    def _firsts(self):
        everything = list(self.allocator.blocks.values())
        everything += [b for pool in self.allocator._free.values() for _, _, b in pool]
        firsts = {}
        for block in everything:
            while block.before is not None:
                block = block.before
            firsts[block.address] = block
        return firsts.values()

    def apply(self, operation: tuple[str, int, int]) -> None:
        what, number, stream = operation
        before = self._pieces()
        if what == "alloc":
            address = self.allocator.allocate(number, stream)
            self._changes(before)
            self.events.append(["alloc", address, rounded(number), stream])
            self.sizes[address] = number
        elif what == "free" and self.sizes:
            address = sorted(self.sizes)[number % len(self.sizes)]
            size = self.sizes.pop(address)
            stream = self.allocator.blocks[address].stream
            self.allocator.free(address)
            self.events.append(["free_completed", address, rounded(size), stream])
        elif what == "empty":
            self.allocator.empty_cache()
            self._changes(before)

    def _pieces(self) -> set[tuple[int, int, bool]]:
        """Memory in pieces of 2 MiB (expandable) or whole segments."""
        pieces = set()
        for start, (length, stream, _, expandable) in self.memory().items():
            step = 2 << 20 if expandable else length
            for address in range(start, start + length, step):
                pieces.add((address, step, stream, expandable))
        return pieces

    def _changes(self, before: set) -> None:
        after = self._pieces()
        for change, kind in ((before - after, 0), (after - before, 1)):
            runs: list[list] = []
            for address, size, stream, expandable in sorted(change):
                if expandable and runs and runs[-1][0] + runs[-1][1] == address:
                    runs[-1][1] += size
                else:
                    runs.append([address, size, stream, expandable])
            for address, size, stream, expandable in runs:
                name = (
                    ("segment_unmap", "segment_map")
                    if expandable
                    else (
                        "segment_free",
                        "segment_alloc",
                    )
                )
                self.events.append([name[kind], address, size, stream])

    def snapshot(self) -> list[dict]:
        segments = []
        for start, (length, stream, small, expandable) in sorted(self.memory().items()):
            inside = sorted(a for a in self.allocator.blocks if start <= a < start + length)
            blocks, at = [], start
            for address in inside:
                if address > at:
                    blocks.append([address - at, "inactive"])
                size = self.allocator.blocks[address].size
                blocks.append([size, "active_allocated"])
                at = address + size
            if at < start + length:
                blocks.append([start + length - at, "inactive"])
            segments.append(
                {
                    "address": start,
                    "total_size": length,
                    "stream": stream,
                    "segment_type": "small" if small else "large",
                    "is_expandable": expandable,
                    "blocks": blocks,
                }
            )
        return segments


def _check(allocator: CachingAllocator) -> None:
    """What holds of any state: nothing overlaps, nothing free lies beside something free."""
    free = [b for pool in allocator._free.values() for _, _, b in pool]
    blocks = sorted([*allocator.blocks.values(), *free], key=lambda b: b.address)
    for one, other in itertools.pairwise(blocks):
        assert one.address + one.size <= other.address
        if one.after is other:
            assert one.address + one.size == other.address
            assert one.allocated or other.allocated or one.mapped != other.mapped
    assert sum(b.size for b in blocks) == allocator.reserved
    assert allocator.allocated == sum(b.size for b in allocator.blocks.values())
    assert allocator.requested <= allocator.allocated <= allocator.reserved
    for key, pool in allocator._free.items():
        assert pool == sorted(pool, key=lambda row: row[:2])
        assert all((b.stream, b.small) == key and b.mapped for _, _, b in pool)


@settings(max_examples=60, deadline=None)
@given(_OPERATIONS, st.booleans())
def test_no_operations_break_the_rules_of_the_allocator(operations, expandable) -> None:
    recorded = _Recorded(expandable)
    allocator = recorded.allocator
    for operation in operations:
        before = allocator.reserved
        fits = operation[0] == "alloc" and any(
            b.size >= rounded(operation[1])
            and b.stream == operation[2]
            and b.small == (rounded(operation[1]) <= SMALL)
            for pool in allocator._free.values()
            for _, _, b in pool
        )
        recorded.apply(operation)
        _check(allocator)
        if operation[0] == "alloc":
            assert (allocator.reserved == before) == fits
            if not expandable and not fits:
                assert allocator.reserved == before + segment_size(rounded(operation[1]))
    for address in list(allocator.blocks):
        allocator.free(address)
    _check(allocator)
    allocator.empty_cache()
    assert allocator.allocated == allocator.reserved == 0


@settings(max_examples=60, deadline=None)
@given(_OPERATIONS, st.booleans(), st.floats(0, 1))
def test_a_recording_that_begins_anywhere_replays_to_the_address(operations, expandable, cut):
    recorded = _Recorded(expandable)
    for operation in operations:
        recorded.apply(operation)
    for start in {0, int(cut * len(recorded.events))}:
        found = replay_recording(
            {
                "events": recorded.events[start:],
                "segments": recorded.snapshot(),
                "settings": {"expandable_segments": expandable},
            }
        )
        assert found.ok, found.misses
        assert found.allocations == sum(e[0] == "alloc" for e in recorded.events[start:])


def test_an_allocation_that_went_elsewhere_is_found() -> None:
    recorded = _Recorded(False)
    draw = random.Random(0)
    for _ in range(60):
        recorded.apply(("alloc", draw.randint(1, 9 << 20), 0))
        if draw.random() < 0.5:
            recorded.apply(("free", draw.randrange(1 << 20), 0))
    events = [list(e) for e in recorded.events]
    # the first block of a segment of 20 MiB that is used twice, as if it had begun 4 KiB later
    taken = next(e for e in events if e[0] == "segment_alloc" and e[2] == 20 << 20)
    first = next(e for e in events if e[0] == "alloc" and e[1] == taken[1])
    at = events.index(first)
    events = [*events[:at], ["alloc", first[1] + 4096, first[2], 0]]
    end = [
        {
            "address": e[1],
            "total_size": e[2],
            "blocks": _blocks_at_end(e, events),
        }
        for e in events
        if e[0] == "segment_alloc"
    ]
    found = replay_recording({"events": events, "segments": end})
    assert not found.ok
    assert found.exact == found.allocations - 1
    assert found.misses


def _blocks_at_end(segment: list, events: list[list]) -> list[list]:
    live: dict[int, int] = {}
    for action, address, size, _ in events:
        if segment[1] <= address < segment[1] + segment[2]:
            if action == "alloc":
                live[address] = size
            elif action == "free_completed":
                del live[address]
    blocks, at = [], segment[1]
    for address, size in sorted(live.items()):
        if address > at:
            blocks.append([address - at, "inactive"])
        blocks.append([size, "active_allocated"])
        at = address + size
    return [*blocks, [segment[1] + segment[2] - at, "inactive"]]


def test_a_full_device_gives_free_segments_back_before_it_refuses() -> None:
    allocator = CachingAllocator(capacity=64 << 20)
    first = allocator.allocate(40 << 20)
    allocator.free(first)
    allocator.allocate(60 << 20)
    assert allocator.reserved == 60 << 20
    with pytest.raises(OutOfMemory):
        allocator.allocate(11 << 20)
    assert allocator.allocate(1) >= 0


_GARBAGE = [
    "[]",
    "{",
    '{"events": 1, "segments": []}',
    '{"events": [["alloc", "x", 1, 0]], "segments": []}',
    '{"events": [["alloc", 512, 512, 0]], "segments": []}',
    '{"events": [["free_completed", 512, 512, 0]], "segments": []}',
    '{"events": [["segment_alloc", 512, 512, 0]], "segments": [{"address": 1}]}',
    '{"events": [["alloc", NaN, 1e999, 0]], "segments": []}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", _GARBAGE, ids=range(len(_GARBAGE)))
def test_a_file_that_is_no_recording_ends_the_command_with_status_2(tmp_path, text) -> None:
    (tmp_path / "trace.json").write_text(text)
    (tmp_path / "other.json.gz").write_bytes(gzip.compress(text.encode())[:-9])
    done = _replay(tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_recordings_with_contradictions_are_refused() -> None:
    block = {"address": 0, "total_size": 2 << 20, "blocks": [[512, "active_allocated"]]}
    for events in (
        [["segment_free", 0, 2 << 20, 0]],
        [["segment_alloc", 512, 512, 0]],
        [["free_completed", 0, 512, 0], ["free_completed", 0, 512, 0]],
        [["alloc", 1024, 512, 0]],
    ):
        with pytest.raises(BadRecording):
            replay_recording({"events": events, "segments": [block]})


@pytest.mark.skipif(not _TRACES.is_dir(), reason="needs the traces of real cards in ../shared")
def test_every_allocation_on_real_cards_went_where_the_rules_say() -> None:
    done = _replay(_TRACES)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, list[str]] = defaultdict(list)
    for line in done.stdout.splitlines()[1:]:
        name, allocations, segments, *_ = line.split()
        counts[name] = [allocations, segments]
    assert counts["a-medium_128_training_memory"][0] == "6526/6526"
    assert counts["b-memory_ctx512_fullstep_"] == ["6769/6769", "589/589"]
    assert len(counts) >= 8


def _replay(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_ROOT / "benchmarks" / "replay_traces.py"), str(folder)],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        check=False,
    )


def test_a_recording_of_plain_json_is_read(tmp_path) -> None:
    recorded = _Recorded(False)
    for operation in [("alloc", 5000, 0), ("alloc", 3 << 20, 0), ("free", 0, 0)]:
        recorded.apply(operation)
    content = {"events": recorded.events, "segments": recorded.snapshot()}
    (tmp_path / "trace.json").write_text(json.dumps(content))
    done = _replay(tmp_path)
    assert done.returncode == 0
    assert "2/2" in done.stdout
