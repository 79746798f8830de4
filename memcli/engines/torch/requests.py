"""Who still needs what: counts of requests on storages, and recomputed values held until the last.

A dropped storage is requested by saved handles and by steps that will be recomputed from it. A
step that may run again holds one token on each storage it reads, until it has run for the last
time or nothing can request it any more; releasing its tokens may do the same to the steps before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memcli.marks import KEPT


class Storage:
    """A storage that a step made. ``tensor``: held for recomputations from a kept storage."""

    __slots__ = ("key", "mark", "position", "record", "step", "tensor", "users", "version")

    def __init__(self, step: int, position: int, mark: int, key: int) -> None:
        self.step = step
        self.position = position  # among the leaves of the result; ~n: the n-th saved tensor
        self.mark = mark
        self.key = key
        self.users = 0  # values of the forward pass that lie in it
        self.version = 0
        self.record: Record | None = None
        self.tensor: Tensor | None = None


class Record:
    """How a step that drops something ran: what to run it with again."""

    __slots__ = ("generators", "groups", "inputs", "mark", "storages")

    def __init__(self, mark: int, inputs: dict[int, Any], groups: list[list[Storage]]) -> None:
        self.mark = mark
        self.inputs = inputs  # descriptions of the values it reads, by number
        self.groups = groups  # the storages it reads, those of one step together
        self.storages: list[Storage] = []  # what it made and drops
        self.generators: list[tuple[Any, Tensor]] = []


class Requests:
    """Counts as they stand; a copy serves a backward pass that keeps the graph."""

    __slots__ = ("holding", "lasting", "left", "memo", "of")

    def __init__(self) -> None:
        self.of: dict[Storage, int] = {}
        self.left: dict[Record, int] = {}
        self.holding: set[Record] = set()
        self.memo: dict[Storage, Tensor] = {}
        self.lasting = True  # kept storages may be let go

    def copy(self) -> Requests:
        """The same counts, for one pass, that let nothing go that a later pass may need."""
        other = Requests()
        other.of = dict(self.of)
        other.left = dict(self.left)
        other.holding = set(self.holding)
        other.memo = dict(self.memo)
        other.lasting = False
        return other

    def add(self, storage: Storage) -> None:
        """One more request."""
        self.of[storage] = self.of.get(storage, 0) + 1
        if storage.record is not None and storage.mark != KEPT:
            self.left[storage.record] = self.left.get(storage.record, 0) + 1

    def hold(self, record: Record) -> None:
        """A step that may run again takes its tokens on what it reads."""
        self.holding.add(record)
        for group in record.groups:
            for storage in group:
                self.add(storage)

    def let_go(self, record: Record) -> None:
        """A step that ran for the last time gives its tokens back."""
        if record in self.holding:
            self.holding.discard(record)
            for group in record.groups:
                for storage in group:
                    self.release(storage)

    def release(self, storage: Storage) -> None:
        """One request less; frees what nothing requests any more, back through the graph."""
        stack = [storage]
        while stack:
            storage = stack.pop()
            count = self.of.get(storage, 0) - 1
            if count < 0:  # asked for more often than saved, in a pass that keeps the graph
                continue
            self.of[storage] = count
            if count == 0:
                del self.of[storage]
                self.memo.pop(storage, None)
                if self.lasting:
                    storage.tensor = None
            record = storage.record
            if record is None or storage.mark == KEPT:
                continue
            left = self.left[record] = self.left[record] - 1
            self._unrequested(record, left, stack)

    def keep(self, storage: Storage, tensor: Tensor) -> None:
        """What was to be dropped stays after all (the graph gives it out)."""
        record, count = storage.record, self.of.get(storage, 0)
        assert record is not None
        storage.mark = KEPT
        storage.tensor = tensor
        left = self.left[record] = self.left[record] - count
        stack: list[Storage] = []
        self._unrequested(record, left, stack)
        for other in stack:
            self.release(other)

    def _unrequested(self, record: Record, left: int, stack: list[Storage]) -> None:
        if left == 0 and record in self.holding:
            self.holding.discard(record)
            stack.extend(s for group in record.groups for s in group)

    def is_last(self, group: list[Storage]) -> bool:
        """Whether the requests of one step on these storages of another are the only ones left."""
        record = group[0].record
        return record is not None and self.left.get(record, 0) == len(group)
