"""A live module as a graph of functions, by ``torch.export``, with the names that ONNX gives.

The graph computes what the module computes, kernel for kernel: composite operators (linear,
attention) stay whole, so autocast and each device choose for them what they choose in the module.
Only in-place operators are gone. What decomposition changes is put back: BatchNorm updates its
buffers itself, Dropout is PyTorch's own, and shapes are changed whatever the strides.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from memcli.engines.torch.aten_rules import draws, leaves_states
from memcli.errors import BadInput
from memcli.torch.export_guards import Attribute, nothing_lost
from memcli.torch.regions import DEVICES, regions, within, without_autocast

aten = torch.ops.aten

# The innermost module, the operator, and the how manieth of it there.
Place = tuple[str, str, int]


@dataclass
class ExportedModel:
    """``graph`` gives out (the outputs, new values of ``updated`` buffers).

    ``names``: {function node: what the exported graph calls what it makes, and its outputs; none
    for a cast that autocast put in};
    ``scopes``: {function node: names of the modules that it stands in, outermost first};
    ``places``: {function node: where in the model's code it is, whatever the mode};
    ``written``: plain attributes of modules that the call assigns to.
    """

    graph: Graph
    constants: dict[str, Tensor | nn.Module]
    updated: list[str]
    output: Any  # the structure of the outputs
    names: dict[str, list[str]] = field(default_factory=dict)
    scopes: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    written: set[Attribute] = field(default_factory=set)


def export_model(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ExportedModel:
    """The graph of a call in the model's present mode.

    Raises:
        BadInput: ``torch.export`` cannot follow the call, or would lose something of it, or the
            call changes what it is given.
    """
    with without_autocast():
        followed = _exported(model, args, kwargs)
    nodes = followed.program.graph.nodes
    casts = any(node.target is aten._assert_tensor_metadata.default for node in nodes)
    if not casts or not any(map(torch.is_autocast_enabled, DEVICES)):
        return _Builder(followed, False).build()
    # The model's own casts depend on what autocast made: both are followed together.
    plain = {place: _names(node) for node, place in _places(followed.program).items()}
    result = _Builder(_exported(model, args, kwargs), True).build()
    result.names = {name: plain.get(result.places[name], []) for name in result.names}
    return result


def names_in_evaluation(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[Place, list[str]]:
    """{place: names of what it makes} in the graph of the call in evaluation mode.

    Raises:
        BadInput: as :func:`export_model`.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        program = _exported(model, args, kwargs).program
    finally:
        for module, mode in modes.items():
            module.training = mode
    places = _places(program)
    return {place: _names(node) for node, place in places.items()}


class _Followed(NamedTuple):
    """What ``torch.export`` made of a call."""

    program: ExportedProgram  # decomposed
    regions: dict[str, tuple[bool, bool]]  # by node before decomposition
    handed_on: frozenset[str]  # nodes before decomposition that give what they are given
    written: set[Attribute]


def _exported(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Followed:
    detached = pytree.tree_map_only(Tensor, Tensor.detach, (tuple(args), dict(kwargs)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with nothing_lost(model) as written:
                program = torch.export.export(model, detached[0], detached[1], strict=False)
            found = regions(program.graph)
            handed_on = frozenset(map(str, filter(_hands_on, program.graph.nodes)))
            return _Followed(program.run_decompositions({}), found, handed_on, written)
    except BadInput:
        raise
    except Exception as error:  # whatever the user's code raises under tracing
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"torch.export cannot follow {type(model).__name__}: {type(error).__name__}: {first}",
            "plans need a forward without branches on the values of tensors",
        ) from error


class _Builder:
    """A copy of an exported graph, node by node, with attributes in place of lifted inputs."""

    def __init__(self, followed: _Followed, spelled: bool) -> None:
        self.program = program = followed.program
        self.regions = followed.regions
        self.handed_on = followed.handed_on
        self.spelled = spelled  # all casts are in the graph
        self.places = _places(program)
        self.graph = Graph()
        self.casts: dict[Any, Node] = {}
        self.of: dict[Node, Any] = {}
        self.constants: dict[str, Tensor | nn.Module] = {}
        self.result = ExportedModel(
            self.graph, self.constants, [], program.call_spec.out_spec, written=followed.written
        )

    def build(self) -> ExportedModel:
        self._inputs()
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                self.of[node] = self._constant(getattr(self.program.graph_module, node.target))
            elif node.op == "call_function":
                self.of[node] = self._call(node)
        self._outputs()
        self.graph.eliminate_dead_code(_has_effect)
        alive = {node.name for node in self.graph.nodes}
        for table in (self.result.names, self.result.scopes, self.result.places):
            for name in [name for name in table if name not in alive]:
                del table[name]
        self.graph.lint()
        return self.result

    def _inputs(self) -> None:
        held = {InputKind.PARAMETER, InputKind.BUFFER}
        placeholders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            if spec.kind in held:
                self.of[node] = self._attribute(str(spec.target))
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                self.of[node] = self._constant(self.program.constants[str(spec.target)])
            elif spec.kind is InputKind.USER_INPUT:
                self.of[node] = self.graph.placeholder(node.name)
            else:
                raise BadInput(f"the model reads a {spec.kind.name} ({spec.target}), no tensor")

    def _attribute(self, target: str) -> Node:
        return self.graph.create_node("get_attr", target, name=target.replace(".", "_"))

    def _constant(self, value: Any) -> Node:
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = value.detach() if isinstance(value, Tensor) else value
        return self._attribute(name)

    def _call(self, node: Node) -> Any:
        """The new node; {number of the output: what it is} for one that had several outputs."""
        target, args = node.target, node.args
        if target is operator.getitem:
            source = self.of[args[0]]  # type: ignore[index]
            if isinstance(source, dict):
                return source[args[1]]
        items = {u.args[1] for u in node.users if u.target is operator.getitem}
        if target is aten.clone.default and _source(node) in self.handed_on:
            return self.of[args[0]]  # type: ignore[index]
        if target is aten.view.default:
            return self._make(node, aten.reshape.default, args)
        if target is aten.copy.default:
            return self._make(node, _copied, args)
        if target is aten.native_dropout.default and items <= {0}:
            return {0: self._make(node, aten.dropout.default, args)}
        if self.spelled and target is aten._to_copy.default:
            return self._cast(node)
        normalized = self._normalization(node, items)
        return self._make(node, target, args) if normalized is None else normalized

    def _cast(self, node: Node) -> Node:
        """A cast; that of a parameter once for all uses, as autocast caches it."""
        source = self.of[node.args[0]]  # type: ignore[index]
        if source.op != "get_attr":
            return self._make(node, node.target, node.args)
        key = source, tuple(sorted(node.kwargs.items(), key=str))
        if key not in self.casts:
            self.casts[key] = self._make(node, node.target, node.args)
        return self.casts[key]

    def _normalization(self, node: Node, items: set[Any]) -> dict[int, Any] | None:
        """BatchNorm on the module's own buffers, where the node is one."""
        target, args = node.target, node.args
        if target is aten._native_batch_norm_legit_functional.default:
            x, weight, bias, mean, var, *rest = args
            buffers: Any = [torch.fx.map_arg(b, self.of.__getitem__) for b in (mean, var)]
            if items & {1, 2} or any(b.op != "get_attr" for b in buffers):
                return None
            made = self._make(node, F.batch_norm, (x, mean, var, weight, bias, *rest))
            return {0: made, 3: buffers[0], 4: buffers[1]}
        if target is aten._native_batch_norm_legit.no_stats and items <= {0}:
            x, weight, bias, *rest = args
            return {0: self._make(node, F.batch_norm, (x, None, None, weight, bias, *rest))}
        if target is aten._native_batch_norm_legit_no_training.default and items <= {0}:
            x, weight, bias, mean, var, *rest = args
            called = (x, mean, var, weight, bias, False, *rest)
            return {0: self._make(node, F.batch_norm, called)}
        return None

    def _make(self, node: Node, function: Any, args: Any) -> Node:
        args = torch.fx.map_arg(args, self.of.__getitem__)
        kwargs = torch.fx.map_arg(node.kwargs, self.of.__getitem__)
        if function is not operator.getitem:
            gradients, casts = self.regions.get(_source(node), (True, True))
            function = within(function, gradients, casts and not self.spelled)
        made = self.graph.create_node("call_function", function, args, kwargs, name=node.name)
        if node.target is not operator.getitem:
            self.result.names[made.name] = _names(node)
            self.result.scopes[made.name] = _scopes(node)
            self.result.places[made.name] = self.places[node]
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


def _copied(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``aten.copy``, which has no gradient of its own: a tensor put into a part of another."""
    return source.to(into).expand(into.shape)


def _has_effect(node: Node) -> bool:
    """Whether a node must run though nothing reads it: it draws, or updates buffers."""
    if node.op == "call_function":
        return draws(node.target) or leaves_states(node.target)
    return node.op in ("placeholder", "output")


def _hands_on(node: Node) -> bool:
    """Whether a node is a Dropout of nothing: eager hands its input on, decomposition copies it."""
    return node.target is aten.dropout.default and node.args[1:2] in ((0,), (0.0,))


def _scopes(node: Node) -> list[str]:
    """Dotted names of the modules that a node stands in, without the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(entry[0]) for entry in stack.values() if entry[0]]


def _source(node: Node) -> str:
    """The node before decomposition that a node came from."""
    history = node.meta.get("from_node")
    return history[-1].name if history else node.name


def _names(node: Node) -> list[str]:
    """Its name, and those of its outputs where it has several."""
    items = {u.args[1]: u.name for u in node.users if u.target is operator.getitem}
    return [node.name, *(items[i] for i in sorted(items, key=str))]


def _places(program: ExportedProgram) -> dict[Node, Place]:
    """Where each function node is in the model's code."""
    counts: dict[tuple[str, str], int] = {}
    places = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            scopes = _scopes(node)
            schema = getattr(node.target, "_schema", None)
            name = schema.name.partition("::")[2] if schema is not None else str(node.target)
            for word in ("batch_norm", "dropout"):  # the operator is another one in each mode
                if word in name:
                    name = word
            key = scopes[-1].partition("@")[0] if scopes else "", name
            places[node] = (*key, counts.get(key, 0))
            counts[key] = counts.get(key, 0) + 1
    return places
