"""One forward pass under a plan, and what its backward passes recompute.

Saved tensors are told by their storage: one that a dropped step made is packed as a handle (step,
storage, geometry) and recomputed on demand from the nearest kept storages, without recursion.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memcli.engines.torch.geometry import (
    Geometry,
    geometry,
    has_storage,
    physical,
    storage_key,
    tensors_in,
    view_of,
)
from memcli.engines.torch.program import Program, Step
from memcli.engines.torch.recompute import MODIFIED, External, Internal, Recomputation
from memcli.engines.torch.requests import Record, Requests, Storage
from memcli.marks import AGAIN, AUXILIARY, KEPT, RESULTS

# Private, so it may be missing: then every backward pass is taken for one that keeps the graph.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class Packed:
    """What autograd holds in a saved tensor's place: the tensor, or the handle of a dropped one."""

    __slots__ = ("geometry", "run", "storage", "tensor", "version")

    def __init__(self, run: Run | None, tensor: Tensor | None) -> None:
        self.run = run
        # A function's own result comes with its history, which would hold this object: a cycle.
        self.tensor = tensor.detach() if tensor is not None and tensor.requires_grad else tensor
        self.version = -1 if tensor is None or tensor.is_inference() else tensor._version
        self.storage: Storage | None = None
        self.geometry: Geometry | None = None

    def __del__(self) -> None:
        if self.storage is not None and self.run is not None:
            self.run.handle_gone(self)


class Run(Recomputation):
    """A forward pass. ``marks`` by step; ``externals``: parameters, buffers and inputs."""

    def __init__(self, program: Program, marks: Sequence[int], externals: list[Tensor]) -> None:
        super().__init__(program, {t.device for t in externals})
        self.marks = marks
        # None: not made by a step
        self.owner: dict[int, Storage | None] = {
            storage_key(t): None for t in externals if has_storage(t)
        }
        # Functions that update states while they train do not look at their old values.
        self.states = {storage_key(t) for t in externals if has_storage(t) and not t.requires_grad}
        self.requests = Requests()
        self.casts = any(enabled for _, enabled, _ in self.autocast) and (
            torch.is_autocast_cache_enabled()
        )
        self._pass: tuple[int, Requests] | None = None
        self._pending: list[Packed] | None = []
        self._lock = threading.RLock()

    # The forward pass

    def call(self, step: Step, values: list[Any]) -> Any:
        """Runs a step and takes note of what it made and what of that is saved."""
        mark = self.marks[step.index]
        generators = self.generators() if mark != KEPT and step.draws else []
        pending: list[Packed] = []
        self._pending = pending
        try:
            args, kwargs = step.arguments(values)
            result = step.function(*args, **kwargs)
        finally:
            self._pending = None
        made = self._made(step, result, mark)
        record: Record | None = None
        if mark & RESULTS and made:
            record = self._record(step, values, generators)
        if mark & AUXILIARY and step.saves_alike:
            record = self._own_auxiliaries(step, values, pending, made, record, generators)
        if record is not None:
            record.storages = made
            self.requests.hold(record)
            for storage in made:
                if storage.mark != KEPT:
                    storage.record = record
                    if storage.users:
                        self.requests.add(storage)  # the forward pass's own
        for packed in pending:
            self._decide(packed, step)
        pending.clear()
        if record is not None and not self.requests.left.get(record):
            self.requests.let_go(record)
        for storage in made:
            if storage.users == 0:
                del self.owner[storage.key]  # the key may be another storage's soon
        return result

    def free(self, value: Any) -> None:
        """The forward pass lets go of a value."""
        for tensor in tensors_in(value):
            if not has_storage(tensor):
                continue
            storage = self.owner.get(storage_key(tensor))
            if storage is None:
                continue
            storage.users -= 1
            if storage.users == 0:
                self._unused(storage, tensor)

    def finish(self, outputs: Any) -> None:
        """The end of the forward pass: storages that the graph gives out stay."""
        for tensor in tensors_in(outputs):
            storage = self.owner.get(storage_key(tensor)) if has_storage(tensor) else None
            if storage is not None and storage.mark != KEPT:
                self.requests.keep(storage, physical(tensor))
                self.requests.release(storage)
        self.owner.clear()

    def pack(self, tensor: Tensor) -> Packed:
        """Autograd saves a tensor. A step's own result is told from others once it returned."""
        self._cast_of_leaf(tensor)
        packed = Packed(self, tensor)
        if self._pending is not None:
            self._pending.append(packed)
        return packed

    def _cast_of_leaf(self, tensor: Tensor) -> None:
        """Autocast's cast of a parameter is made by no step: its cache has it for all of them."""
        if self.casts and _leaf_under(tensor.grad_fn) and has_storage(tensor):
            self.owner.setdefault(storage_key(tensor), None)

    def unpack(self, packed: Packed) -> Tensor:
        """Autograd needs a saved tensor.

        Raises:
            RuntimeError: it, or what it is recomputed from, was modified since.
        """
        if packed.storage is not None:
            return self._fetch(packed)
        assert packed.tensor is not None
        if packed.version >= 0 and packed.tensor._version != packed.version:
            raise RuntimeError(MODIFIED.format("computation", packed.tensor._version))
        return packed.tensor

    def handle_gone(self, packed: Packed) -> None:
        """Autograd let go of a handle, used or not."""
        with self._lock:
            storage, packed.storage = packed.storage, None
            if storage is not None:
                self.requests.release(storage)

    def _made(self, step: Step, result: Any, mark: int) -> list[Storage]:
        """New storages of a result; counts the values in old and new ones."""
        made = []
        for position, tensor in enumerate(tensors_in(result)):
            if not has_storage(tensor):
                continue
            key = storage_key(tensor)
            if key not in self.owner:
                storage = Storage(step.index, position, mark & RESULTS, key)
                storage.version = 0 if tensor.is_inference() else tensor._version
                self.owner[key] = storage
                made.append(storage)
            owner = self.owner[key]
            if owner is not None:
                owner.users += 1
        return made

    def _record(
        self, step: Step, values: list[Any], generators: list[tuple[Any, Tensor]]
    ) -> Record:
        sources: dict[int, list[Storage]] = {}
        inputs = {}
        for number in step.reads:
            inputs[number] = self._describe(values[number], sources, step.leaves_states)
        record = Record(self.marks[step.index], inputs, list(sources.values()))
        record.generators = generators
        return record

    def _describe(self, value: Any, sources: dict[int, list[Storage]], states: bool) -> Any:
        if isinstance(value, Tensor):
            storage = self.owner.get(storage_key(value)) if has_storage(value) else None
            if storage is None:
                unchecked = value.is_inference() or (states and storage_key(value) in self.states)
                version = -1 if unchecked else value._version
                leaf = value if value.grad_fn is None else value.detach()
                return External(leaf, version, value.requires_grad)
            group = sources.setdefault(storage.step, [])
            if storage not in group:
                group.append(storage)
            if storage.mark == KEPT and storage.tensor is None:
                storage.tensor = physical(value)
                storage.version = storage.tensor._version
            return Internal(storage, geometry(value), value.requires_grad)
        if isinstance(value, (tuple, list)):
            return [self._describe(item, sources, states) for item in value]
        if isinstance(value, dict):
            return {k: self._describe(item, sources, states) for k, item in value.items()}
        return value

    def _own_auxiliaries(
        self,
        step: Step,
        values: list[Any],
        pending: list[Packed],
        made: list[Storage],
        record: Record | None,
        generators: list[tuple[Any, Tensor]],
    ) -> Record | None:
        """Storages that the step saves inside itself join those that it drops."""
        for number, packed in enumerate(pending):
            assert packed.tensor is not None
            key = storage_key(packed.tensor) if has_storage(packed.tensor) else None
            if key is not None and key not in self.owner:
                mark = (self.marks[step.index] & RESULTS) or AGAIN
                storage = Storage(step.index, ~number, mark, key)
                self.owner[key] = storage
                made.append(storage)
        if record is None and any(s.position < 0 for s in made):
            record = self._record(step, values, generators)
        return record

    def _decide(self, packed: Packed, step: Step) -> None:
        """A saved tensor, now that the storages of its step are known: a handle if dropped."""
        tensor = packed.tensor
        assert tensor is not None
        storage = self.owner.get(storage_key(tensor), _UNKNOWN) if has_storage(tensor) else None
        if storage is None and step.leaves_states and storage_key(tensor) in self.states:
            packed.version = -1  # the graph may update it before the backward pass
        if isinstance(storage, Storage) and storage.mark != KEPT:
            packed.geometry = geometry(tensor)
            packed.storage = storage
            packed.tensor = None
            self.requests.add(storage)

    def _unused(self, storage: Storage, tensor: Tensor) -> None:
        """No value of the forward pass lies in a storage any more."""
        self.owner.pop(storage.key, None)
        if storage.mark == KEPT:
            return
        if not tensor.is_inference() and tensor._version != storage.version:
            raise RuntimeError(
                f"what step {self.program.steps[storage.step].name!r} made was changed in place; "
                "plans recompute functions, so the graph may not change values in place"
            )
        self.requests.release(storage)

    # The backward passes

    def _fetch(self, packed: Packed) -> Tensor:
        with self._lock, torch.no_grad():
            storage, where = packed.storage, packed.geometry
            assert storage is not None and where is not None
            requests = self._requests_of_pass()
            base = self._available(storage, requests)
            if base is None:
                with self._as_in_forward():
                    base = self._obtain(storage, requests)
            result = view_of(base, where)
            if requests.lasting:
                # Served: its end changes nothing more, but a function may ask twice before that.
                packed.storage, packed.tensor, packed.version = None, result, -1
            requests.release(storage)
            return result

    def _requests_of_pass(self) -> Requests:
        """The counts to go by: this run's own, or a copy for a pass that keeps the graph."""
        task = torch._C._current_graph_task_id()
        if task != -1 and not _keeps_graph():
            self._pass = None
            return self.requests
        if task == -1:  # someone looks at a saved tensor, outside of any pass
            return self.requests.copy()
        if self._pass is None or self._pass[0] != task:
            self._pass = (task, self.requests.copy())
            torch.autograd.Variable._execution_engine.queue_callback(  # type: ignore[attr-defined]
                self._end_pass
            )
        return self._pass[1]

    def _end_pass(self) -> None:
        self._pass = None


def _leaf_under(function: Any) -> bool:
    """Whether what a function of autograd made is a view of a cast of a leaf."""
    for _ in range(_MOST_VIEWS):
        name = "" if function is None else function.name()
        if name == "ToCopyBackward0":
            below = function.next_functions[0][0]
            return below is not None and below.name() == "torch::autograd::AccumulateGrad"
        if name not in _VIEWS_OF_CASTS:
            return False
        function = function.next_functions[0][0]
    return False


# What linear layers do with their weight before they save it.
_VIEWS_OF_CASTS = frozenset(
    {
        "TBackward0",
        "TransposeBackward0",
        "PermuteBackward0",
        "ViewBackward0",
        "ExpandBackward0",
        "UnsqueezeBackward0",
    }
)
_MOST_VIEWS = 5

_UNKNOWN: Any = object()
