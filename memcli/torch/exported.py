"""A live module as a graph of functions, by ``torch.export``, with the names that ONNX gives.

The graph computes what the module computes, kernel for kernel: composite operators (linear,
attention) stay whole, so autocast and each device choose for them what they choose in the module.
Only in-place operators are gone. What decomposition changes is put back: BatchNorm updates its
buffers itself, Dropout is PyTorch's own, and shapes are changed whatever the strides.
"""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, Node

from memcli.errors import BadInput

aten = torch.ops.aten


@dataclass
class ExportedModel:
    """``graph`` gives out (the outputs, new values of ``updated`` buffers).

    ``names``: {function node: what the exported graph calls what it makes, and its outputs};
    ``scopes``: {function node: names of the modules that it stands in, outermost first}.
    """

    graph: Graph
    constants: dict[str, Tensor | nn.Module]
    updated: list[str]
    output: Any  # the structure of the outputs
    names: dict[str, list[str]] = field(default_factory=dict)
    scopes: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


def export_model(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ExportedModel:
    """The graph of a call in the model's present mode.

    Raises:
        BadInput: ``torch.export`` cannot follow the call, or it changes what it is given.
    """
    program = _exported(model, args, kwargs)
    return _Builder(program).build()


def names_by_source(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, list[str]]:
    """{node before decomposition: names after it} of the call in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        program = _exported(model, args, kwargs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    found: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            found.setdefault(_source(node), []).append(node.name)
    return found


def _exported(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ExportedProgram:
    detached = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, (tuple(args), dict(kwargs)))
    try:
        with warnings.catch_warnings(), _no_autocast():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, detached[0], detached[1], strict=False)
            return program.run_decompositions({})
    except Exception as error:  # whatever the user's code raises under tracing
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"torch.export cannot follow {type(model).__name__}: {type(error).__name__}: {first}",
            "plans need a forward without branches on the values of tensors",
        ) from error


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    """Casts are decided when the graph runs, as in the module."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class _Builder:
    """A copy of an exported graph, node by node, with attributes in place of lifted inputs."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.graph = Graph()
        self.of: dict[Node, Any] = {}
        self.constants: dict[str, Tensor | nn.Module] = {}
        self.result = ExportedModel(
            self.graph, self.constants, [], program.call_spec.out_spec
        )

    def build(self) -> ExportedModel:
        self._inputs()
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                self.of[node] = self._constant(getattr(self.program.graph_module, node.target))
            elif node.op == "call_function":
                self.of[node] = self._call(node)
        self._outputs()
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        alive = {node.name for node in self.graph.nodes}
        for table in (self.result.names, self.result.scopes, self.result.sources):
            for name in [name for name in table if name not in alive]:
                del table[name]
        self.graph.lint()
        return self.result

    def _inputs(self) -> None:
        held = {InputKind.PARAMETER, InputKind.BUFFER}
        placeholders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(
            placeholders, self.program.graph_signature.input_specs, strict=True
        ):
            if spec.kind in held:
                self.of[node] = self._attribute(str(spec.target))
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                self.of[node] = self._constant(self.program.constants[str(spec.target)])
            elif spec.kind is InputKind.USER_INPUT:
                self.of[node] = self.graph.placeholder(node.name)
            else:
                raise BadInput(f"the model reads a {spec.kind.name} ({spec.target}), no tensor")

    def _attribute(self, target: str) -> Node:
        node = self.graph.create_node("get_attr", target, name=target.replace(".", "_"))
        return node

    def _constant(self, value: Any) -> Node:
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = value.detach() if isinstance(value, Tensor) else value
        return self._attribute(name)

    def _call(self, node: Node) -> Any:
        function, args, kwargs, names = self._function(node)
        if function is None:
            return args
        args = torch.fx.map_arg(args, self.of.__getitem__)
        kwargs = torch.fx.map_arg(kwargs, self.of.__getitem__)
        made = self.graph.create_node("call_function", function, args, kwargs, name=node.name)
        self.result.names[made.name] = names
        self.result.scopes[made.name] = _scopes(node)
        self.result.sources[made.name] = _source(node)
        return made

    def _function(self, node: Node) -> tuple[Any, Any, Any, list[str]]:
        """What to call for a node; None and its value where it is made already."""
        target, args, kwargs = node.target, node.args, node.kwargs
        if target is operator.getitem:
            source = self.of[args[0]]  # type: ignore[index]
            if isinstance(source, dict):  # outputs of a normalization that updates itself
                return None, source[args[1]], None, []
            return target, args, kwargs, [node.name]
        items = {u.args[1]: u.name for u in node.users if u.target is operator.getitem}
        names = [node.name, *(items[i] for i in sorted(items))]
        if target is aten.view.default:
            return aten.reshape.default, args, kwargs, names
        if target is aten.native_dropout.default and set(items) <= {0}:
            function: Any = self._whole(node, aten.dropout.default, args, names)
            return None, {0: function}, None, []
        normalization = self._normalization(node, set(items), names)
        if normalization is not None:
            return None, normalization, None, []
        return target, args, kwargs, names

    def _normalization(self, node: Node, items: set[Any], names: list[str]) -> Any:
        """BatchNorm on the module's buffers; {number of the output: what it is}."""
        target, args = node.target, node.args
        if target is aten._native_batch_norm_legit_functional.default:
            x, weight, bias, mean, var, training, momentum, eps = args
            buffers = [torch.fx.map_arg(b, self.of.__getitem__) for b in (mean, var)]
            if items & {1, 2} or any(b.op != "get_attr" for b in buffers):
                return None
            called = (x, mean, var, weight, bias, training, momentum, eps)
            made = self._whole(node, F.batch_norm, called, names)
            return {0: made, 3: buffers[0], 4: buffers[1]}
        if target is aten._native_batch_norm_legit.no_stats and items <= {0}:
            x, weight, bias, training, momentum, eps = args
            called = (x, None, None, weight, bias, training, momentum, eps)
            return {0: self._whole(node, F.batch_norm, called, names)}
        if target is aten._native_batch_norm_legit_no_training.default and items <= {0}:
            x, weight, bias, mean, var, momentum, eps = args
            called = (x, mean, var, weight, bias, False, momentum, eps)
            return {0: self._whole(node, F.batch_norm, called, names)}
        return None

    def _whole(self, node: Node, function: Any, args: Any, names: list[str]) -> Node:
        args = torch.fx.map_arg(args, self.of.__getitem__)
        made = self.graph.create_node("call_function", function, args, {}, name=node.name)
        self.result.names[made.name] = names
        self.result.scopes[made.name] = _scopes(node)
        self.result.sources[made.name] = _source(node)
        return made

    def _outputs(self) -> None:
        output = next(n for n in self.program.graph.nodes if n.op == "output")
        given: list[Any] = []
        updates: list[Node] = []
        specs = self.program.graph_signature.output_specs
        for value, spec in zip(output.args[0], specs, strict=True):
            value = torch.fx.map_arg(value, self.of.__getitem__)
            if spec.kind is OutputKind.USER_OUTPUT:
                given.append(value)
            elif spec.kind is OutputKind.BUFFER_MUTATION:
                own = isinstance(value, Node) and value.op == "get_attr"
                if not (own and value.target == spec.target):
                    updates.append(value)
                    self.result.updated.append(str(spec.target))
            else:
                raise BadInput(
                    f"the model's forward has an effect beside its outputs and buffers: "
                    f"{spec.kind.name} of {spec.target}",
                    "it may not change its inputs in place",
                )
        self.graph.output((tuple(given), tuple(updates)))


def _scopes(node: Node) -> list[str]:
    """Dotted names of the modules that a node stands in, without the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(entry[0]) for entry in stack.values() if entry[0]]


def _source(node: Node) -> str:
    """The node before decomposition that a node came from."""
    history = node.meta.get("from_node")
    return history[-1].name if history else node.name
