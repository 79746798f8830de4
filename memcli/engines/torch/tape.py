"""Watches storages come and go: every allocation and release of a training step, in order."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memcli.engines.torch.geometry import has_storage, storage_key, tensors_in

# What an event says of its number: of a storage on the tape (ALLOCATED with its bytes, FREED),
# of a step (the rest).
ALLOCATED, FREED, FORWARD, BACKWARD = range(4)


class Tape(TorchDispatchMode):
    """Records storages while it is active, by weak references as torch's own MemTracker does.

    Sees what operators give out; what a kernel takes and gives back inside itself (workspaces) is
    not seen. Works on real tensors and, entered inside a FakeTensorMode, on fake ones.
    ``events``: (kind, number, bytes).
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int, int]] = []
        self.numbers: dict[int, int] = {}  # by storage; -1: known before
        self.bytes: list[int] = []
        self.on_operator: Callable[[Any, Any, dict[str, Any], Any], None] | None = None
        self._references: dict[int, Any] = {}

    def known(self, tensors: Iterable[Tensor]) -> None:
        """Storages that are there before the step: not counted."""
        for tensor in tensors:
            if has_storage(tensor) and storage_key(tensor) not in self.numbers:
                self._watch(tensor, -1)

    def note(self, kind: int, number: int) -> None:
        """Puts an event on the tape."""
        self.events.append((kind, number, 0))

    def number_of(self, tensor: Tensor) -> int:
        """A storage's number; -1 if it was known before or never seen."""
        return self.numbers.get(storage_key(tensor), -1) if has_storage(tensor) else -1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.on_operator is not None:
            self.on_operator(func, args, kwargs, result)
        for tensor in tensors_in(result):
            if has_storage(tensor) and storage_key(tensor) not in self.numbers:
                number = len(self.bytes)
                size = tensor.untyped_storage().nbytes()
                self.bytes.append(size)
                self.events.append((ALLOCATED, number, size))
                self._watch(tensor, number)
        return result

    def _watch(self, tensor: Tensor, number: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.numbers[key] = number

        def gone(_: Any) -> None:
            self.numbers.pop(key, None)
            self._references.pop(key, None)
            if number >= 0:
                self.events.append((FREED, number, 0))

        self._references[key] = weakref.ref(storage, gone)
