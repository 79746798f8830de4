"""A whole training step of anyone's code on a card's allocator, without a card and without data.

Where :mod:`memcli.engines.torch.trace` records a graph for any plan, this plays one step as it is:
forward and backward pass, and the optimizer's, as Python runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.engines.torch.cards import Card, card_here
from memcli.engines.torch.cuda_autocast import cuda_autocast
from memcli.engines.torch.device_rules import as_on
from memcli.engines.torch.device_temporaries import PRODUCTS, script_of
from memcli.engines.torch.geometry import has_storage, storage_key, tensors_in
from memcli.engines.torch.memory.cuda_allocator import CachingAllocator
from memcli.engines.torch.memory.device_steps import blas_workspace
from memcli.engines.torch.tape import ALLOCATED, FREED, Tape


@dataclass
class StepOnCard:
    """Bytes in the last of some steps, everything on the card counted.

    ``requested_peak``, ``allocated_peak`` and ``reserved_peak`` as ``torch.cuda.memory_stats``
    counts them; ``before``: requested when the step began; ``workspaces``: cuBLAS's part.
    ``sizes``: bytes of every allocation of the step, in order.
    """

    requested_peak: int = 0
    allocated_peak: int = 0
    reserved_peak: int = 0
    before: int = 0
    workspaces: int = 0
    sizes: list[int] = field(default_factory=list)


class _Playing(Tape):
    """A tape that plays what it sees through an allocator at once, and keeps nothing."""

    def __init__(self, card: Card, config: str) -> None:
        super().__init__()
        self.card = card
        self.allocator = CachingAllocator()
        self.workspace = blas_workspace(card.capability[0], config)
        self.address: dict[int, int] = {}
        self.threads: set[bool] = set()
        self.sizes: list[int] = []
        self.events = _Sink(self)  # type: ignore[assignment]
        self.inside = self._inside

    def _inside(
        self, func: Any, args: Any, kwargs: dict[str, Any], result: Any
    ) -> list[tuple[str, Any]]:
        backward = torch._C._current_graph_task_id() != -1
        if func in PRODUCTS and backward not in self.threads:
            self.threads.add(backward)
            self.allocator.allocate(self.workspace)
        return script_of(func, args, kwargs, result, self.card)


class _Sink:
    """Takes events as they come."""

    def __init__(self, tape: _Playing) -> None:
        self.tape = tape

    def append(self, event: tuple[int, int, int]) -> None:
        kind, number, size = event
        tape = self.tape
        if kind == ALLOCATED:
            tape.address[number] = tape.allocator.allocate(size)
            if size:
                tape.sizes.append(size)
        elif kind == FREED and number in tape.address:
            tape.allocator.free(tape.address.pop(number))


def play_steps(
    make: Callable[[], tuple[Callable[[], Any], Iterable[Tensor]]],
    *,
    steps: int = 2,
    card: Card | None = None,
    autocast: torch.dtype | None = None,
    workspace_config: str = "",
) -> StepOnCard:
    """The memory of the last of some training steps.

    Args:
        make: makes what is trained, on the CPU, and gives the function that runs one step, and all
            tensors that are on the card before the first (parameters, buffers, inputs) in order.
        steps: how many steps are run; what earlier ones leave is there in later ones.
        card: the card; left out, the one that is here.
        autocast: the lower precision, where the whole step runs under ``torch.autocast("cuda")``.
        workspace_config: ``CUBLAS_WORKSPACE_CONFIG``.

    Returns:
        The figures of the last step.
    """
    tape = _Playing(card or card_here(), workspace_config)
    result = StepOnCard()
    with FakeTensorMode(), as_on("cuda"):
        step, tensors = make()
        held: set[int] = set()
        for tensor in tensors_in(list(tensors)):
            if has_storage(tensor) and storage_key(tensor) not in held:
                held.add(storage_key(tensor))
                tape._made(tensor)
        allocator = tape.allocator
        for number in range(steps):
            last = number == steps - 1
            if last:
                tape.sizes.clear()
                allocator.requested_peak = result.before = allocator.requested
                allocator.allocated_peak = allocator.allocated
            with tape:
                if autocast is None:
                    step()
                else:
                    with cuda_autocast(autocast):
                        step()
        result.requested_peak = allocator.requested_peak
        result.allocated_peak = allocator.allocated_peak
        result.reserved_peak = allocator.reserved_peak
        result.workspaces = tape.workspace * len(tape.threads)
        result.sizes = tape.sizes
    return result
