"""Watches storages come and go: every allocation and release of a training step, in order."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memcli.engines.torch.geometry import has_storage, is_dense, storage_key, tensors_in

# What an event says of its number: of a storage on the tape (ALLOCATED with its bytes, FREED),
# of a step (the rest).
ALLOCATED, FREED, FORWARD, BACKWARD = range(4)


class Tape(TorchDispatchMode):
    """Records storages while it is active, by weak references as torch's own MemTracker does.

    Sees what operators give out; what a kernel takes and gives back inside itself (workspaces) is
    not seen. Works on real tensors and, entered inside a FakeTensorMode, on fake ones. Where
    several gradients meet, autograd adds them in place, but not while a mode such as this one is
    active: the tape then does so for it, so that a step takes what it takes without the tape.
    ``events``: (kind, number, bytes).
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int, int]] = []
        self.numbers: dict[int, int] = {}  # by storage; -1: known before
        self.bytes: list[int] = []
        self.on_operator: Callable[[Any, Any, dict[str, Any], Any], None] | None = None
        # What an operator does with memory beside its results: see ``device_temporaries``.
        self.inside: Callable[[Any, Any, dict[str, Any], Any], list[tuple[str, Any]]] | None = None
        self._references: dict[int, Any] = {}
        self._made_by: dict[int, tuple[str, int]] = {}  # storage: node of the backward pass

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
        if func is _ADD and not kwargs and self._joins(*args):
            func = _ADD_IN_PLACE
        result = func(*args, **kwargs)
        if self.on_operator is not None:
            self.on_operator(func, args, kwargs, result)
        if self.inside is not None:
            self._play(self.inside(func, args, kwargs, result))
        for tensor in tensors_in(result):
            self._made(tensor)
        return result

    def _made(self, tensor: Tensor) -> None:
        """A result whose storage is new."""
        if has_storage(tensor) and storage_key(tensor) not in self.numbers:
            number = self._allocated(tensor.untyped_storage().nbytes())
            self._watch(tensor, number)
            if torch._C._current_graph_task_id() != -1:
                self._made_by[storage_key(tensor)] = _node()

    def _allocated(self, size: int) -> int:
        number = len(self.bytes)
        self.bytes.append(size)
        self.events.append((ALLOCATED, number, size))
        return number

    def _play(self, acts: list[tuple[str, Any]]) -> None:
        """What an operator takes inside itself; all of it is given back."""
        taken: list[int] = []
        for act, what in acts:
            if act == "take":
                taken.append(self._allocated(what))
            elif act == "give":
                self.events.append((FREED, taken[what], 0))
            elif act == "elsewhere":
                self.known([what])
            else:
                self._made(what)

    def _joins(self, sum_: Any, gradient: Any) -> bool:
        """Whether an addition is autograd's own, of a gradient to the sum so far, and in place.

        By the rule of ``can_accumulate_inplace`` (torch/csrc/autograd/input_buffer.cpp): the sum
        is dense, and nothing else holds it or its storage. It was made before the node began
        whose gradient is added, which tells it from additions inside of nodes.
        """
        if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled():
            return False
        if not (isinstance(sum_, Tensor) and isinstance(gradient, Tensor)):
            return False
        if not has_storage(sum_) or not has_storage(gradient) or sum_.shape != gradient.shape:
            return False
        storage = sum_.untyped_storage()
        return (
            self._made_by.get(storage._cdata, _node()) != _node()
            and sum_._use_count() == _HELD_ONCE[0]  # type: ignore[attr-defined]
            and torch._C._storage_Use_Count(storage._cdata) == _HELD_ONCE[1]  # type: ignore[attr-defined]
            and is_dense(sum_)
        )

    def _watch(self, tensor: Tensor, number: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.numbers[key] = number

        def gone(_: Any) -> None:
            self.numbers.pop(key, None)
            self._references.pop(key, None)
            self._made_by.pop(key, None)
            if number >= 0:
                self.events.append((FREED, number, 0))

        self._references[key] = weakref.ref(storage, gone)


_ADD = torch.ops.aten.add.Tensor
_ADD_IN_PLACE = torch.ops.aten.add_.Tensor
# References to a tensor and to its storage that a mode sees where autograd alone holds them: those
# of its buffer, of the call's stack and arguments, of Python's objects.
_HELD_ONCE = 4, 2


def _node() -> tuple[str, int]:
    """The node that the backward pass is at; parameters' own nodes have one number for all."""
    node: Any = torch._C._current_autograd_node()
    return ("", -1) if node is None else (node.name(), node._sequence_nr())
