"""A planned ONNX file as a module that trains under its plan."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Graph

from memcli.engines.torch.convert import Converted, convert
from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.record import untrained_parameters
from memcli.engines.torch.tracking import StepMemory
from memcli.errors import BadInput
from memcli.formats.detect import read_source
from memcli.formats.onnx.record import OnnxPlan
from memcli.formats.onnx.roles import tensor_roles
from memcli.formats.pt2.file import parse_pt2
from memcli.quoting import shown, shown_path
from memcli.torch.evaluation import evaluation_graph
from memcli.torch.loaded_program import ProgramModule, load_program
from memcli.torch.parameter_binding import Constants, device_of, planned_on, step_memory
from memcli.torch.plans import PlannedFile, read_planned
from memcli.torch.weights import copy_into, filled_values

Weights = Literal["file", "random"] | Mapping[str, Any]
Shapes = tuple[tuple[int, ...], ...]

# Graphs for other shapes of the inputs that are held; the oldest goes.
_MOST_SHAPES = 32


@dataclass
class _Specialized:
    """The graph for one set of input shapes, and its planned forms by training mode."""

    graph: Graph
    constants: Constants
    marks: dict[str, int]
    planned: dict[bool, PlannedModule] = field(default_factory=dict)


class OnnxModule(nn.Module):
    """A network read from an ONNX file, in training under the plan that the file carries.

    Parameters and BatchNorm's running statistics have the ONNX tensors' names, with what Python
    does not allow in them replaced by ``_``; ``onnx_names`` gives {name here: name in the file}.
    Tensors that are tied in the file are one parameter. The file's other tensors are constants
    and not in the ``state_dict``.

    Inputs come in the file's order, or by name. One output is returned as a tensor, several as a
    tuple in the file's order. Inputs of other shapes than those planned for have the file
    converted for them at the first call (at most 32 sets of shapes are held); the plan holds node
    by node, whatever the shapes.

    Parameters that the plan has frozen come without ``requires_grad``.

    ``eval()``: BatchNorm takes its running statistics and Dropout hands on its input. Without
    gradients nothing is recomputed.
    """

    _source: PlannedFile
    _seed: int
    _random: bool
    _roles: dict[str, str]
    _specialized: OrderedDict[Shapes, _Specialized]

    def __init__(
        self,
        planned: PlannedFile,
        shapes: Mapping[str, Sequence[int]],
        weights: Weights = "file",
        seed: int = 0,
    ) -> None:
        super().__init__()
        leaves = tensor_roles(planned.file)
        self._source = planned
        self._seed = seed
        self._random = isinstance(weights, str) and weights == "random"
        self._roles = {name: leaf.role for name, leaf in leaves.items()}
        self._specialized = OrderedDict()
        self.onnx_names: dict[str, str] = {}
        self._attributes: dict[str, str] = {}  # by name in the file
        converted = self._convert(shapes)
        self.input_names = tuple(value.name for value in converted.inputs)
        self.output_names = converted.outputs
        self._arguments = {value.name: i for i, value in enumerate(converted.inputs)}
        self._arguments |= {value.argument: i for i, value in enumerate(converted.inputs)}
        self._fill(converted, weights)
        self._own(converted, {n: leaf.tied_to for n, leaf in leaves.items() if leaf.tied_to})
        if planned.plan is not None:
            for name in untrained_parameters(leaves, planned.plan.frozen):
                if name in self._attributes:
                    self.get_parameter(self._attributes[name]).requires_grad_(False)
        self._hold(converted)

    @property
    def plan(self) -> OnnxPlan | None:
        """The plan that it trains under."""
        return self._source.plan

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's outputs.

        Raises:
            TypeError: an input is missing, given twice, unknown, or no tensor.
            BadInput: the file does not allow the inputs' shapes.
        """
        tensors = self._bound(inputs, named)
        outputs = self._planned(_shapes_of(tensors))(*tensors)
        return outputs[0] if len(outputs) == 1 else outputs

    def memory(self, *inputs: Any, plan: bool = True) -> StepMemory:
        """Bytes of a training step on such inputs and the sum of the outputs; nothing is computed.

        ``plan=False``: as if nothing were recomputed.

        Raises:
            TypeError, BadInput: as :meth:`forward`.
        """
        tensors = self._bound(inputs, {})
        return step_memory(self._planned(_shapes_of(tensors)), tensors, plan)

    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The input shapes that the module is ready for, those used last at the end."""
        return [dict(zip(self.input_names, s, strict=True)) for s in self._specialized]

    def extra_repr(self) -> str:
        """What is printed of it beside its class."""
        marks = list(self.plan.marks.values()) if self.plan is not None else []
        dropped = sum(mark != "kept" for mark in marks)
        return f"{self._source.file.name}, {dropped} of {len(marks)} nodes recomputed"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxModule:
        super()._apply(fn, recurse)
        for entry in self._specialized.values():
            entry.constants._apply(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Copies convert the file again when they need it: graphs hold functions, which may not
        # be pickled, and copies of the parameters' tables.
        return {**self.__dict__, "_specialized": OrderedDict()}

    def _bound(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[Tensor]:
        """The inputs in order."""
        names = self.input_names
        if len(inputs) > len(names):
            raise TypeError(f"takes {len(names)} inputs ({', '.join(names)}); got {len(inputs)}")
        values: list[Any] = [*inputs, *[None] * (len(names) - len(inputs))]
        for name, value in named.items():
            position = self._arguments.get(name)
            if position is None:
                raise TypeError(f"has no input {name!r}; its inputs: {', '.join(names)}")
            if values[position] is not None:
                raise TypeError(f"got the input {name!r} twice")
            values[position] = value
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, Tensor):
                what = "is missing" if value is None else f"is {type(value).__name__}, no tensor"
                raise TypeError(f"the input {name!r} {what}")
        return values

    def _planned(self, shapes: Shapes) -> PlannedModule:
        """The graph for the shapes, in the present mode."""
        held = self._specialized
        if shapes not in held:
            named = dict(zip(self.input_names, shapes, strict=True))
            try:
                self._hold(self._convert(named))
            except BadInput as error:
                if self._source.plan is None or named == self._source.plan.shapes:
                    raise
                raise BadInput(
                    error.message,
                    error.hint
                    or "the file may hold for the shapes alone that it was exported "
                    "with: export it with dynamic_shapes (dynamic_axes)",
                ) from error
        held.move_to_end(shapes)
        entry = held[shapes]
        if self.training not in entry.planned:
            graph = entry.graph if self.training else evaluation_graph(entry.graph)
            entry.planned[self.training] = planned_on(self, graph, entry.constants, entry.marks)
        return entry.planned[self.training]

    def _convert(self, shapes: Mapping[str, Sequence[int]]) -> Converted:
        file = self._source.file
        file.check_operators()
        return convert(
            file.working,
            shapes=shapes,
            roles=self._roles,
            seed=self._seed,
            fake=False,
            name=file.name,
        )

    def _fill(self, converted: Converted, weights: Weights) -> None:
        """Elements that are beside the file, or given, in the place of made-up ones."""
        held = {**converted.parameters, **converted.states, **converted.constants}
        tensors = {name: getattr(converted.module, key) for key, name in held.items()}
        given = weights if isinstance(weights, Mapping) else {}
        odd = [name for name in given if name not in tensors and name not in held]
        if odd:
            raise BadInput(
                f"{self._source.file.name}: has no tensors {', '.join(map(shown, odd[:3]))}, for "
                "which weights are given"
            )
        given = {held.get(name, name): value for name, value in given.items()}
        wanted = set(converted.filled) - set(given)
        values = filled_values(self._source.file, wanted, required=not self._random)
        with torch.no_grad():
            for name, value in {**values, **given}.items():
                copy_into(tensors[name], value, name)

    def _own(self, converted: Converted, tied: Mapping[str, str]) -> None:
        """The parameters and states become this module's; tied ones are one."""
        module = converted.module
        for attributes, is_state in ((converted.parameters, False), (converted.states, True)):
            for attribute, name in attributes.items():
                unique = attribute
                while hasattr(self, unique):
                    unique += "_"
                tensor = getattr(module, attribute)
                first = self._attributes.get(tied.get(name) or "")
                if first is not None:
                    tensor = getattr(self, first)
                if is_state:
                    self.register_buffer(unique, tensor)
                else:
                    self.register_parameter(unique, tensor)
                self._attributes[name] = unique
                self.onnx_names[unique] = name

    def _hold(self, converted: Converted) -> None:
        """Takes in a converted graph, with this module's parameters in the place of its own."""
        constants: dict[str, Tensor | nn.Module] = {}
        renamed: dict[str, str] = {}
        types: dict[torch.dtype, torch.dtype] = {}  # what Module.half and the like made of a type
        for attribute, name in {**converted.parameters, **converted.states}.items():
            own = self._attributes.get(name)
            shape = getattr(converted.module, attribute).shape
            if own is None or getattr(self, own).shape != shape:
                raise BadInput(
                    f"{self._source.file.name}: for these input shapes {shown(name)} is of shape "
                    f"{tuple(shape)}, which is not what the module holds"
                )
            renamed[attribute] = own
            types[getattr(converted.module, attribute).dtype] = getattr(self, own).dtype
        for attribute in converted.constants:
            renamed[attribute] = key = f"_constant_{len(constants)}"
            constant = getattr(converted.module, attribute)
            if constant.is_floating_point():
                constant = constant.to(types.get(constant.dtype, constant.dtype))
            constants[key] = constant
        graph = converted.module.graph
        marks = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                node.target = renamed[node.target]
            elif node.op == "call_function":
                described = node.meta["memcli"]
                marks[node.name] = self._source.mark(described["name"], described["output"])
        shapes = tuple(value.shape for value in converted.inputs)
        self._specialized[shapes] = _Specialized(
            graph, Constants(constants).to(device_of(self)), marks
        )
        while len(self._specialized) > _MOST_SHAPES:
            self._specialized.popitem(last=False)


def load(
    path: str | os.PathLike[str],
    *,
    weights: Weights = "file",
    shapes: Mapping[str, Sequence[int]] | None = None,
    device: torch.device | str | None = None,
    plan: bool = True,
    seed: int = 0,
) -> OnnxModule | ProgramModule:
    """A module that trains under the plan that a file carries: ONNX, Caffe, or ``.pt2``.

    Args:
        weights: "file": what the file and the data files beside it hold; "random": the same, and
            made-up values where they hold none, the same for the same ``seed``; or a table
            {name in the file or in the ``state_dict``: tensor}, which goes before the file.
        shapes: {input: shape} to convert for first, in place of those planned for.
        device: where parameters and states go.
        plan: False trains without recomputation, to compare with; the file then need not carry
            a plan.

    Raises:
        BadInput: the file cannot be read or trained, carries no plan or one of another graph, or
            weights are missing.
    """
    if isinstance(weights, str) and weights not in ("file", "random"):
        raise BadInput(f"weights={weights!r}", "it is 'file', 'random' or a table of tensors")
    source = read_source(path)
    if source.format == "pt2":
        file = parse_pt2(source.data, source.path, source.sha256)
        program = load_program(file, weights=weights, shapes=shapes, plan=plan)
        return program.to(device) if device is not None else program
    planned = read_planned(source, required=plan)
    known = {value.name for value in planned.file.inputs}
    odd = sorted(set(shapes or {}) - known)
    if odd:
        raise BadInput(
            f"{shown_path(os.fspath(path))}: has no input {shown(odd[0])}",
            f"its inputs: {', '.join(sorted(known))}",
        )
    of_plan = planned.plan.shapes if planned.plan is not None else {}
    bound = {name: tuple(shape) for name, shape in of_plan.items() if name in known}
    bound |= {name: tuple(shape) for name, shape in (shapes or {}).items()}
    if not plan:
        planned = PlannedFile(planned.file, None)
    for loss in planned.file.losses():
        if loss.kind in ("parameters-merged", "parameters-folded"):
            warnings.warn(f"{shown_path(source.path)}: {loss.text}", stacklevel=2)
    module = OnnxModule(planned, bound, weights, seed)
    return module.to(device) if device is not None else module


def _shapes_of(tensors: Sequence[Tensor]) -> Shapes:
    return tuple(tuple(int(size) for size in tensor.shape) for tensor in tensors)
