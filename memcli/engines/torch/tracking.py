"""Live memory of one training step: measured on real tensors, estimated on fake ones.

The live peak is the most bytes that tensors hold at one time between the start of the forward pass
and the end of the backward pass: feature maps, what operators save, gradients on their way, and
the outputs, which the caller holds until the step ends. Not counted: parameters, buffers
and inputs, which are there before the step, and the parameters' gradients, which stay after it
and are the same under every plan; the peak with them is given as well. Where several workers train
together, what they exchange (copies of gradients, states) is not counted either.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.engines.torch.device_rules import as_on
from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.geometry import tensors_in
from memcli.engines.torch.memory.cuda_allocator import rounded
from memcli.engines.torch.program import Step
from memcli.engines.torch.tape import ALLOCATED, BACKWARD, FORWARD, FREED, Tape


@dataclass
class StepMemory:
    """Bytes. ``forward`` and ``backward``: the peak while each node (by name) was at work.

    The backward part of a node is the time from when the gradient of its output is complete to
    when that of the next node's is. ``reserved_peak``: what CUDA's caching allocator took from
    the device in all, 0 on the CPU. ``all_peak``: with parameters' gradients.
    ``exchange_bytes``: of what workers exchange, so much as stays (DistributedDataParallel's
    buckets); CPU alone.
    """

    peak: int = 0
    all_peak: int = 0
    kept: int = 0  # live when the forward pass ended
    gradient_bytes: int = 0  # of parameters
    exchange_bytes: int = 0
    reserved_peak: int = 0
    forward: dict[str, int] = field(default_factory=dict)
    backward: dict[str, int] = field(default_factory=dict)


def total(outputs: Any) -> Tensor:
    """The loss of a graph that has none: the sum of all outputs that have gradients, in float32.

    Raises:
        ValueError: no output depends on anything that requires a gradient.
    """
    terms = [
        (t.real if t.is_complex() else t).float().sum()
        for t in tensors_in(outputs)
        if t.requires_grad
    ]
    if not terms:
        raise ValueError("no output of the graph requires a gradient")
    loss = terms[0]
    for term in terms[1:]:
        loss = loss + term
    return loss


def training_step(
    module: Callable[..., Any],
    inputs: Sequence[Any],
    loss: Callable[[Any], Tensor] = total,
    between: Callable[[], None] | None = None,
    casting: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Any:
    """A forward and a backward pass; the outputs, which are held all through.

    ``between`` is called after the forward pass. ``casting``: makes the context of the forward pass
    and the loss, such as ``torch.autocast``; the backward pass is outside of it.
    """
    with casting():
        outputs = module(*inputs)
        if between is not None:
            between()
        value = loss(outputs)
    value.backward()
    return outputs


def fake_copy(
    module: PlannedModule, inputs: Sequence[Any], mode: FakeTensorMode
) -> tuple[PlannedModule, list[Any]]:
    """The module and inputs with fake tensors in place of real (or meta) ones, on the CPU."""

    def fake(tensor: Tensor) -> Tensor:
        with mode:
            like = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
            )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(like, requires_grad=tensor.requires_grad)
        return like.requires_grad_(tensor.requires_grad)

    memo: dict[int, Any] = {id(module.program): module.program}
    for tensor in [*module.parameters(), *module.buffers()]:
        memo[id(tensor)] = fake(tensor)
    copied = copy.deepcopy(module, memo)
    return copied, [fake(x) if isinstance(x, Tensor) else x for x in inputs]


def estimate_step(
    module: PlannedModule,
    inputs: Sequence[Any],
    loss: Callable[[Any], Tensor] = total,
    closed_over: bool = False,
) -> StepMemory:
    """The memory of a step, found on fake tensors: no data, no arithmetic.

    ``inputs`` may be real, fake or meta tensors; only their shapes and types count.
    ``closed_over``: ``loss`` may read real tensors of its own.
    """
    with FakeTensorMode(allow_non_fake_inputs=closed_over) as mode, as_on("cpu"):
        fake_module, fake_inputs = fake_copy(module, inputs, mode)
        return measure_step(fake_module, fake_inputs, loss)


def measure_step(
    module: PlannedModule,
    inputs: Sequence[Any],
    loss: Callable[[Any], Tensor] = total,
    run: Callable[..., Any] | None = None,
) -> StepMemory:
    """The memory of a real step on the CPU, storage by storage. Leaves gradients in ``module``.

    Gradients that the parameters have before are not counted. ``run``: what is called in place of
    ``module``, and calls it (DistributedDataParallel).
    """
    tape = Tape()
    parameters = list(module.parameters())
    before = [p.grad for p in parameters if p.grad is not None]
    given = [t for t in tensors_in(list(inputs))]
    tape.known([*parameters, *module.buffers(), *given, *before])
    names = [step.name for step in module.program.steps]
    exchanged: set[int] = set()

    def look(func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func.namespace == "c10d":  # torch.distributed's
            exchanged.update(map(tape.number_of, tensors_in(args)))

    tape.on_operator = look
    module.watch = _watcher(tape.note)
    try:
        with tape:
            outputs = training_step(run or module, inputs, loss, lambda: tape.note(BACKWARD, -1))
    finally:
        module.watch = None
    gradients = {tape.number_of(p.grad) for p in parameters if p.grad is not None} - {-1}
    gone = {number for kind, number, _ in tape.events if kind == FREED}
    events = [e for e in tape.events if e[0] not in (ALLOCATED, FREED) or e[1] not in exchanged]
    del outputs
    result = _profile(events, tape.bytes, gradients, names)
    result.exchange_bytes = sum(tape.bytes[n] for n in exchanged - gone - {-1})
    return result


def _watcher(note: Callable[[int, int], None]) -> Callable[[Step, Any], None]:
    """Notes the end of each step, and in the backward pass when its output's gradient is there."""

    def watch(step: Step, result: Any) -> None:
        note(FORWARD, step.index)
        for tensor in tensors_in(result):
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(lambda _, index=step.index: note(BACKWARD, index))

    return watch


def _profile(
    events: list[tuple[int, int, int]], sizes: list[int], gradients: set[int], names: list[str]
) -> StepMemory:
    result = StepMemory(gradient_bytes=sum(sizes[n] for n in gradients))
    live = live_all = high = 0
    stage: str | None = None  # a node of the backward pass

    def close(peaks: dict[str, int], name: str) -> None:
        peaks[name] = max(peaks.get(name, 0), high)

    for kind, number, _ in events:
        if kind in (ALLOCATED, FREED):
            change = sizes[number] if kind == ALLOCATED else -sizes[number]
            live_all += change
            if number not in gradients:
                live += change
            high = max(high, live)
            result.peak = max(result.peak, live)
            result.all_peak = max(result.all_peak, live_all)
            continue
        if kind == FORWARD:
            close(result.forward, names[number])
        elif kind == BACKWARD:
            if number == -1:
                result.kept = live
            elif stage is not None:
                close(result.backward, stage)
            stage = names[number] if number >= 0 else None
        high = live
    if stage is not None:
        close(result.backward, stage)
    return result


def measure_step_cuda(
    module: PlannedModule,
    inputs: Sequence[Any],
    loss: Callable[[Any], Tensor] = total,
    run: Callable[..., Any] | None = None,
) -> StepMemory:
    """The memory of a real step on a CUDA device, block by block as its caching allocator has it.

    Counted is what the allocator recorded in its history: what was asked for in whole blocks of
    512 bytes, from the start of the forward pass on, and nothing that was there before. Parameters'
    gradients, which should be None before, are told from the rest by their addresses in the end.
    ``reserved_peak``: all that the process took from the device until then. ``run``: what is called
    in place of ``module``, and calls it; what it does before is not seen.
    """
    device = next(t.device for t in [*module.parameters(), *tensors_in(list(inputs))])
    names = [step.name for step in module.program.steps]
    torch.cuda.synchronize(device)
    had = {id(p) for p in module.parameters() if p.grad is not None}
    torch.cuda.memory._record_memory_history(context=None, device=device, clear_history=True)
    begin = _changes(device)
    start = begin
    marks: list[tuple[int, int, int]] = []  # changes of the allocator by then, kind, number

    def note(kind: int, number: int) -> None:
        marks.append((_changes(device), kind, number))

    def starts(*_: Any) -> None:
        nonlocal start
        start = _changes(device)

    module.watch = _watcher(note)
    started = module.register_forward_pre_hook(starts)
    try:
        outputs = training_step(run or module, inputs, loss, lambda: note(BACKWARD, -1))
        torch.cuda.synchronize(device)
        snapshot = torch.cuda.memory._snapshot(device)
    finally:
        module.watch = None
        started.remove()
        torch.cuda.memory._record_memory_history(enabled=None, device=device)
    del outputs
    gradients = {
        p.grad.untyped_storage().data_ptr()
        for p in module.parameters()
        if p.grad is not None and id(p) not in had
    }
    history = snapshot["device_traces"][device.index or 0]
    rows = [row for row in history if row["action"] in ("alloc", "free_requested")]
    events, sizes, stays = _events_of(rows, marks, begin, start)
    result = _profile(events, sizes, {stays[a] for a in gradients if a in stays}, names)
    result.reserved_peak = torch.cuda.max_memory_reserved(device)
    return result


def _changes(device: torch.device) -> int:
    """Allocations and releases of a device so far."""
    stats = torch.cuda.memory_stats(device)
    return int(stats["allocation.all.allocated"] + stats["allocation.all.freed"])


def _events_of(
    rows: list[dict[str, Any]], marks: list[tuple[int, int, int]], begin: int, start: int
) -> tuple[list[tuple[int, int, int]], list[int], dict[int, int]]:
    """A recorded history as a tape has it: events, sizes, and what is allocated at the end.

    ``begin``, ``start``: changes of the allocator when recording and when the step began.
    """
    events: list[tuple[int, int, int]] = []
    sizes: list[int] = []
    live: dict[int, int] = {}
    left = iter(marks)
    mark = next(left, None)
    for position, row in enumerate(rows, begin):
        while mark is not None and mark[0] <= position:
            events.append((mark[1], mark[2], 0))
            mark = next(left, None)
        if position < start:
            continue
        address = int(row["addr"])
        if row["action"] == "alloc":
            live[address] = len(sizes)
            events.append((ALLOCATED, len(sizes), 0))
            sizes.append(rounded(int(row["size"])))
        elif address in live:
            events.append((FREED, live.pop(address), 0))
    while mark is not None:
        events.append((mark[1], mark[2], 0))
        mark = next(left, None)
    return events, sizes, live
