"""A module under a plan beside the same module without one: bits, and memory step by step."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import memcli.torch
from memcli.engines.torch.geometry import tensors_in
from memcli.engines.torch.tape import ALLOCATED, FREED, Tape
from memcli.errors import MemcliError

Loss = Callable[[Any], Tensor]
# Of a library's work space in a measured peak, which no estimate without data sees.
WORKSPACE = 0.005


@dataclass
class Case:
    """A module in training and a call of it."""

    model: nn.Module
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    loss: Loss | None = None
    autocast: torch.dtype | None = None


@dataclass
class Compared:
    """What came of it. Sizes in bytes; ``wrong``: in words, what is not as planned."""

    baseline: int = 0
    planned: int = 0
    measured_baseline: int = 0
    measured: int = 0
    recomputed: float = 0.0
    seconds: float = 0.0
    refused: str = ""
    wrong: list[str] = field(default_factory=list)


def loss_of(output: Any) -> Tensor:
    """The output's own loss, else the sum of its tensors in float32."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    total = tensors[0].float().sum()
    for tensor in tensors[1:]:
        total = total + tensor.float().sum()
    return total


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(one, other)


def compared(case: Case, budget: str = "50%", steps: int = 2, **options: Any) -> Compared:
    """Plans a module, trains it under the plan and a copy without, and compares both."""
    result = Compared()
    model = case.model.train()
    loss = case.loss or loss_of

    def autocast() -> Any:
        if case.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=case.autocast)

    began = time.perf_counter()
    try:
        plan = memcli.torch.plan(
            model,
            *case.args,
            budget=budget,
            loss=case.loss,
            autocast=case.autocast,
            **options,
            **case.kwargs,
        )
    except MemcliError as error:
        result.refused = str(error)
        return result
    result.seconds = time.perf_counter() - began
    plain = copy.deepcopy(model)
    plan.apply(model)
    result.baseline, result.planned = plan.baseline_bytes, plan.planned_bytes
    result.recomputed = plan.to_json()["recompute"]["fraction"]
    wrong = result.wrong
    with autocast():
        said = model.memory(*case.args, **case.kwargs).peak  # type: ignore[operator]
        without = model.memory(*case.args, plan=False, **case.kwargs).peak  # type: ignore[operator]
    if said != result.planned:
        wrong.append(f"memory() says {said:,}, the plan {result.planned:,}")
    if without != result.baseline:
        wrong.append(f"memory(plan=False) says {without:,}, the plan {result.baseline:,}")
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (plain, model)]
    for step in range(steps):
        outputs = []
        for module, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(step)
            with autocast():
                output = module(*case.args, **case.kwargs)
                value = loss(output)
            value.backward()
            outputs.append(output)
            del output, value
        wrong += [f"step {step}: {text}" for text in _differences(plain, model, outputs)]
        del outputs
        for optimizer in optimizers:
            optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    result.measured_baseline = measured(plain, case, loss, autocast)
    result.measured = measured(model, case, loss, autocast)
    for what, have, want in (
        ("without a plan", result.measured_baseline, result.baseline),
        ("under the plan", result.measured, result.planned),
    ):
        if abs(have - want) > WORKSPACE * want:
            wrong.append(f"measured {what}: {have:,}, estimated {want:,}")
    return result


def _differences(plain: nn.Module, model: nn.Module, outputs: Sequence[Any]) -> list[str]:
    found = []
    tensors = [list(_all_tensors(output)) for output in outputs]
    if len(tensors[0]) != len(tensors[1]) or not all(map(same_bits, *tensors)):
        found.append("outputs differ")
    for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        if (one.grad is None) != (other.grad is None):
            found.append(f"only one has a gradient of {name}")
        elif one.grad is not None and not same_bits(one.grad, other.grad):  # type: ignore[arg-type]
            found.append(f"gradients of {name} differ")
        if not same_bits(one, other):
            found.append(f"parameters {name} differ")
    for (name, one), other in zip(plain.named_buffers(), model.buffers(), strict=True):
        if not same_bits(one, other):
            found.append(f"buffers {name} differ")
    return found


def _all_tensors(output: Any) -> list[Tensor]:
    found = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "layers"):  # a cache of keys and values
            for layer in leaf.layers:
                found += [t for t in vars(layer).values() if isinstance(t, Tensor)]
    return found


def measured(model: nn.Module, case: Case, loss: Loss, autocast: Callable[[], Any]) -> int:
    """The most bytes alive in a real step, storage by storage; no parameter has a gradient yet."""
    torch.manual_seed(0)
    tape = Tape()
    parameters = list(model.parameters())
    given = pytree.tree_leaves((list(case.args), dict(case.kwargs)))
    tape.known([*parameters, *model.buffers(), *tensors_in(given)])
    with tape:
        with autocast():
            output = model(*case.args, **case.kwargs)
            value = loss(output)
        value.backward()
        del value
    gradients = {tape.number_of(p.grad) for p in parameters if p.grad is not None}
    live = peak = 0
    for kind, number, _ in tape.events:
        if kind in (ALLOCATED, FREED) and number not in gradients:
            live += tape.bytes[number] if kind == ALLOCATED else -tape.bytes[number]
            peak = max(peak, live)
    del output
    model.zero_grad(set_to_none=True)
    return peak
