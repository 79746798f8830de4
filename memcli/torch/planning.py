"""Plans of live modules: ``memcli.torch.plan`` and ``memcli.torch.fit``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memcli.choices import OPTIMIZERS
from memcli.engines.plan_search import WholeStep, plan_network
from memcli.engines.runtime import NOTHING, reserve_or_default
from memcli.engines.torch.tracking import StepMemory
from memcli.errors import BadInput
from memcli.results.planned import Planned
from memcli.search.base import Settings
from memcli.time_limit import deadline
from memcli.torch.module_network import ModuleNetwork, device_of_step, marks_of, record_step
from memcli.torch.recording import Recording
from memcli.torch.regimes import Autocast, autocast_now, under
from memcli.torch.saving import save_module
from memcli.torch.steps import Loss, default_loss
from memcli.torch.under_plan import Marks, memory_of, put_under, state_of, take_off
from memcli.units import format_size, parse_size

STRATEGY = "auto"


class Call:
    """The call that was planned: its module, and its inputs without their data."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, autocast: Autocast) -> None:
        self.model = weakref.ref(model)
        self._autocast = autocast
        leaves, self._structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self._leaves = [
            leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        self._device = device_of_step(model, leaves)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Such inputs, zeros."""
        leaves = [
            torch.zeros_like(leaf, device=self._device) if isinstance(leaf, Tensor) else leaf
            for leaf in self._leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return args, kwargs

    def autocast(self) -> Any:
        """As it was."""
        return under(self._autocast)


class Plan:
    """A plan of a module's training step.

    ``print(plan)`` is the table of ``memcli plan``; ``planned`` is everything that is known of it.
    """

    def __init__(self, planned: Planned, marks: Marks, recording: Recording, call: Call) -> None:
        self.planned = planned
        self.marks = marks
        self._recording = recording
        self._call = call

    @property
    def baseline_bytes(self) -> int:
        """The peak of the module's step without a plan."""
        return self.planned.baseline.pool_bytes

    @property
    def planned_bytes(self) -> int:
        """The peak of its step under the plan."""
        return self.planned.cost.pool_bytes

    def to_json(self) -> dict[str, Any]:
        """The object that ``memcli plan --json`` prints."""
        return self.planned.to_json()

    def __str__(self) -> str:
        from rich.console import Console

        from memcli.reports.plan_report import print_plan

        text = io.StringIO()
        console = Console(file=text, width=100, no_color=True, highlight=False)
        print_plan(console, self.planned)
        for note in self.planned.notes:
            text.write(f"note: {note}\n")
        return text.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return (
            f"<memcli.torch.Plan of {self.planned.source.name}: "
            f"{format_size(self.baseline_bytes)} -> {format_size(self.planned_bytes)}>"
        )

    def save(
        self, path: str | os.PathLike[str], model: nn.Module | None = None, *, force: bool = False
    ) -> None:
        """Writes the module, exported by ``torch.export``, with the plan in its extra files.

        Args:
            path: of the ``.pt2`` file.
            model: the module, where the one that was planned is gone or has been copied.
            force: replace the file where it exists.

        Raises:
            BadInput: ``torch.export`` cannot follow the module or makes another graph of it, or
                the file cannot be written.
        """
        found = model if model is not None else self._call.model()
        if found is None:
            raise BadInput("the module that was planned is gone", "give it: save(path, model)")
        was = take_off(found)
        try:
            args, kwargs = self._call.arguments()
            with self._call.autocast():
                save_module(
                    path,
                    found,
                    args,
                    kwargs,
                    self._recording,
                    self.planned,
                    self.marks.marks,
                    force,
                )
        finally:
            if was:
                put_under(found, self.marks)

    def apply(self, model: nn.Module) -> Any:
        """Has a module train under the plan, in place; gives the same object.

        It has ``memory(*args, **kwargs)``, the figures of a training step, beside all that it had.
        Evaluation, and calls without gradients, are the module's own. A training call of another
        kind (shapes, types, autocast, modes of submodules, plain attributes, the model's
        ``config``) is recorded anew, which takes seconds, and runs under the marks of the same
        steps, or with a warning without a plan where it runs other operators. With ``with``, the
        plan is taken off at the end. Hooks on the module itself run as ever; of hooks on
        submodules the operators alone.
        """
        put_under(model, self.marks)
        return model

    def memory(
        self, model: nn.Module, *args: Any, without_plan: bool = False, **kwargs: Any
    ) -> StepMemory:
        """Bytes of a training step of a module under the plan; nothing is computed.

        What ``model.memory(*args, **kwargs)`` gives where the module has no ``memory`` of its own.
        """
        return memory_of(model, args, kwargs, not without_plan)

    def remove(self, model: nn.Module) -> Any:
        """Makes a module what it was before :meth:`apply`; gives the same object."""
        take_off(model)
        return model


def plan(
    model: nn.Module,
    *args: Any,
    budget: int | str | None = None,
    memory: int | str | None = None,
    max_recompute: float | None = None,
    loss: Loss | None = None,
    optimizer: str | None = None,
    autocast: Any = None,
    time_limit: float | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Plan:
    """Searches for a plan of a module's training step, as the module trains in eager mode.

    Args:
        model: in the mode and on the device in which it trains; nothing of it is changed.
        args: of a call in training.
        budget: most memory of feature maps and their gradients, in bytes or as ``"8GiB"`` or
            ``"50%"`` of what the step takes without a plan; None: as little as can be.
        memory: most memory of everything on the device, in place of ``budget``: parameters,
            gradients, the optimizer's state, buffers, inputs and the plan's peak.
        max_recompute: most recomputation, in percent of the forward pass's FLOPs.
        loss: a function of what the model gives; None: the output's own ``loss`` where it has
            one, else the sum of the outputs in float32.
        optimizer: a name of ``OPTIMIZERS`` (``sgd``, ``adamw``), or a ``torch.optim.Optimizer``;
            counted for ``memory``.
        autocast: ``torch.bfloat16`` or another type to train under autocast; None: as it is now.
        time_limit: seconds.
        seed: of the search.
        kwargs: of the call.

    Raises:
        BadInput: the call cannot be recorded, or trains nothing.
        AnswerIsNo: no plan fits the budget, or the limit on recomputation.
    """
    started = time.monotonic()
    settings = Settings(
        max_recompute=None if max_recompute is None else max_recompute / 100,
        time_limit=time_limit,
        seed=seed,
    )
    settings = dataclasses.replace(settings, deadline=deadline(time_limit))
    if budget is not None and memory is not None:
        raise BadInput("budget and memory are two limits of the same thing", "give one of them")
    kind = optimizer_kind(optimizer)
    network, step_loss = recorded_network(model, args, kwargs, loss, autocast)
    text = f"{budget}B" if isinstance(budget, int) else budget
    planned = plan_network(
        network,
        STRATEGY,
        settings,
        budget=text,
        whole=whole_step(model, memory, kind),
        engine="torch",
        started=started,
    )
    return made_plan(network, planned, step_loss)


def made_plan(network: ModuleNetwork, planned: Planned, loss: Loss) -> Plan:
    """The plan object of a result."""
    return Plan(
        planned,
        Marks(
            marks=marks_of(planned),
            steps=frozenset(network.analysis.trace.names),
            digest=network.original[1],
            loss=loss,
            name=network.original[0],
        ),
        network.step.recording,
        network.call,
    )


def recorded_network(
    model: nn.Module, args: Any, kwargs: Any, loss: Loss | None, autocast: Any
) -> tuple[ModuleNetwork, Loss]:
    """The step of a call, and its loss."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"plan takes a torch.nn.Module, and this is a {type(model).__name__}")
    state = state_of(model)
    forward: Callable[..., Any] = model.forward if state is None else state.plain(model)
    step_loss = default_loss if loss is None else loss
    notes = []
    if not model.training:
        raise BadInput(
            f"{type(model).__name__} is in evaluation mode, and plans are for training",
            "call model.train() first",
        )
    with autocast_as(autocast, model):
        step = record_step(model, forward, args, kwargs, step_loss)
        kinds = {"cpu", *(p.device.type for p in model.parameters())}
        call = Call(model, args, kwargs, autocast_now(tuple(sorted(kinds))))
    notes.append(f"the loss is {loss_words(loss, step.recording.form.own_loss)}")
    network = ModuleNetwork(step, notes)
    network.call = call
    return network, step_loss


def loss_words(loss: Loss | None, own: bool) -> str:
    """What stands for the loss, for the user to read."""
    if loss is not None:
        return f"the function {getattr(loss, '__name__', type(loss).__name__)}"
    return "the output's own .loss" if own else "the sum of the outputs in float32"


def autocast_as(autocast: Any, model: nn.Module) -> Any:
    """The autocast that is asked for; that of the caller where none is."""
    if autocast is None:
        return contextlib.nullcontext()
    kind = next((p.device.type for p in model.parameters()), "cpu")
    if isinstance(autocast, str):
        autocast = getattr(torch, autocast, None)
    if autocast is False:
        return under(tuple((k, False, d) for k, _, d in autocast_now((kind,))))
    if not isinstance(autocast, torch.dtype):
        raise BadInput("autocast is a type to compute in", "torch.bfloat16, torch.float16 or False")
    return torch.autocast(kind, dtype=autocast)


def optimizer_kind(optimizer: Any) -> str:
    """One of ``OPTIMIZERS``.

    Raises:
        BadInput: it is none that is known.
    """
    if optimizer is None:
        return "sgd"
    name = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
    name = name.lower()
    groups = () if isinstance(optimizer, str) else optimizer.param_groups
    if name == "sgd" and any(group.get("momentum") for group in groups):
        return "momentum"
    name = {"nadam": "adam", "radam": "adam", "rmsprop": "momentum"}.get(name, name)
    if name in ("adam", "adamw") and groups and all(group.get("fused") for group in groups):
        return f"{name}-fused"
    if name not in OPTIMIZERS:
        raise BadInput(f"optimizer {name!r} is not known", f"give one of {', '.join(OPTIMIZERS)}")
    return name


def whole_step(
    model: nn.Module, memory: int | str | None, optimizer: str, reserve: int | None = None
) -> WholeStep:
    """What else a step takes; of a card's memory, what CUDA takes for itself is left free."""
    size = parse_size(memory) if isinstance(memory, str) else memory
    on_card = any(p.is_cuda for p in model.parameters())
    kept = NOTHING
    if reserve is not None or on_card:
        kept = reserve_or_default(reserve, "torch", cpu=not on_card, memory=size)
    return WholeStep(optimizer=optimizer, reserve=kept, on_card=on_card, memory=size)


def room_for(model: nn.Module, memory: int | str, reserve: int | None = None) -> int:
    """Bytes that a step may take of ``memory``."""
    whole = whole_step(model, memory, "sgd", reserve)
    return max(0, (whole.memory or 0) - whole.reserve.bytes)
