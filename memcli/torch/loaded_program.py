"""A planned program of ``torch.export`` as a module that trains under its plan."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memcli.engines.torch.convert.exported_graph import convert_exported, tensor_of
from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.record import untrained_parameters
from memcli.engines.torch.tracking import StepMemory
from memcli.errors import BadInput
from memcli.formats.input_shapes import bind_shapes
from memcli.formats.node_plan import MARK_NUMBERS, NodePlan
from memcli.formats.pt2.archive import Archive
from memcli.formats.pt2.file import Pt2File
from memcli.formats.pt2.graph import Ref
from memcli.formats.pt2.nesting import Nesting, parsed
from memcli.formats.pt2.training import in_mode
from memcli.marks import KEPT
from memcli.quoting import shown, shown_path
from memcli.request import ShapeRequest
from memcli.torch.parameter_binding import Constants, device_of, planned_on, step_memory
from memcli.torch.weights import copy_into

Shapes = tuple[tuple[int, ...], ...]
# Graphs for other shapes or modes that are held; the oldest goes.
_MOST_HELD = 32


@dataclass
class _Specialized:
    """The program at one set of shapes, in one mode."""

    planned: PlannedModule
    constants: Constants


class ProgramModule(nn.Module):
    """A program of ``torch.export``, in training under the plan that its file carries.

    Parameters and buffers have the names that they have in the exported module, so that
    ``state_dict`` is the module's; parameters that are one tensor in the file are one here. It is
    called as the exported module was; outputs are nested as that gave them, objects of its own
    classes as dicts of their fields. Inputs of other shapes, where the export left them open, have
    the program converted at the first call (at most 32 forms are held).

    ``eval()``: BatchNorm takes its running statistics and Dropout hands on its input.
    """

    def __init__(
        self,
        file: Pt2File,
        plan: NodePlan | None,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._held: OrderedDict[tuple[bool, Shapes], _Specialized] = OrderedDict()
        self._constants: dict[str, Tensor] = {}
        self._own(file, weights or {})
        self._file = dataclasses.replace(file, archive=Archive(file.archive.name, b"", "", {}))
        self._inputs = _Arguments(self._file)
        self._outputs = parsed(file.graph.out_spec)

    @property
    def plan(self) -> NodePlan | None:
        """The plan that it trains under."""
        return self._plan

    @property
    def input_names(self) -> tuple[str, ...]:
        """The program's inputs, tensors alone, in order."""
        return tuple(name for name, _ in self._file.graph.inputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the program gives.

        Raises:
            TypeError: arguments that are not those of the exported module.
            BadInput: the program does not allow the inputs' shapes.
        """
        tensors = self._inputs.bound(args, kwargs)
        given = iter(self._ready(tensors).planned(*tensors))
        values = [
            next(given) if isinstance(output, Ref) else output
            for output in self._file.graph.outputs
        ]
        if self._outputs is not None and self._outputs.leaves == len(values):
            return self._outputs.filled(iter(values))
        return values[0] if len(values) == 1 else tuple(values)

    def memory(self, *args: Any, plan: bool = True, **kwargs: Any) -> StepMemory:
        """Bytes of a training step on such inputs and the sum of the outputs; nothing is computed.

        ``plan=False``: as if nothing were recomputed.

        Raises:
            TypeError, BadInput: as :meth:`forward`.
        """
        tensors = self._inputs.bound(args, kwargs)
        return step_memory(self._ready(tensors).planned, tensors, plan)

    def extra_repr(self) -> str:
        """What is printed of it beside its class."""
        marks = list(self._plan.marks.values()) if self._plan is not None else []
        dropped = sum(mark != "kept" for mark in marks)
        return f"{self._file.name}, {dropped} of {len(marks)} nodes recomputed"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProgramModule:
        super()._apply(fn, recurse)
        self._constants = {name: fn(value) for name, value in self._constants.items()}
        for entry in self._held.values():
            entry.constants._apply(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Copies convert the program again when they need it.
        return {**self.__dict__, "_held": OrderedDict()}

    def _ready(self, tensors: Sequence[Tensor]) -> _Specialized:
        """The program at the shapes of the inputs, in the present mode."""
        shapes = tuple(tuple(int(size) for size in tensor.shape) for tensor in tensors)
        key = self.training, shapes
        if key not in self._held:
            self._held[key] = self._specialized(shapes)
            while len(self._held) > _MOST_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def _specialized(self, shapes: Shapes) -> _Specialized:
        asked = {n: list(s) for n, s in zip(self.input_names, shapes, strict=True)}
        bound = bind_shapes(self._file, ShapeRequest(shapes=asked))  # type: ignore[arg-type]
        file = self._file
        if not self.training:
            file = dataclasses.replace(file, graph=in_mode(file.graph, False)[0])
        found = convert_exported(file, shapes=bound.shapes, fake=True, name=file.name)
        names = {**found.parameters, **found.states, **found.constants}
        held = {h.target: h.kind for h in file.graph.held}
        constants: dict[str, Tensor | nn.Module] = {}
        graph = found.module.graph
        marks = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                target = names[node.target]
                node.target = target
                if held[target] == "constant":
                    node.target = f"_constant_{len(constants)}"
                    constants[node.target] = self._constants[target]
            elif node.op == "call_function":
                marks[node.name] = self._mark(node.meta["memcli"]["name"])
        own = Constants(constants).to(device_of(self))
        return _Specialized(planned_on(self, graph, own, marks), own)

    def _mark(self, name: str) -> int:
        if self._plan is None:
            return KEPT
        return MARK_NUMBERS[self._plan.marks.get(name, "kept")]

    def _own(self, file: Pt2File, weights: Mapping[str, Any]) -> None:
        """Takes in all tensors of the file; tied parameters as one."""
        known = {h.target for h in file.graph.held}
        odd = [name for name in weights if name not in known]
        if odd:
            raise BadInput(
                f"{file.name}: has no tensors {', '.join(map(shown, odd[:3]))}, for which weights "
                "are given"
            )
        leaves = file.leaves()
        frozen = self._plan.frozen if self._plan is not None else ()
        untrained = set(untrained_parameters(leaves, frozen))
        made: dict[str, Tensor] = {}
        for held in file.graph.held:
            leaf = leaves[held.target]
            tensor = made.get(leaf.tied_to or "")
            if tensor is None:
                tensor = tensor_of(file.archive, file.payloads[held.target])
                if leaf.role == "parameter":
                    floats = tensor.is_floating_point() or tensor.is_complex()
                    tensor = nn.Parameter(tensor, floats and held.target not in untrained)
            made[held.target] = tensor
            if held.target in weights:
                with torch.no_grad():
                    copy_into(tensor, weights[held.target], held.target)
            if held.kind == "constant":
                self._constants[held.target] = tensor
            else:
                self._register(held.target, tensor, held.persistent, file.name)

    def _register(self, target: str, tensor: Tensor, persistent: bool, name: str) -> None:
        *path, last = target.split(".")
        owner: nn.Module = self
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                child = owner._modules[part] = nn.Module()
            owner = child
        if last in owner._modules or last in owner._parameters or last in owner._buffers:
            raise BadInput(f"{name}: {shown(target)} is the name of two things")
        # not by register_parameter: a name may be one of this class's own attributes
        if isinstance(tensor, nn.Parameter):
            owner._parameters[last] = tensor
            return
        owner._buffers[last] = tensor
        if not persistent:
            owner._non_persistent_buffers_set.add(last)


class _Arguments:
    """The call of the exported module: names, nesting, and inputs that are fixed."""

    def __init__(self, file: Pt2File) -> None:
        graph = file.graph
        self.order = graph.order
        self.fixed = dict(graph.fixed)
        spec = parsed(graph.in_spec)
        whole = spec is not None and spec.leaves == len(graph.order) and len(spec.children) == 2
        flat = Nesting("tuple", tuple(Nesting() for _ in graph.order))
        positional, named = spec.children if spec is not None and whole else (flat, Nesting("dict"))
        rows = [*positional.children, *named.children]
        names = [*graph.argument_names[: len(positional.children)], *map(str, named.keys)]
        if len(names) != len(rows):
            names = (
                list(graph.order)
                if len(graph.order) == len(rows)
                else [f"argument {number}" for number in range(len(rows))]
            )
        self.rows = dict(zip(names, rows, strict=True))

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call in the program's order."""
        names = list(self.rows)
        if len(args) > len(names):
            raise TypeError(f"takes {len(names)} arguments ({', '.join(names)}); got {len(args)}")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.rows and value is not None:
                raise TypeError(f"has no argument {name!r}; its arguments: {', '.join(names)}")
            if name in given:
                raise TypeError(f"got the argument {name!r} twice")
            given[name] = value
        tensors: list[Tensor] = []
        order = iter(self.order)
        for name, nesting in self.rows.items():
            leaves = [next(order) for _ in range(nesting.leaves)]
            if name not in given:
                if not all(leaf in self.fixed for leaf in leaves):
                    raise TypeError(f"the argument {name!r} is missing")
                continue
            values = nesting.flat(given[name], f"the argument {name!r}")
            for leaf, value in zip(leaves, values, strict=True):
                if leaf in self.fixed:
                    if isinstance(value, Tensor) or value != self.fixed[leaf]:
                        raise TypeError(
                            f"the argument {name!r} was {self.fixed[leaf]!r} when the program was "
                            "exported, and is so for good"
                        )
                elif isinstance(value, Tensor):
                    tensors.append(value)
                else:
                    raise TypeError(f"the argument {name!r} is {type(value).__name__}, no tensor")
        return tensors


def load_program(
    file: Pt2File,
    *,
    weights: str | Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]] | None,
    plan: bool,
) -> ProgramModule:
    """A module that trains under the plan of a file; see :func:`memcli.torch.load`.

    Raises:
        BadInput: it carries no plan where ``plan`` asks for one, or one of another graph.
    """
    carried = file.carried_plan()
    if carried is None and plan:
        raise BadInput(
            f"{shown_path(file.path)}: carries no plan of memcli",
            "make one: memcli plan MODEL.pt2 -o planned.pt2",
        )
    if carried is not None:
        carried = file.plan()
    given = weights if isinstance(weights, Mapping) else None
    module = ProgramModule(file, carried if plan else None, given)
    if shapes:
        bind_shapes(file, ShapeRequest(shapes={n: list(s) for n, s in shapes.items()}))  # type: ignore[arg-type]
    return module
