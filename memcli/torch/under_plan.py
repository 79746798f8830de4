"""A module that trains under a plan and stays what it is: the same object, of its own class.

``plan.apply(model)`` gives the object's class a subclass of the same name, whose ``forward`` runs
training steps under the plan, as ``torch.nn.utils.parametrize`` and FSDP2 do. Attributes, hooks of
the module, ``state_dict``, copies and pickles are the module's own.
"""

from __future__ import annotations

import copy
import functools
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.program import attribute
from memcli.engines.torch.tracking import StepMemory
from memcli.errors import BadInput
from memcli.torch.eager import is_without_data
from memcli.torch.export_guards import Attribute, kind_of_constant, settings_of
from memcli.torch.parameter_binding import Constants, planned_on
from memcli.torch.recording import Recording, record
from memcli.torch.regimes import Span, all_left, autocast_now
from memcli.torch.steps import Loss, default_loss, eager_memory, leaf_names, planned_memory

_STATE = "_memcli_plan"
# Graphs for other inputs or modes that are held; the oldest goes.
_MOST_HELD = 32
# Of a plan's steps, so many must be in the graph of another call for it to run under the plan.
SMALLEST_PART = 0.9


@dataclass(frozen=True)
class Marks:
    """What a module needs of a plan. ``steps``: names of all steps of its graph."""

    marks: Mapping[str, int]
    steps: frozenset[str]
    digest: str
    loss: Loss = default_loss
    name: str = "the plan"

    def of(self, recording: Recording) -> dict[str, int] | None:
        """The marks of another call's steps; None where the plan is not of this graph."""
        if recording.digest() == self.digest:
            return dict(self.marks)
        there = {n.name for n in recording.graph.nodes if n.op == "call_function"}
        if len(there & self.steps) < SMALLEST_PART * max(len(there), len(self.steps)):
            return None
        return {
            name: mark
            for name, mark in self.marks.items()
            if name in there and name not in recording.never
        }


@dataclass
class _Specialized:
    """The graph of one kind of call. ``planned``: None where it runs without a plan."""

    recording: Recording
    marks: dict[str, int] | None
    planned: PlannedModule | None


class PlanState:
    """The plan of one module, and the graphs of the calls that it has had."""

    def __init__(self, marks: Marks, own_forward: Any = None) -> None:
        self.marks = marks
        self.own_forward = own_forward  # of the instance, in place of its class's
        self.held: OrderedDict[Any, list[_Specialized]] = OrderedDict()
        self.written: set[Attribute] = set()
        self.warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Copies record again when they need it.
        return {**self.__dict__, "held": OrderedDict()}

    def __deepcopy__(self, memo: dict[int, Any]) -> PlanState:
        other = PlanState(self.marks, copy.deepcopy(self.own_forward, memo))
        other.written = set(self.written)
        memo[id(self)] = other
        return other

    def plain(self, model: nn.Module) -> Callable[..., Any]:
        """The module's forward without the plan."""
        if self.own_forward is not None:
            own: Callable[..., Any] = self.own_forward
            return own
        cls = type(model)
        while _STATE in cls.__dict__:
            cls = cls.__mro__[1]
        bound: Callable[..., Any] = cls.forward.__get__(model)  # type: ignore[attr-defined]
        return bound

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A training step's forward pass."""
        entry = self.entry(model, args, kwargs)
        if entry.planned is None:
            return self.plain(model)(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        with all_left():
            outputs = entry.planned(*leaves)
        return entry.recording.form.filled(outputs)

    def memory(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], plan: bool
    ) -> StepMemory:
        """Bytes of a training step on such a call; nothing is computed."""
        entry = self.entry(model, args, kwargs)
        kinds = {"cpu", *(p.device.type for p in model.parameters())}
        span, loss = Span(autocast_now(tuple(kinds))), self.marks.loss
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [*model.parameters(), *(t for t in leaves if isinstance(t, Tensor))]
        device = "cuda" if any(t.is_cuda for t in tensors) else "cpu"
        if plan and entry.marks is not None:
            return planned_memory(entry.recording, entry.marks, leaves, loss, span, device)
        answers = entry.recording.answers
        return eager_memory(model, self.plain(model), args, kwargs, loss, span, answers, device)

    def entry(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Specialized:
        """The graph of a call.

        Raises:
            BadInput: it cannot be recorded.
        """
        leaves, structure = pytree.tree_flatten((args, kwargs))
        call = structure, tuple(map(kind_of_leaf, leaves))
        key = (*call, *self._kinds(model))
        for entry in self.held.get(key, ()):
            guards = entry.recording.guards
            if all(guard.holds(leaves, self._attribute(model, entry)) for guard in guards):
                self.held.move_to_end(key)
                return entry
        made = self._specialized(model, args, kwargs)
        key = (*call, *self._kinds(model))  # more may be known to be written now
        self.held.setdefault(key, []).append(made)
        self.held.move_to_end(key)
        if sum(map(len, self.held.values())) > _MOST_HELD:
            self.held.popitem(last=False)
            self._warn(
                f"{type(model).__name__} was recorded for more than {_MOST_HELD} kinds of calls, "
                "each of which takes seconds: pad inputs to few shapes, and give numbers that "
                "change at each step as tensors",
            )
        return made

    def _attribute(self, model: nn.Module, entry: _Specialized) -> Callable[[str], Any]:
        constants = entry.recording.constants
        return lambda name: constants[name] if name in constants else attribute(model, name)

    def _specialized(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Specialized:
        forward = self.plain(model)
        for name, module in model.named_modules():
            if name and (module._forward_hooks or module._forward_pre_hooks):
                self._warn(
                    f"{name} has hooks: under a plan their operators run as part of the graph, and "
                    "what else they do is done when a kind of call is recorded alone",
                )
                break
        names = leaf_names(forward, args, kwargs)
        recording = record(model, forward, args, kwargs, names)
        self.written |= recording.written
        marks = self.marks.of(recording)
        if marks is None:
            self._warn(
                f"this call of {type(model).__name__} runs other operators than the one that was "
                "planned, and so without a plan: make one for it (memcli.torch.plan)",
            )
            return _Specialized(recording, None, None)
        planned = planned_on(model, recording.graph, Constants(recording.constants), marks)
        return _Specialized(recording, marks, planned)

    def _warn(self, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            warnings.warn(text, stacklevel=6)

    def _kinds(self, model: nn.Module) -> tuple[Any, ...]:
        """What a graph depends on beside the inputs."""
        modes = tuple(module.training for module in model.modules())
        own = tuple((p.dtype, p.device, p.requires_grad) for p in model.parameters())
        shapes = tuple(buffer.shape for buffer in model.buffers())
        kinds = tuple(sorted({"cpu", *(kind for _, device, _ in own for kind in (device.type,))}))
        read = tuple(p for p in settings_of(model).items() if p[0] not in self.written)
        return modes, own, shapes, autocast_now(kinds), read, _configuration(model)


def kind_of_leaf(value: Any) -> Any:
    """What a recording depends on of one input."""
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout is torch.strided else ()
        return tuple(value.shape), strides, value.dtype, value.device, value.requires_grad
    return kind_of_constant(value)


def _configuration(model: nn.Module) -> tuple[Any, ...]:
    """What stands in the model's ``config``: forward may read it."""
    config = getattr(model, "config", None)
    if not hasattr(config, "__dict__"):
        return ()
    plain = (bool, int, float, str, type(None))
    return tuple((k, v) for k, v in vars(config).items() if isinstance(v, plain))


def state_of(model: nn.Module) -> PlanState | None:
    """The plan that a module is under."""
    found: PlanState | None = model.__dict__.get(_STATE)
    return found


_classes: weakref.WeakKeyDictionary[type, dict[bool, type]] = weakref.WeakKeyDictionary()


def put_under(model: nn.Module, marks: Marks) -> None:
    """Has a module train under a plan, in place of another one that it may be under."""
    take_off(model)
    free = not hasattr(model, "memory")  # else the name is the module's own
    own = model.__dict__.pop("forward", None)
    model.__dict__[_STATE] = PlanState(marks, own)
    model.__class__ = class_under_plan(type(model), free)


def take_off(model: nn.Module) -> bool:
    """Makes a module what it was before; whether it was under a plan."""
    state = model.__dict__.pop(_STATE, None)
    if state is None:
        return False
    if state.own_forward is not None:
        model.__dict__["forward"] = state.own_forward
    if _STATE in type(model).__dict__:
        model.__class__ = type(model).__mro__[1]
    return True


def class_under_plan(cls: type, with_memory: bool) -> type:
    """The subclass that modules of a class have under a plan, with a method ``memory`` or not."""
    found = _classes.setdefault(cls, {})
    if with_memory not in found:
        found[with_memory] = _subclass(cls, with_memory)
    return found[with_memory]


def memory_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], plan: bool
) -> StepMemory:
    """Bytes of a training step on such inputs; nothing is computed.

    Raises:
        BadInput: the module is under no plan, or the call cannot be recorded.
    """
    state = state_of(model)
    if state is None:
        raise BadInput("this module is under no plan", "plan.apply(model)")
    return state.memory(model, args, kwargs, plan)


def _subclass(cls: Any, with_memory: bool) -> type:
    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        if state is None:
            return cls.forward(self, *args, **kwargs)
        trains = self.training and torch.is_grad_enabled()
        if not trains or is_without_data() or torch.compiler.is_compiling():
            return state.plain(self)(*args, **kwargs)
        return state.run(self, args, kwargs)

    def memory(self: nn.Module, *args: Any, plan: bool = True, **kwargs: Any) -> StepMemory:
        """Bytes of a training step on such inputs; nothing is computed.

        ``plan=False``: as the module takes without it.

        Raises:
            BadInput: the call cannot be recorded.
        """
        return memory_of(self, args, kwargs, plan)

    def enter(self: nn.Module) -> nn.Module:
        return self

    def leave(self: nn.Module, *error: Any) -> None:
        take_off(self)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _made_again, (cls, with_memory), self.__dict__.copy()

    members: dict[str, Any] = {
        _STATE: True,
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    if with_memory:
        members["memory"] = memory
    if not hasattr(cls, "__enter__"):
        members |= {"__enter__": enter, "__exit__": leave}
    return type(cls)(cls.__name__, (cls,), members)


def _made_again(cls: type, with_memory: bool) -> Any:
    under: Any = class_under_plan(cls, with_memory)
    return under.__new__(under)
