"""The walk over an ONNX graph that builds the fx graph and folds what is known before any data."""

from __future__ import annotations

import math
import operator as python_operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.engines.torch.convert import onnx_operators
from memcli.engines.torch.convert.calls import REFUSALS, Call, Names, complaints, said
from memcli.engines.torch.convert.default_roles import CONSTANT, graphs_of, nodes_of
from memcli.engines.torch.convert.filling import Filling
from memcli.engines.torch.convert.registry import NOT_KNOWN, OPERATORS, REASONS, Host, Site
from memcli.engines.torch.convert.values import (
    Unsupported,
    Value,
    has_data,
    stored_tensor,
    tensor_of,
    torch_type,
)
from memcli.engines.torch.rules import draws
from memcli.errors import REFUSED, BadInput, MemcliError
from memcli.formats.onnx.check import LARGEST_TENSOR

# Constants larger than this are computed in each run, as the exported code did.
_LARGEST_FOLDED = 16 << 20
_SMALL = 1 << 16
# What a few numbers may become: a mask for all positions, and no more memory than there is.
_LARGEST_MADE = 256 << 20

Scope = dict[str, Value]


class Conversion:
    """One conversion: values by name, the fx graph so far, and what was found wrong."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        *,
        opset: int,
        roles: Mapping[str, str],
        seed: int,
        mode: FakeTensorMode,
        fake: bool,
        name: str,
    ) -> None:
        onnx_operators.register_all()
        self.notes: list[str] = []
        self.folded: list[str] = []
        self.filled: list[str] = []
        self.attributes: dict[str, dict[str, str]] = {"parameter": {}, "state": {}, "constant": {}}
        self._proto, self._opset, self._roles, self._name = graph, opset, roles, name
        self._mode, self._fake = mode, fake
        self._filling = Filling(graph, seed)
        self._root = torch.nn.Module()
        self._graph = torch.fx.Graph()
        self._scope: Scope = {}
        self._identifiers = Names(self._root)
        self._wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._poisoned: set[str] = set()
        self._used = {name for node in nodes_of(graph) for name in node.input if name}
        self._used |= {value.name for part in graphs_of(graph) for value in part.output}

    def add_input(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
        """A free input; what the module's argument is called."""
        argument = self._identifiers.own(name)
        node = self._graph.create_node("placeholder", argument, name=argument)
        node.meta["memcli"] = {"name": name, "values": ((shape, dtype),)}
        self._scope[name] = Value(name, fake=self._empty(shape, dtype), node=node)
        return argument

    def bind_input(self, name: str, value: torch.Tensor) -> None:
        """An input that is a constant from now on."""
        self._scope[name] = Value(name, known=value)

    def run(self) -> None:
        """Convert all nodes that the outputs need.

        Raises:
            BadInput: one message for everything that is not supported.
        """
        self._run_graph(self._proto, self._scope)
        if self._wrong:
            quantized = any(why.startswith("quantized") for _, why in self._wrong)
            raise BadInput(
                f"{self._name}: not supported: {complaints(self._wrong)}",
                "give the file from before it was quantized" if quantized else "",
            )
        outputs = []
        for output in self._proto.output:
            if output.name not in self._scope:
                raise BadInput(f"{self._name}: output {output.name!r} is made by no node")
            outputs.append(self._node_of(self._scope[output.name]))
        self._graph.output(tuple(outputs))

    def finish(self) -> torch.fx.GraphModule:
        """The module; nodes that nothing reads are dropped."""
        dropped = []
        for node in reversed(list(self._graph.nodes)):
            if node.op in ("call_function", "get_attr") and not node.users:
                if node.op == "call_function":
                    dropped.append(node.meta["memcli"]["name"])
                self._graph.erase_node(node)
        calls = [node for node in self._graph.nodes if node.op == "call_function"]
        present = {node.meta["memcli"]["name"] for node in calls}
        self.folded += [name for name in dict.fromkeys(dropped) if name not in present]
        read = {node.target for node in self._graph.nodes if node.op == "get_attr"}
        for role, names in self.attributes.items():
            self.attributes[role] = {key: value for key, value in names.items() if key in read}
        held = {name for names in self.attributes.values() for name in names.values()}
        self.filled = [name for name in self.filled if name in held]
        self._graph.lint()
        return torch.fx.GraphModule(self._root, self._graph, "ConvertedModel")

    # -- nodes ------------------------------------------------------------------------------

    def _run_graph(self, graph: onnx.GraphProto, scope: Scope) -> None:
        for tensor in graph.initializer:
            try:
                scope[tensor.name] = self._held(tensor, tensor.name)
            except Unsupported as error:
                self._poisoned.add(tensor.name)
                self._wrong["initializer", str(error)].append(tensor.name)
            except (*REFUSALS, KeyError) as error:
                self._poisoned.add(tensor.name)
                self._wrong["initializer", said(error)].append(tensor.name)
        needed = _needed(graph)
        for position, node in enumerate(graph.node):
            if position not in needed:
                self.folded.append(_label(node))
                continue
            try:
                self._run_node(node, scope)
            except Unsupported as error:
                self._refuse(node, str(error))
            except (MemcliError, MemoryError):
                raise
            except Exception as error:
                # attributes and inputs that the operator's schema allows and nothing can mean
                self._refuse(node, f"its attributes or inputs do not fit: {said(error)}")

    def _refuse(self, node: onnx.NodeProto, why: str) -> None:
        self._wrong[_operator(node), why].append(_label(node))
        self._poisoned.update(node.output)

    def _run_node(self, node: onnx.NodeProto, scope: Scope) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise Unsupported("an operator of another domain")
        if node.op_type not in OPERATORS and node.op_type != "If":
            raise Unsupported(REASONS.get(node.op_type, "not among the operators converted"))
        for name in node.input:
            if name and name not in scope and name not in self._poisoned:
                raise BadInput(
                    f"{self._name}: node {_label(node)!r} reads {name!r}, which no node before it "
                    "makes",
                    "the nodes of an ONNX graph stand in topological order",
                )
        if any(name in self._poisoned for name in node.input):
            self._poisoned.update(node.output)
            return
        inputs = [scope[name] if name else None for name in node.input]
        if node.op_type == "If":
            self._run_branch(node, inputs[0], scope)
            return
        site = Site(node, self._opset, inputs, self._used, self.notes)
        result = OPERATORS[node.op_type](site)
        if isinstance(result, Call):
            self._emit(site, result, scope)
            return
        self.folded.append(site.name)
        if isinstance(result, Host) and isinstance(result.tensor, onnx.TensorProto):
            scope[node.output[0]] = self._held(result.tensor, node.output[0])
        elif isinstance(result, Host):
            self._store(node.output[0], result.tensor, scope)
        else:
            scope[node.output[0]] = result

    def _run_branch(self, node: onnx.NodeProto, condition: Value | None, scope: Scope) -> None:
        """The branch that a known condition takes, as if it stood here."""
        if condition is None or condition.known is None:
            raise Unsupported(f"its condition {NOT_KNOWN}")
        wanted = "then_branch" if bool(condition.known.reshape(())) else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        inner = dict(scope)
        self._run_graph(branch, inner)
        self.folded.append(_label(node))
        for name, output in zip(node.output, branch.output, strict=True):
            if output.name in self._poisoned:
                self._poisoned.add(name)
            elif name:
                scope[name] = inner[output.name]

    def _emit(self, site: Site, call: Call, scope: Scope) -> None:
        """A function call: done now where all it reads is known, else a node of the fx graph."""
        values = list(_values((call.args, tuple(call.kwargs.values()))))
        names = list(site.node.output)
        if self._folds(call, values):
            with torch.no_grad():
                results = self._called(call, _known)
            self.folded.append(site.name)
            for name, item in zip(names, results if call.many else (results,), strict=False):
                if isinstance(item, (tuple, list)):
                    raise Unsupported("a sequence of constants")
                if name:
                    self._store(name, item, scope)
            return
        fake = self._fake_result(call)
        args, kwargs = call.filled(Value, self._node_of)
        node = self._graph.create_node(
            "call_function", call.function, args, kwargs, name=Names.identifier(site.name)
        )
        results = tuple(fake) if call.many else (fake,)
        described = tuple(_described(item) for item in results)
        self._mark(node, site, names[0], names, described)
        for i, (name, item) in enumerate(zip(names, results, strict=False)):
            if not name or name not in self._used or item is None:
                continue
            source = node
            if call.many:
                source = self._graph.create_node(
                    "call_function",
                    python_operator.getitem,
                    (node, i),
                    name=Names.identifier(name),
                )
                self._mark(source, site, name, [name], (described[i],))
            scope[name] = Value(name, fake=item, node=source)

    def _mark(
        self, node: torch.fx.Node, site: Site, output: str, outputs: Sequence[str], values: Any
    ) -> None:
        node.meta["memcli"] = {
            "name": site.name,
            "op": site.node.op_type,
            "output": output,
            "outputs": tuple(outputs),
            "values": values,
        }

    # -- folding ----------------------------------------------------------------------------

    def _folds(self, call: Call, values: list[Value]) -> bool:
        if draws(call.function) or any(value.known is None for value in values):
            return False
        counts = [max(1, value.tensor.numel()) for value in values]
        small = math.prod(counts) <= _SMALL
        try:
            results = self._fake_result(call)
        except Exception:  # its result's shape depends on the values
            return small
        total = 0
        for item in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(item, torch.Tensor) and not _is_view(call.function):
                total += item.numel() * item.element_size()
        return total <= (_LARGEST_MADE if small else _LARGEST_FOLDED)

    def _fake_result(self, call: Call) -> Any:
        with self._mode, torch.no_grad():
            found = self._called(call, self._fake_of)
        for item in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(item, torch.Tensor) and item.numel() > LARGEST_TENSOR:
                raise Unsupported(f"its output would have {item.numel()} elements")
        return found

    def _called(self, call: Call, form: Callable[[Value], Any]) -> Any:
        args, kwargs = call.filled(Value, form)
        try:
            return call.function(*args, **kwargs)
        except REFUSALS as error:
            raise Unsupported(f"{REFUSED}: {said(error)}") from error

    def _store(self, name: str, tensor: torch.Tensor, scope: Scope) -> None:
        """A value known now; a parameter where the roles say that training changes it."""
        role = self._roles.get(name, CONSTANT)
        if role == CONSTANT:
            scope[name] = Value(name, known=tensor)
            return
        fake = self._empty(tuple(tensor.shape), tensor.dtype)
        scope[name] = Value(name, fake=fake, role=role, stored=tensor)

    # -- what the module holds --------------------------------------------------------------

    def _held(self, tensor: onnx.TensorProto, name: str) -> Value:
        """An initializer or the like; a parameter's elements are read when they are needed."""
        dtype = torch_type(tensor.data_type)
        role = self._roles.get(name, CONSTANT)
        if role == CONSTANT and has_data(tensor):
            return Value(name, known=tensor_of(tensor))
        fake = self._empty(tuple(tensor.dims), dtype)
        return Value(name, fake=fake, role=role, stored=tensor)

    def _node_of(self, value: Value) -> torch.fx.Node:
        """The fx node that gives the value; the module's attribute is made at its first use."""
        if value.node is None:
            role = value.role or CONSTANT
            attribute = self._identifiers.own(value.name)
            tensor = self._elements(value)
            if role == "parameter":
                trains = tensor.dtype.is_floating_point or tensor.dtype.is_complex
                parameter = torch.nn.Parameter(tensor, requires_grad=trains)
                self._root.register_parameter(attribute, parameter)
            else:
                self._root.register_buffer(attribute, tensor)
            self.attributes[role][attribute] = value.name
            value.node = self._graph.create_node("get_attr", attribute, name=attribute)
            value.node.meta["memcli"] = {
                "name": value.name,
                "role": role,
                "values": ((value.shape, value.dtype),),
            }
        return value.node

    def _elements(self, value: Value) -> torch.Tensor:
        """What the module holds: the file's elements, or made up where it has none."""
        missing = isinstance(value.stored, onnx.TensorProto) and not has_data(value.stored)
        if missing:
            self.filled.append(value.name)
            if not value.dtype.is_floating_point:
                self.notes.append(f"{value.name}: the file has no elements of it; zeros are taken")
        if self._fake:
            return self._fake_of(value)
        if value.known is not None:
            # Convolutions read an expanded bias as if it were contiguous; large masks are only
            # read by elementwise functions, which know strides.
            small = value.known.numel() * value.known.element_size() <= _LARGEST_FOLDED
            return value.known.contiguous() if small else value.known
        if missing:
            return self._filling.tensor(value.name, value.shape, value.dtype)
        stored = stored_tensor(value)
        assert stored is not None
        return stored.clone(memory_format=torch.contiguous_format)

    def _fake_of(self, value: Value) -> Any:
        if value.fake is None and value.known is not None:
            value.fake = self._mode.from_tensor(value.known)
        return value.fake

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        with self._mode:
            return torch.empty(shape, dtype=dtype)


def _needed(graph: onnx.GraphProto) -> set[int]:
    """Positions of the nodes that an output depends on."""
    wanted = {value.name for value in graph.output}
    needed = set()
    for position in range(len(graph.node) - 1, -1, -1):
        node = graph.node[position]
        if not wanted.isdisjoint(node.output):
            needed.add(position)
            wanted.update(node.input)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    wanted.update(name for n in nodes_of(attribute.g) for name in n.input)
                    wanted.update(value.name for value in attribute.g.output)
    return needed


def _label(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)


def _operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _is_view(function: Any) -> bool:
    return function in (torch.broadcast_to, torch.reshape, torch.transpose, torch.permute)


def _known(value: Value) -> Any:
    return value.known


def _described(item: Any) -> Any:
    """(shape, type) of a result; a list of them for a sequence, None for what is absent."""
    if isinstance(item, torch.Tensor):
        return tuple(item.shape), item.dtype
    return [_described(part) for part in item] if isinstance(item, (tuple, list)) else None


def _values(argument: Any) -> Any:
    """All values in nested arguments."""
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _values(item)
