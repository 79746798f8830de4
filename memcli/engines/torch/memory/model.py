"""The memory of a training step in PyTorch under any plan, to the byte, from one recorded step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory import kernels
from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.memory.cuda_allocator import DeviceMemory
from memcli.engines.torch.memory.device_steps import BLAS_WORKSPACE, allocations, replay
from memcli.engines.torch.memory.trace import Trace
from memcli.graph.roofline import DEFAULT_MACHINE, Machine, work_seconds
from memcli.marks import AUXILIARY, RESULTS

Marks = NDArray[np.uint8]
Seconds = NDArray[np.float64]

# Recomputations per step of the graph, past which a plan is not worth an exact figure.
_LIMIT = 200


@dataclass(frozen=True)
class TorchCost:
    """A plan's price. ``feasible`` False: more recomputations than anyone would run.

    ``live_peak_bytes``: feature maps, what operators save, gradients on their way, outputs.
    ``all_peak_bytes``: with the parameters' gradients, which come up during the backward pass
    and stay; this is the figure that a device's counter shows over parameters and input.
    """

    live_peak_bytes: int
    all_peak_bytes: int
    recompute_flops: float
    recompute_seconds: float
    recomputations: int
    peak_at: int  # index of the operation at which the live peak was reached first
    feasible: bool = True


@dataclass(frozen=True)
class TorchTimeline:
    """Live bytes over steps: the most while each ran in the forward and in the backward pass.

    ``backward``: -1 where no gradient passes. ``kept_bytes``: live between the two passes.
    ``order``: the backward pass's steps in the order in which it comes to them. No parameters'
    gradients.
    """

    forward: NDArray[np.int64]
    backward: NDArray[np.int64]
    order: list[int]
    kept_bytes: int
    recomputations: NDArray[np.int64]


class TorchModel:
    """Evaluates plans for one traced step.

    A plan is an array of marks over the steps of the trace (the fx graph's function nodes):
    ``KEPT``, ``AGAIN`` or ``EACH``, with ``AUXILIARY`` added where what the function saves inside
    itself goes as well. ``allocator``: "exact" counts bytes; "cuda" rounds every storage up
    as PyTorch's CUDA allocator does. ``seconds``: of running each step again; by default from
    the roofline of ``machine``. Over steps: ``makes`` (any storage), ``droppable`` (a mark frees
    some), ``has_auxiliaries``, ``result_bytes``. Not to be used by several threads at once.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        seconds: Seconds | None = None,
        machine: Machine = DEFAULT_MACHINE,
        allocator: str = "exact",
    ) -> None:
        self.trace = trace
        self.block = 512 if allocator == "cuda" else 1
        self.program, self._ends = _compile(trace, self.block)
        self.state = kernels.state_for(self.program)
        self._nothing = np.zeros(0, np.int64)
        results = ~trace.auxiliary
        self.makes = np.diff(trace.first) > 0
        # What the graph gives out stays whatever its mark; a step of nothing else is best kept.
        self.droppable = self._any(results & ~trace.given_out)
        self.result_bytes = np.bincount(
            storage_steps(trace)[results], trace.storage_bytes[results], trace.n_steps
        ).astype(np.int64)
        self.has_auxiliaries = self._any(trace.auxiliary)
        if seconds is None:
            seconds = step_seconds(trace, machine)
        self.seconds = seconds

    @property
    def again_peaks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Over steps: what running each again takes at its peak, without what it reads.

        As it runs for its results, and for what it saves inside itself, too (0 where nothing).
        """
        again = self.program.steps[:-1]
        return again[:, kernels._PEAK_AGAIN], again[:, kernels._PEAK_AGAIN + 1]

    def _any(self, storages: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The steps that make any of some storages."""
        steps = np.zeros(self.trace.n_steps, bool)
        steps[storage_steps(self.trace)[storages]] = True
        return steps

    @property
    def events_until(self) -> list[int]:
        """Over operations: events of the trace up to each, itself included."""
        codes = self.program.operations[:, 0].tolist()
        # a run of allocations ends before the event that cut it off, but for the last one
        return [
            end + (code != kernels.SEGMENT or k == len(codes) - 1)
            for k, (end, code) in enumerate(zip(self._ends, codes, strict=True))
        ]

    def none(self) -> Marks:
        """The plan that keeps everything."""
        return np.zeros(self.trace.n_steps, np.uint8)

    @property
    def most_runs(self) -> int:
        """Recomputations past which a plan has no exact figure."""
        return _LIMIT * max(self.trace.n_steps, 50)

    def as_run(self, marks: Marks) -> Marks:
        """The marks as the executor reads them: some steps drop all they make, or nothing."""
        whole = self.trace.with_gradients & (marks & RESULTS != 0)
        return np.where(whole, marks | AUXILIARY, marks).astype(np.uint8)

    def evaluate(self, marks: Marks) -> TorchCost:
        """The price of a plan."""
        marks = self.as_run(marks)
        state = self.state
        peak, all_peak, at = kernels.walk(self.program, state, marks, self.most_runs, self._nothing)
        runs = kernels.recomputations(state)
        return TorchCost(
            live_peak_bytes=int(peak),
            all_peak_bytes=int(all_peak),
            recompute_flops=float(runs @ self.trace.flops),
            recompute_seconds=float(runs @ self.seconds),
            recomputations=int(runs.sum()),
            peak_at=int(at),
            feasible=peak >= 0,
        )

    def timeline(self, marks: Marks) -> TorchTimeline:
        """Live bytes step by step.

        Raises:
            ValueError: the plan recomputes without bound.
        """
        marks = self.as_run(marks)
        p, n = self.program, self.trace.n_steps
        highs = np.zeros(len(p.operations), np.int64)
        peak, _, _ = kernels.walk(p, self.state, marks, self.most_runs, highs)
        if peak < 0:
            raise ValueError("the plan recomputes more often than is worth counting")
        forward, backward = np.zeros(n, np.int64), np.full(n, -1, np.int64)
        order: list[int] = []
        kept = high = 0
        stage, back = -1, False
        for i in range(len(p.operations)):
            code, number, kind = (int(x) for x in p.operations[i, :3])
            if code != kernels.STAGE:
                high = max(high, int(highs[i]))
                continue
            if kind == events.FORWARD:
                forward[number] = high
            elif number < 0:
                kept, back = int(highs[i]), True
            else:
                if back and stage >= 0:
                    backward[stage] = max(backward[stage], high)
                order.append(number)
            stage = number
            high = int(highs[i])
        if back and stage >= 0:
            backward[stage] = max(backward[stage], high)
        runs = kernels.recomputations(self.state).copy()
        return TorchTimeline(forward, backward, order, kept, runs)

    def device_memory(self, marks: Marks, workspace: int = BLAS_WORKSPACE) -> DeviceMemory:
        """What CUDA's caching allocator would count and take from the device; some 0.1 s.

        Two steps are played, the second with what the first left in the allocator: parameters,
        states and inputs are allocated first, in their own order.

        Args:
            marks: the plan.
            workspace: bytes that cuBLAS takes in each thread that multiplies matrices.

        Raises:
            ValueError: the plan recomputes without bound.
        """
        return replay(self.trace, self._ends, self._log(marks), workspace)

    def allocations(self, marks: Marks) -> list[tuple[int, int, str]]:
        """What a step allocates and frees on a card: number, bytes, where ("forward conv1").

        In order; bytes are below 0 where the allocation of that number is freed.

        Raises:
            ValueError: the plan recomputes without bound.
        """
        return allocations(self.trace, self._ends, self._log(marks))

    def _log(self, marks: Marks) -> NDArray[np.int64]:
        p, trace = self.program, self.trace
        rows = 4 * (len(trace.kinds) + _LIMIT * trace.n_steps)
        state = kernels.state_for(p, rows)
        marks = self.as_run(marks)
        if kernels.walk(p, state, marks, self.most_runs, self._nothing)[0] < 0:
            raise ValueError("the plan recomputes more often than is worth counting")
        return state.log[: int(state.logged[0])]

    def stage_at(self, operation: int) -> tuple[str, str]:
        """Where an operation (``peak_at``) is: ("forward" or "backward", name of the node)."""
        p = self.program
        ended = False
        last = -1
        for i, (code, number, kind) in enumerate(p.operations[:, :3].tolist()):
            if code == kernels.STAGE and kind == events.BACKWARD:
                if i > operation:
                    break
                ended, last = True, number
            elif i >= operation and not ended and code in (kernels.CALL, kernels.STAGE):
                return "forward", self.trace.names[number]
        return "backward", self.trace.names[last] if last >= 0 else ""


def _compile(trace: Trace, block: int) -> tuple[kernels.Program, list[int]]:
    """Events as operations, runs of allocations and releases as one; the event each ends with."""

    def rounded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        return -(-sizes // block) * block

    storage_bytes, again = rounded(trace.storage_bytes), rounded(trace.again_bytes)
    sizes = rounded(trace.event_bytes)
    operations: list[tuple[int, ...]] = []
    ends: list[int] = []
    i = 0
    again_peak = np.zeros((trace.n_steps, 2), np.int64)
    plain = full = high = full_high = 0
    capture = 0

    def emit(code: int, number: int, detail: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        operations.append((code, number, *detail))
        ends.append(i)

    def flush() -> None:
        nonlocal plain, full, high, full_high
        if plain or full or high or full_high:
            emit(kernels.SEGMENT, 0, (high, full_high, plain, full))
        plain = full = high = full_high = 0

    for i, (kind, number) in enumerate(
        zip(trace.kinds.tolist(), trace.numbers.tolist(), strict=True)
    ):
        if kind == events.WORKSPACE:
            continue  # there before any step but the first
        if kind in _CHANGES:
            change = int(sizes[i]) * _CHANGES[kind]
            full += change
            if kind != events.PARAMETER_GRADIENT:
                plain += change
            high, full_high = max(high, plain), max(full_high, full)
            continue
        if kind == events.END:
            made = int(storage_bytes[trace.first[number] : trace.first[number + 1]].sum())
            emit(kernels.CALL, number, (high, full_high, plain - made, full - made))
            plain = full = high = full_high = 0
        elif kind == events.AGAIN_END:
            again_peak[number, capture] = high
            plain = full = high = full_high = 0
        else:
            flush()
            if kind == events.AGAIN:
                capture = int(trace.event_bytes[i])
            elif kind in (events.FORWARD, events.BACKWARD):
                emit(kernels.STAGE, number, (kind, 0, 0, 0))
            elif kind != events.BEGIN:
                emit(_OPERATIONS[kind], number)
    flush()
    n = trace.n_steps
    steps = np.zeros((n + 1, 4), np.int64)
    steps[:, 0], steps[:, 1] = trace.first, trace.input_first
    steps[:n, 2:] = again_peak
    program = kernels.Program(
        operations=np.array(operations, np.int64).reshape(-1, 6),
        steps=steps,
        storages=np.stack(
            [storage_steps(trace), storage_bytes, again, trace.auxiliary.astype(np.int64)], axis=1
        ),
        inputs=trace.inputs,
        handle_storage=trace.handle_storage,
    )
    return program, ends


def step_seconds(trace: Trace, machine: Machine = DEFAULT_MACHINE) -> Seconds:
    """Over steps: seconds of running each again, by the roofline."""
    return machine.launch_seconds + work_seconds(trace.flops, trace.moved_bytes, machine)


def storage_steps(trace: Trace) -> NDArray[np.int64]:
    """The step that makes each storage."""
    return np.repeat(np.arange(trace.n_steps), np.diff(trace.first)).astype(np.int64)


_CHANGES = {events.ALLOCATED: 1, events.FREED: -1, events.PARAMETER_GRADIENT: 1}
_OPERATIONS = {
    events.SAVED: kernels.SAVED,
    events.UNUSED: kernels.UNUSED,
    events.OUTPUT: kernels.OUTPUT,
    events.UNPACKED: kernels.UNPACKED,
    events.DONE: kernels.DONE,
    events.GONE: kernels.GONE,
}
