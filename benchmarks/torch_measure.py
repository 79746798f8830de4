"""Measures training steps in PyTorch, all with one instrument: live peak, operations, time, bits.

A step is a function that runs the forward pass and gives the loss. Gradients of parameters are
there after a step and not before; the live peak leaves them out, as it leaves out parameters,
states and inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from memcli.engines.torch.geometry import has_storage, storage_key, tensors_in
from memcli.engines.torch.tape import ALLOCATED, FREED, Tape

Step = Callable[[], Tensor]
_CUDA_BLOCK = 512  # bytes; the caching allocator counts in these


@dataclass
class Measured:
    """Bytes, operations and seconds of one step; ``work``: with one for each element of results
    of what is neither matrix product, convolution nor attention (``flops`` has those alone)."""

    peak: int = 0
    all_peak: int = 0  # with the parameters' gradients
    flops: float = 0.0
    work: float = 0.0
    forward_flops: float = 0.0
    forward_work: float = 0.0
    seconds: float = 0.0
    gradients: tuple[int, int] = (0, 0)  # equal to the bit, of so many
    states: tuple[int, int] = (0, 0)
    times: list[float] = field(default_factory=list)


class Meter(Tape):
    """A tape that counts operations, and looks into what a compiler made of a module.

    FLOPs by the formulas of :mod:`torch.utils.flop_counter`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.work = 0.0
        self.on_operator = self._count

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """With True a compiled module runs as compiled under this mode, not eagerly."""
        return True

    def _count(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            operations = float(formula(*args, **kwargs, out_val=result))
            self.flops += operations
            self.work += operations
            return
        read = {storage_key(t) for t in tensors_in([list(args), kwargs]) if has_storage(t)}
        made = list(tensors_in(result))
        if func._schema.is_mutable or any(storage_key(t) not in read for t in made):
            self.work += sum(t.numel() for t in made)


class Bench:
    """One network on one device: what its step starts from, and what the plain step gives."""

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor], seed: int = 0) -> None:
        self.network = network
        self.inputs = list(inputs)
        self.device = self.inputs[0].device
        self.seed = seed
        self.parameters = dict(network.named_parameters())
        self.states = {name: b.clone() for name, b in network.named_buffers()}
        self.expected: dict[str, Tensor] = {}

    def fresh(self) -> None:
        """No gradients, the states and the generator as they were at first."""
        torch.manual_seed(self.seed)
        with torch.no_grad():
            for name, buffer in self.network.named_buffers():
                buffer.copy_(self.states[name])
        for parameter in self.parameters.values():
            parameter.grad = None

    def results(self) -> dict[str, Tensor]:
        """Gradients and states after a step, by name."""
        gradients = {f"gradient {n}": p.grad for n, p in self.parameters.items()}
        found = {n: g for n, g in gradients.items() if g is not None}
        return found | {f"state {n}": b for n, b in self.network.named_buffers()}

    def expect(self, step: Step) -> None:
        """Take this step's gradients and states for the right ones."""
        self.fresh()
        step().backward()
        self.expected = {name: t.detach().clone() for name, t in self.results().items()}

    def measure(self, step: Step) -> Measured:
        """Peak, operations and bits of a step that ran before; its time is :meth:`time`'s."""
        self.fresh()
        meter = Meter()
        result = Measured()
        meter.known([*self.parameters.values(), *self.network.buffers(), *self.inputs])
        with meter:
            loss = step()
            result.forward_flops, result.forward_work = meter.flops, meter.work
            loss.backward()
        result.flops, result.work = meter.flops, meter.work
        events = list(meter.events)
        gradients = {meter.number_of(p.grad) for p in self._with_gradients()}
        self._compare(result)
        del loss
        if self.device.type == "cuda":
            result.peak, result.all_peak = self._cuda_peaks(step)
        else:
            sizes = [
                (meter.bytes[n] if kind == ALLOCATED else -meter.bytes[n], n in gradients)
                for kind, n, _ in events
                if kind in (ALLOCATED, FREED)
            ]
            result.peak, result.all_peak = _peaks(sizes)
        self.fresh()
        return result

    def _with_gradients(self) -> list[Any]:
        return [p for p in self.parameters.values() if p.grad is not None]

    def _compare(self, result: Measured) -> None:
        """Counts what is equal to the bit to the expected step's."""
        got = self.results()
        counts = {"gradient": [0, 0], "state": [0, 0]}
        for name, wanted in self.expected.items():
            count = counts[name.partition(" ")[0]]
            count[0] += name in got and torch.equal(got[name], wanted)
            count[1] += 1
        result.gradients = (counts["gradient"][0], counts["gradient"][1])
        result.states = (counts["state"][0], counts["state"][1])

    def _cuda_peaks(self, step: Step) -> tuple[int, int]:
        """From the allocator's own record of the step: without and with gradients.

        The record tells the gradients from the rest wherever they come up, which the counters
        cannot; where there is no record, both figures are the counter's.
        """
        self.fresh()
        device = self.device
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device)
        torch.cuda.memory._record_memory_history(context=None, max_entries=4_000_000)
        try:
            before = len(self._cuda_record())  # of earlier recordings
            loss = step()
            loss.backward()
            torch.cuda.synchronize(device)
            events = self._cuda_record()[before:]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
        counted = torch.cuda.max_memory_allocated(device) - base
        del loss
        addresses = {p.grad.untyped_storage().data_ptr() for p in self._with_gradients()}
        peak, all_peak = _peaks(_cuda_sizes(events, addresses))
        if abs(all_peak - counted) > 0.03 * counted:
            return counted, counted
        return peak, counted

    def _cuda_record(self) -> list[dict[str, Any]]:
        records = torch.cuda.memory._snapshot(self.device)["device_traces"]
        index = self.device.index or 0
        return list(records[index]) if index < len(records) else []

    def time(self, steps: Sequence[Step], repeats: int) -> list[list[float]]:
        """Seconds of each step, ``repeats`` times in turns, so that all see the same machine."""
        trained = [lambda step=step: step().backward() for step in steps]
        found = time_in_turns(trained, repeats, self.device, lambda _: self.fresh())
        self.fresh()
        return found


def time_in_turns(
    steps: Sequence[Callable[[], object]],
    rounds: int,
    device: torch.device,
    before: Callable[[int], None],
) -> list[list[float]]:
    """Seconds of each step in each round, after a round that warms up.

    ``before`` is called ahead of every step, untimed, with the number of the round.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        for step, times in zip(steps, found, strict=True):
            before(number)
            wait()
            began = time.perf_counter()
            step()
            wait()
            if number:
                times.append(time.perf_counter() - began)
    return found


def typical(times: Sequence[float]) -> float:
    """The median."""
    return median(times)


def _peaks(sizes: Sequence[tuple[int, bool]]) -> tuple[int, int]:
    """The most bytes at one time from changes (bytes, of a gradient): without, with gradients."""
    live = live_all = peak = all_peak = 0
    for change, gradient in sizes:
        live_all += change
        live += 0 if gradient else change
        peak, all_peak = max(peak, live), max(all_peak, live_all)
    return peak, all_peak


def _cuda_sizes(events: list[dict[str, Any]], gradients: set[int]) -> list[tuple[int, bool]]:
    """Changes from the allocator's record; ``gradients``: addresses that hold one at the end."""
    sizes: list[tuple[int, bool]] = []
    live: dict[int, int] = {}  # address: index of its allocation
    for event in events:
        address = event["addr"]
        if event["action"] == "alloc":
            live[address] = len(sizes)
            sizes.append((-(-event["size"] // _CUDA_BLOCK) * _CUDA_BLOCK, False))
        elif event["action"] == "free_requested" and address in live:
            sizes.append((-sizes[live.pop(address)][0], False))
    for address in gradients & set(live):
        sizes[live[address]] = (sizes[live[address]][0], True)
    return sizes
