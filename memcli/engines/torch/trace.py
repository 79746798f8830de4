"""Records a training step on fake tensors: all that the fast memory model needs to know."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from memcli.engines.torch.cards import USUAL, Card
from memcli.engines.torch.cuda_autocast import cuda_autocast
from memcli.engines.torch.device_rules import as_on
from memcli.engines.torch.device_temporaries import PRODUCTS, script_of
from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.geometry import (
    geometry,
    has_storage,
    physical,
    storage_key,
    tensors_in,
    view_of,
)
from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.memory.trace import Trace
from memcli.engines.torch.program import Program, Step
from memcli.engines.torch.recompute import capturing
from memcli.engines.torch.requests import Storage
from memcli.engines.torch.run import Packed, Run
from memcli.engines.torch.tape import Tape
from memcli.engines.torch.tracking import _watcher, fake_copy, total, training_step
from memcli.engines.torch.work import Work


def trace(
    module: PlannedModule | GraphModule,
    inputs: Sequence[Any],
    loss: Callable[[Any], Tensor] = total,
    *,
    device: str = "cpu",
    card: Card | None = None,
    autocast: torch.dtype | None = None,
    closed_over: bool = False,
) -> Trace:
    """Run one unplanned training step on fake tensors and write down everything.

    ``inputs``: real, fake or meta tensors, of which shapes and types count. ``device``: "cpu", or
    "cuda" for operators that save other things there (the run itself is on fake CPU tensors).
    ``card``: of which operators' buffers are; left out, a usual one. ``autocast``: the
    lower precision, where the forward pass and the loss run under ``torch.autocast`` of the device.
    ``closed_over``: ``loss`` may read real tensors of its own.

    Raises:
        BadInput: the graph is not one of functions alone.
        ValueError: no output requires a gradient.
    """
    if not isinstance(module, PlannedModule):
        module = PlannedModule(module)
    with FakeTensorMode(allow_non_fake_inputs=closed_over) as mode, as_on(device):
        copied, given = fake_copy(module, inputs, mode)
        copied.marks = [0] * len(copied.marks)
        recorder = _Recorder(copied.program)
        if device == "cuda":
            recorder.follow(card or USUAL)
        copied.run_class = recorder.run
        copied.watch = _watcher(recorder.tape.note)
        states = list(copied.buffers())
        recorder.tape.known([*copied.parameters(), *states, *tensors_in(given)])
        with recorder.tape:
            outputs = training_step(
                copied,
                given,
                loss,
                lambda: recorder.tape.note(events.BACKWARD, -1),
                lambda: casting(device, autocast),
            )
        gradients = {
            recorder.tape.number_of(p.grad) for p in copied.parameters() if p.grad is not None
        } - {-1}
        result = recorder.result(gradients)
        del outputs
    result.parameter_bytes = _bytes(copied.parameters())
    result.state_bytes = _bytes(states)
    result.input_bytes = _bytes(tensors_in(given))
    everything = [*copied.parameters(), *states, *tensors_in(given)]
    resident = {storage_key(t): t.untyped_storage().nbytes() for t in everything if has_storage(t)}
    result.resident_bytes = np.array(list(resident.values()), np.int64)
    result.device = device
    return result


def casting(device: str, autocast: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which tensors of the CPU are cast as autocast of a device casts its own."""
    if autocast is None:
        return contextlib.nullcontext()
    return cuda_autocast(autocast) if device == "cuda" else torch.autocast(device, autocast)


def _bytes(tensors: Any) -> int:
    sizes = {storage_key(t): t.untyped_storage().nbytes() for t in tensors if has_storage(t)}
    return sum(sizes.values())


class _TracedPacked(Packed):
    """A saved tensor with its handle's number; autograd gets a copy, to see how long it has it."""

    __slots__ = ("copy", "handle", "tape")

    def __init__(self, run: Run, tensor: Tensor, tape: Tape) -> None:
        super().__init__(run, tensor)
        self.handle = -1
        self.copy: Tensor | None = None
        self.tape = tape

    def __del__(self) -> None:
        if self.handle >= 0:
            self.tape.note(events.GONE, self.handle)


class _Recorder:
    """What a run tells, and the tape under it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        n = len(program.steps)
        self.tape = Tape()
        self.work = Work(n)
        self.storages: list[Storage] = []
        self.number: dict[Storage, int] = {}
        self.on_tape: list[int] = []  # each storage's number on the tape
        self.again: list[int] = []  # its bytes when recomputed
        self.again_number: list[list[int]] = []  # where a second run allocates it
        self.outputs: set[int] = set()
        self.first = [0]
        self.call_start = 0  # storages on the tape when the running step began
        self.inputs: list[list[int]] = []
        self.handles: list[int] = []
        self.saved_by: list[int] = []
        self.copies: dict[int, int] = {}  # storages on the tape that stand for handles
        self.second: set[int] = set()  # storages of second runs

    def follow(self, card: Card) -> None:
        """Operators take on the tape what they take inside themselves on a card."""
        threads: set[int] = set()

        def inside(func: Any, args: Any, kwargs: Any, result: Any) -> list[tuple[str, Any]]:
            thread = int(torch._C._current_graph_task_id() != -1)
            if func in PRODUCTS and thread not in threads:
                threads.add(thread)
                self.tape.note(events.WORKSPACE, thread)
            return script_of(func, args, kwargs, result, card)

        self.tape.inside = inside

    def run(self, program: Program, marks: Sequence[int], externals: list[Tensor]) -> Run:
        return _TracingRun(self, program, marks, externals)

    def add(self, storage: Storage, tensor: Tensor) -> int:
        self.number[storage] = len(self.storages)
        self.storages.append(storage)
        number = self.tape.number_of(tensor)
        # Autocast's copy of a weight belongs to no step: the second reader finds it made.
        self.on_tape.append(number if number >= self.call_start else -1)
        self.again.append(0)
        self.again_number.append([-1, -1])
        return len(self.storages) - 1

    def result(self, gradients: set[int]) -> Trace:
        """The trace; device and sizes of parameters are filled in by the caller."""
        sizes = self.tape.bytes
        for s in self._held_elsewhere():
            self.on_tape[s] = -1  # every plan has it
        made = {t: s for s, t in enumerate(self.on_tape) if t >= 0}
        out: list[tuple[int, int, int]] = []
        for kind, number, size in self.tape.events:
            if kind in (events.ALLOCATED, events.FREED):
                # The model frees results itself; a call's peak must see how they are allocated.
                if number in made and kind == events.FREED:
                    continue
                if number in self.copies:
                    if kind == events.FREED:
                        out.append((events.DONE, self.copies[number], 0))
                    continue
                if number in gradients and kind == events.ALLOCATED:
                    kind = events.PARAMETER_GRADIENT
                size = sizes[number]
            out.append((kind, number, size))
        table = np.array(out, np.int64).reshape(-1, 3)
        counts = [len(x) for x in self.inputs]
        steps = self.program.steps
        return Trace(
            names=[s.name for s in steps],
            operators=[getattr(s.function, "__name__", str(s.function)) for s in steps],
            first=np.array(self.first, np.int64),
            storage_bytes=np.array([sizes[t] if t >= 0 else 0 for t in self.on_tape], np.int64),
            again_bytes=np.array(self.again, np.int64),
            storage_number=np.array(self.on_tape, np.int64),
            again_number=np.array(self.again_number, np.int64).reshape(-1, 2).T.copy(),
            auxiliary=np.array([s.position < 0 for s in self.storages], bool),
            given_out=np.array([s in self.outputs for s in range(len(self.storages))], bool),
            with_gradients=np.array([s.with_gradients for s in steps], bool),
            input_first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            inputs=np.array([s for x in self.inputs for s in x], np.int64),
            handle_storage=np.array(self.handles, np.int64),
            saved_by=np.array(self.saved_by, np.int64),
            kinds=table[:, 0].copy(),
            numbers=table[:, 1].copy(),
            event_bytes=table[:, 2].copy(),
            flops=self.work.flops,
            moved_bytes=self.work.moved,
            resident_bytes=np.zeros(0, np.int64),
            parameter_bytes=0,
            state_bytes=0,
            input_bytes=0,
            device="cpu",
        )

    def _held_elsewhere(self) -> list[int]:
        """Storages that outlive what the model knows of: autocast's cache has them, say."""
        users = [0] * len(self.storages)
        unused_at = [-1] * len(self.storages)  # number of allocations by then
        of_tape = {t: s for s, t in enumerate(self.on_tape) if t >= 0}
        found = set()
        allocations = 0
        second = False
        for kind, number, _ in self.tape.events:
            change, s = 0, -1
            if kind == events.ALLOCATED:
                allocations += not second
            elif kind == events.FREED and number in of_tape:
                s = of_tape.pop(number)
                if users[s] == 0 and unused_at[s] >= 0 and allocations > unused_at[s]:
                    found.add(s)
                continue
            elif kind in (events.AGAIN, events.AGAIN_END):
                second = kind == events.AGAIN
            elif kind == events.END:
                for s in range(self.first[number], self.first[number + 1]):
                    if self.storages[s].position >= 0:
                        users[s] += 1
                continue
            elif kind == events.SAVED:
                change, s = 1, self.handles[number]
            elif kind == events.GONE:
                change, s = -1, self.handles[number]
            elif kind == events.UNUSED:
                change, s = -1, number
            if s >= 0:
                users[s] += change
                if users[s] == 0:
                    unused_at[s] = allocations
        left = {s for s in of_tape.values() if users[s] == 0}
        return sorted(found | left)


class _TracingRun(Run):
    """Runs the plain plan, every step twice: as the forward pass does and as a recomputation."""

    def __init__(
        self, recorder: _Recorder, program: Program, marks: Sequence[int], externals: list[Tensor]
    ) -> None:
        super().__init__(program, marks, externals)
        self.recorder = recorder
        self.tape = recorder.tape
        self._auxiliaries: dict[int, Storage] = {}
        self._saved = 0  # tensors that the step has saved so far

    def call(self, step: Step, values: list[Any]) -> Any:
        recorder = self.recorder
        sources: dict[int, list[int]] = {}
        for number in step.reads:
            for tensor in tensors_in(values[number]):
                storage = self.owner.get(storage_key(tensor)) if has_storage(tensor) else None
                if storage is not None:
                    group = sources.setdefault(storage.step, [])
                    if recorder.number[storage] not in group:
                        group.append(recorder.number[storage])
        recorder.inputs.append([s for group in sources.values() for s in group])
        self._auxiliaries.clear()
        self._saved = 0
        recorder.call_start = len(self.tape.bytes)
        self.tape.note(events.BEGIN, step.index)
        result = super().call(step, values)
        recorder.first.append(len(recorder.storages))
        if recorder.first[-1] > recorder.first[-2]:
            self._second_runs(step, values)
        return result

    def _made(self, step: Step, result: Any, mark: int) -> list[Storage]:
        made = super()._made(step, result, mark)
        leaves = list(tensors_in(result))
        for storage in made:
            self.recorder.add(storage, leaves[storage.position])
        self.tape.note(events.END, step.index)
        return made

    def pack(self, tensor: Tensor) -> Packed:
        self._cast_of_leaf(tensor)
        packed = _TracedPacked(self, tensor, self.tape)
        if self._pending is not None:
            self._pending.append(packed)
        return packed

    def _decide(self, packed: Packed, step: Step) -> None:
        super()._decide(packed, step)
        tensor = packed.tensor
        assert isinstance(packed, _TracedPacked) and tensor is not None
        order, self._saved = self._saved, self._saved + 1
        if not has_storage(tensor):
            return
        key = storage_key(tensor)
        if key not in self.owner and step.saves_alike:
            if key not in self._auxiliaries:
                storage = self._auxiliaries[key] = Storage(step.index, ~order, 0, key)
                self.recorder.add(storage, tensor)
            owner: Storage | None = self._auxiliaries[key]
        else:
            owner = self.owner.get(key)
        if owner is not None:
            packed.handle = len(self.recorder.handles)
            self.recorder.handles.append(self.recorder.number[owner])
            self.recorder.saved_by.append(step.index)
            self.tape.note(events.SAVED, packed.handle)

    def unpack(self, packed: Packed) -> Tensor:
        assert isinstance(packed, _TracedPacked)
        tensor = super().unpack(packed)
        if packed.handle < 0:
            return tensor
        if packed.copy is None:
            self.tape.note(events.UNPACKED, packed.handle)
            packed.copy = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )
            self.recorder.copies[self.tape.number_of(packed.copy)] = packed.handle
        return packed.copy

    def _unused(self, storage: Storage, tensor: Tensor) -> None:
        super()._unused(storage, tensor)
        self.tape.note(events.UNUSED, self.recorder.number[storage])

    def finish(self, outputs: Any) -> None:
        for tensor in tensors_in(outputs):
            storage = self.owner.get(storage_key(tensor)) if has_storage(tensor) else None
            if storage is not None and self.recorder.number[storage] not in self.recorder.outputs:
                self.recorder.outputs.add(self.recorder.number[storage])
                self.tape.note(events.OUTPUT, self.recorder.number[storage])
        super().finish(outputs)

    def _second_runs(self, step: Step, values: list[Any]) -> None:
        """What a recomputation of the step takes, and with auxiliaries where it has any."""
        recorder = self.recorder
        made = range(recorder.first[-2], recorder.first[-1])
        for capture in (False, True):
            if capture and not any(recorder.storages[s].position < 0 for s in made):
                continue
            with torch.no_grad(), self._as_in_forward():
                inputs: Any = {n: _alias(values[n]) for n in step.reads}
                args, kwargs = step.arguments(inputs)
                saved: list[Tensor] = []
                self.tape.events.append((events.AGAIN, step.index, int(capture)))
                with (
                    contextlib.nullcontext()
                    if capture
                    else recorder.work.of(step.index, self.tape),
                    capturing(saved) if capture else contextlib.nullcontext(),
                ):
                    result = step.again(*args, **kwargs)
                leaves = list(tensors_in(result))
                self.tape.note(events.AGAIN_END, step.index)
                for s in made:
                    at = recorder.storages[s].position
                    found = saved[~at : ~at + 1] if at < 0 else leaves[at : at + 1]
                    for tensor in found:
                        number = self.tape.number_of(tensor)
                        recorder.again_number[s][capture] = number
                        recorder.again[s] = self.tape.bytes[number] if number >= 0 else 0
                start = len(self.tape.events)
                del result, leaves, saved, args, kwargs, inputs
                tensor = found = None  # type: ignore[assignment]
                del self.tape.events[start:]  # only what the second run made goes here


def _alias(value: Any) -> Any:
    """The value without history, as a recomputation gets it."""
    if isinstance(value, Tensor):
        if not has_storage(value):
            return value.detach()
        tensor = view_of(physical(value), geometry(value))
        return tensor.requires_grad_() if value.requires_grad else tensor
    if isinstance(value, (tuple, list)):
        return [_alias(item) for item in value]
    if isinstance(value, dict):
        return {k: _alias(item) for k, item in value.items()}
    return value
