"""The user's own module, in training under a plan that was made from an ONNX export of it."""

from __future__ import annotations

import inspect
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.program import attribute
from memcli.engines.torch.tracking import StepMemory
from memcli.errors import BadInput
from memcli.formats.onnx.file import OnnxFile
from memcli.formats.onnx.record import OnnxPlan
from memcli.quoting import shown_path
from memcli.torch.export_guards import Attribute, kind_of_constant, settings_of
from memcli.torch.exported import ExportedModel, Place, export_model, names_in_evaluation
from memcli.torch.matching import Matched, check, is_legacy, match, match_by_scopes
from memcli.torch.parameter_binding import Constants, device_of, planned_on, share, step_memory
from memcli.torch.plans import MARKS, marks_by_output, read_planned
from memcli.torch.regions import DEVICES
from memcli.units import distinct_sizes

# Of the plan's memory, what a module may take.
_MOST_OVER = 1.01
# Graphs for other inputs or modes that are held; the oldest goes.
_MOST_HELD = 32


@dataclass
class _Specialized:
    """The graph of one kind of call."""

    planned: PlannedModule
    output: Any
    updated: list[str]
    matched: Matched


class AppliedModel(nn.Module):
    """A module in training under a plan; parameters, buffers and their names are the module's own.

    ``model`` is the module itself, which stays usable. Training steps run under the plan; in
    evaluation, and without gradients, the module itself is called. A call with inputs of another
    structure, shape or type, under another autocast, with other submodules in training, or with
    other numbers, texts or tensors as plain attributes of modules (a drop rate, a temperature), is
    exported anew (seconds, at most 32 are held). Hooks on submodules do not run under a plan, nor
    does what ``forward`` does to Python objects: its assignments to attributes are undone.
    """

    model: nn.Module
    plan: OnnxPlan
    _held: OrderedDict[Any, _Specialized]
    # What evaluation calls things, where the file was exported in that mode; None: not known yet.
    _names: dict[Place, list[str]] | None
    _warned: bool
    # Bytes of a training step under the plan: the module's, and what the plan says; None where the
    # two were not compared.
    peaks: tuple[int, int] | None
    _written: set[Attribute]  # by forward itself, a counter: no reason to export anew

    def __init__(self, model: nn.Module, plan: OnnxPlan, name: str = "the plan") -> None:
        super().__init__()
        self.__dict__["model"] = model  # no child: the names of parameters stay the module's
        share(self, model)
        self.training = model.training
        self.plan = plan
        self._name = name
        self._held = OrderedDict()
        self._names = None
        self._written = set()
        self._warned = False
        self.peaks = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives.

        Raises:
            BadInput: the call cannot be exported, the plan is not of this model, or a buffer
                changes its shape.
        """
        if not self.training or not torch.is_grad_enabled():
            return self.model(*args, **kwargs)
        flat, structure = pytree.tree_flatten((args, kwargs))
        entry = self._entry(flat, structure, args, kwargs)
        outputs, updates = entry.planned(*flat)
        with torch.no_grad():
            for name, value in zip(entry.updated, updates, strict=True):
                buffer = attribute(self.model, name)
                if buffer.shape != value.shape:
                    raise BadInput(
                        f"forward changes the shape of the buffer {name}, from "
                        f"{list(buffer.shape)} to {list(value.shape)}",
                        "call the model once without the plan, so that it has its shape",
                    )
                buffer.copy_(value)
        return pytree.tree_unflatten(list(outputs), entry.output)

    def prepare(self, *args: Any, **kwargs: Any) -> Matched:
        """Makes ready for training calls like this one; how the plan fits.

        Raises:
            BadInput: as :meth:`forward`.
        """
        flat, structure = pytree.tree_flatten((args, kwargs))
        return self._entry(flat, structure, args, kwargs).matched

    def memory(self, *args: Any, plan: bool = True, **kwargs: Any) -> StepMemory:
        """Bytes of a training step on such inputs and the sum of the outputs; nothing is computed.

        ``plan=False``: as if nothing were recomputed.

        Raises:
            BadInput: as :meth:`forward`.
        """
        flat, structure = pytree.tree_flatten((args, kwargs))
        return step_memory(self._entry(flat, structure, args, kwargs).planned, flat, plan)

    def train(self, mode: bool = True) -> AppliedModel:
        """Sets the mode of the module, by its own ``train``."""
        self.model.train(mode)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """What is printed of it beside its class."""
        marks = list(self.plan.marks.values())
        dropped = sum(mark != "kept" for mark in marks)
        return f"plan for {self.plan.original_name}, {dropped} of {len(marks)} nodes recomputed"

    def __getstate__(self) -> dict[str, Any]:
        # Copies export again when they need it: graphs may not be pickled.
        return {**self.__dict__, "_held": OrderedDict()}

    def _apply(self, fn: Any, recurse: bool = True) -> AppliedModel:
        self.model._apply(fn, recurse)
        return self

    def _entry(
        self, flat: Sequence[Any], structure: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> _Specialized:
        call = structure, tuple(map(_kind, flat))
        settings = settings_of(self.model)
        key = (*call, *self._kinds(settings))
        if key not in self._held:
            made = self._specialize(args, kwargs)  # which may find more that is written
            key = (*call, *self._kinds(settings))
            self._held[key] = made
            if len(self._held) > _MOST_HELD:
                self._held.popitem(last=False)
                self._warn()
        self._held.move_to_end(key)
        return self._held[key]

    def _warn(self) -> None:
        """Once: each export takes seconds, and calls that differ every time pay it every time."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self.model).__name__} was exported for more than {_MOST_HELD} kinds of "
                "calls: keep shapes the same, and what changes at each step in a buffer",
                stacklevel=5,
            )

    def _kinds(self, settings: Mapping[Attribute, Any]) -> tuple[Any, ...]:
        """What a graph depends on beside the inputs."""
        modes = tuple(module.training for module in self.model.modules())
        autocast = tuple(
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            for kind in DEVICES
        )
        own = frozenset((p.dtype, p.device) for p in self.model.parameters())
        shapes = tuple(buffer.shape for buffer in self.model.buffers())
        read = tuple(pair for pair in settings.items() if pair[0] not in self._written)
        return modes, own, shapes, autocast, read

    def _specialize(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Specialized:
        exported = export_model(self.model, args, kwargs)
        self._written |= exported.written
        matched = self._matched(exported, args, kwargs)
        constants = Constants(exported.constants)
        planned = planned_on(self.model, exported.graph, constants, matched.marks)
        return _Specialized(planned, exported.output, exported.updated, matched)

    def _matched(
        self, exported: ExportedModel, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Matched:
        by_name = {name: MARKS[mark] for name, mark in self.plan.marks.items()}
        legacy = is_legacy(by_name)
        if legacy:
            matched = match_by_scopes(exported, by_name)
        else:
            by_output = marks_by_output(self.plan)
            matched = match(exported, by_output)
            if matched.missing and self._names is None:
                self._names = names_in_evaluation(self.model, args, kwargs)
                other = match(exported, by_output, self._names)
                if other.part <= matched.part:
                    self._names = {}  # the file was exported in training
                else:
                    matched = other
            elif self._names:
                matched = match(exported, by_output, self._names)
        check(matched, self._name, legacy)
        return matched


def apply(
    plan: str | os.PathLike[str] | OnnxPlan,
    model: nn.Module,
    example_inputs: Sequence[Any] | Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    any_memory: bool = False,
) -> AppliedModel:
    """The user's own module, in training under the plan of an ONNX export of it.

    Args:
        plan: a planned file, or the plan itself.
        example_inputs: what the module is called with: a tensor, or all positional arguments. By
            default zeros of the shapes planned for: by name, where every input of the file is a
            parameter of ``forward``, else in the order of the file's inputs. For a plan without
            its file, the plan is fitted at the first call in training.
        any_memory: take the plan whatever the module takes under it; else a module whose step
            takes over 1% more than the plan says, at the shapes planned for, is refused. Both
            figures are in ``AppliedModel.peaks``.

    Raises:
        BadInput: the file cannot be read or carries no plan, ``torch.export`` cannot follow the
            module, fewer than 90% of its nodes are in the plan, or it takes more memory than
            the plan says.
    """
    file: OnnxFile | None = None
    name = "the plan"
    if not isinstance(plan, OnnxPlan):
        name = shown_path(os.fspath(plan))
        planned = read_planned(plan)
        assert planned.plan is not None
        file, plan = planned.file, planned.plan
    applied = AppliedModel(model, plan, name)
    if example_inputs is None and example_kwargs is None and file is not None:
        example_inputs, example_kwargs = _zeros(file, plan, model)
    if example_inputs is None and example_kwargs is None:
        return applied
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs or ())
    modes = {module: module.training for module in model.modules()}
    if not model.training:
        model.train()
    try:
        applied.prepare(*args, **dict(example_kwargs or {}))
        _compare_peaks(applied, args, dict(example_kwargs or {}), any_memory)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return applied


def _compare_peaks(
    applied: AppliedModel, args: Sequence[Any], kwargs: Mapping[str, Any], any_memory: bool
) -> None:
    """Holds the module's own peak to the plan's, where both are of the same step.

    Raises:
        BadInput: it takes over 1% more, and ``any_memory`` is false.
    """
    plan = applied.plan
    said = plan.memory.get("planned_bytes")
    given = [list(t.shape) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if said is None or plan.device != "cpu" or sorted(given) != sorted(plan.shapes.values()):
        return
    own = applied.memory(*args, **kwargs).peak
    applied.peaks = own, said
    if own <= said * _MOST_OVER:
        return
    plain = applied.memory(*args, plan=False, **kwargs).peak
    planned, taken, unplanned = distinct_sizes(said, own, plain)
    text = (
        f"the plan says {planned} for a training step, and this module takes {taken} under it "
        f"({unplanned} without): the file's operators are not the module's"
    )
    if any_memory:
        warnings.warn(text, stacklevel=3)
        return
    raise BadInput(
        text,
        "memcli.torch.plan(model, ...) plans the module itself; apply(..., any_memory=True) takes "
        "this plan all the same",
    )


def _zeros(
    file: OnnxFile, plan: OnnxPlan, model: nn.Module
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Arguments of the shapes planned for, where the model is: positional ones, and by name."""
    device = device_of(model)
    kind = next((t.dtype for t in model.parameters() if t.is_floating_point()), None)
    inputs = []
    for value in file.inputs:
        shape = plan.shapes.get(value.name)
        dtype = getattr(torch, value.dtype, None)
        if shape is None or dtype is None:
            raise BadInput(
                f"{shown_path(file.path)}: the plan says no shape of the input {value.name!r}",
                "give example_inputs",
            )
        if dtype.is_floating_point and kind is not None:
            dtype = kind
        inputs.append(torch.zeros(tuple(shape), dtype=dtype, device=device))
    names = [value.name for value in file.inputs]
    if all(name in inspect.signature(model.forward).parameters for name in names):
        return (), dict(zip(names, inputs, strict=True))
    return tuple(inputs), {}


def _kind(value: Any) -> Any:
    """What an export depends on of one input."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    return kind_of_constant(value)
