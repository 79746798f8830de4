"""A graph's steps by kind: the same function on tensors that are alike, with the same constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from memcli.engines.torch.geometry import has_storage
from memcli.engines.torch.program import Step, attribute, compile_graph, fill

_VALUES = 1 << 20  # numbers that are drawn; larger tensors repeat them
_INDICES = 2  # below which integers are drawn: any table has a row of that number


class Alike(NamedTuple):
    """All of a tensor that matters to how long a function takes on it.

    ``number``: which of the tensors of its call it is, so that one that is read twice stays one.
    """

    number: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


@dataclass
class StepKind:
    """One of several steps that are alike. ``values``: what it reads, tensors as :class:`Alike`;
    None where one of them is no plain tensor."""

    step: Step
    values: dict[int, Any] | None

    @property
    def key(self) -> str:
        """The same for steps that are alike."""
        step = self.step
        name = f"{getattr(step.again, '__module__', '')}.{step.again!r}"
        if self.values is None:
            return f"{name} {step.index}"
        return f"{name} {fill(step.args, self.values)!r} {fill(step.kwargs, self.values)!r}"

    @property
    def input_bytes(self) -> int:
        """Of all that it reads."""
        found = {a.number: _elements(a) * a.dtype.itemsize for a in _alikes(self.values)}
        return sum(found.values())


def kinds_of_steps(module: GraphModule, inputs: list[Any]) -> list[StepKind]:
    """Every step, in order, with what it reads; for fake tensors within their mode."""
    program = compile_graph(module)
    values: list[Any] = [None] * program.n_values
    for number, given in zip(program.inputs, inputs, strict=True):
        values[number] = given
    for number, path in program.attributes:
        values[number] = attribute(module, path)
    found = []
    for step in program.steps:
        numbers: dict[int, int] = {}
        try:
            reads = {n: _described(values[n], numbers) for n in step.reads}
        except _NotPlain:
            found.append(StepKind(step, None))
        else:
            found.append(StepKind(step, reads))
        args, kwargs = step.arguments(values)
        values[step.value] = step.function(*args, **kwargs)
        for number in step.free_after:
            values[number] = None
    return found


def values_like(kind: StepKind, device: torch.device, generator: torch.Generator) -> dict[int, Any]:
    """Tensors with data for what a kind reads.

    Numbers between 0 and 1, which every function has a value for, small indices, masks that let
    everything through.
    """
    made: dict[int, Tensor] = {}

    def build(value: Any) -> Any:
        if isinstance(value, Alike):
            if value.number not in made:
                made[value.number] = _drawn(value, device, generator)
            return made[value.number]
        if isinstance(value, (tuple, list)):
            return [build(item) for item in value]
        if isinstance(value, dict):
            return {k: build(item) for k, item in value.items()}
        return value

    return {n: build(value) for n, value in (kind.values or {}).items()}


class _NotPlain(Exception):
    """A tensor that is no view of one storage."""


def _described(value: Any, numbers: dict[int, int]) -> Any:
    if isinstance(value, Tensor):
        if not has_storage(value):
            raise _NotPlain
        number = numbers.setdefault(id(value), len(numbers))
        shape, stride = tuple(value.shape), tuple(value.stride())
        return Alike(number, shape, stride, value.dtype, value.requires_grad)
    if isinstance(value, (tuple, list)):
        return [_described(item, numbers) for item in value]
    if isinstance(value, dict):
        return {k: _described(item, numbers) for k, item in value.items()}
    return value


def _alikes(value: Any) -> list[Alike]:
    if isinstance(value, Alike):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [a for item in value for a in _alikes(item)] if isinstance(value, list) else []


def _elements(tensor: Alike) -> int:
    """Of its storage: expanded dimensions take none, gaps between rows do."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((d - 1) * s for d, s in zip(tensor.shape, tensor.stride, strict=True))


def _drawn(like: Alike, device: torch.device, generator: torch.Generator) -> Tensor:
    elements = _elements(like)
    count = min(elements, _VALUES)
    if like.dtype == torch.bool:
        some = torch.ones(count, dtype=torch.bool)
    elif like.dtype.is_floating_point or like.dtype.is_complex:
        some = torch.rand(count, generator=generator)
    else:
        some = torch.randint(0, _INDICES, (count,), generator=generator)
    some = some.to(device=device, dtype=like.dtype)
    flat = torch.empty(elements, dtype=like.dtype, device=device)
    for start in range(0, elements, max(count, 1)):
        part = flat[start : start + count]
        part.copy_(some[: len(part)])
    tensor = flat.as_strided(like.shape, like.stride)
    return tensor.requires_grad_() if like.requires_grad else tensor
