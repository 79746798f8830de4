"""Checks a parsed ONNX graph: sorted, every tensor made once and made before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache

from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, defs

from memcli.errors import BadInput
from memcli.formats.symbol.values import LARGEST_TENSOR
from memcli.quoting import shown

# Operators with subgraphs nest; exporters stay within three or four levels.
_DEEPEST_SUBGRAPH = 20
# Nodes of a graph that is planned. PyTorch records a step of 50,000 in minutes.
LARGEST_GRAPH = 50_000


def check_graph(graph: GraphProto, opsets: Mapping[str, int], name: str) -> None:
    """Checks the whole graph, subgraphs included; ``name`` begins each message.

    ``opsets``: version of each domain that the file imports, ``""`` for ONNX's own. Operators
    that ONNX does not define are let through.

    Raises:
        BadInput: an empty graph, a tensor that is made twice or nowhere or after its use, a
            cycle, an operator of a domain that the file does not import or without inputs that it
            must have, a sparse initializer.
    """
    if not graph.node:
        raise BadInput(f"{name}: the graph has no nodes", "is it the whole model?")
    if not graph.output:
        raise BadInput(f"{name}: the graph has no outputs", "there is nothing to train")
    if len(graph.node) > LARGEST_GRAPH:
        raise BadInput(
            f"{name}: has {len(graph.node)} nodes; memcli plans ONNX graphs of up to "
            f"{LARGEST_GRAPH}",
            "export a part of the model, or fewer steps of it",
        )
    _check(graph, frozenset(), opsets, name, 0)


def check_texts(message: Message, name: str) -> None:
    """Checks that every string of a message, and of those within it, is UTF-8.

    Protobuf gives those that are not as ``bytes``, where any other code expects ``str``.

    Raises:
        BadInput: one is not.
    """
    for field, value in message.ListFields():
        several = not isinstance(value, (str, bytes, Message))
        if field.type == field.TYPE_STRING:
            for text in value if several else (value,):
                if isinstance(text, bytes):
                    raise BadInput(
                        f"{name}: {field.full_name} {shown(ascii(text))} is not UTF-8: the file "
                        "is damaged",
                        "copy or download it again",
                    )
        elif field.type == field.TYPE_MESSAGE:
            for inner in value if several else (value,):
                check_texts(inner, name)


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among a node's attributes, in the file's order."""
    found: list[GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def node_place(position: int, node: NodeProto) -> str:
    """How messages name a node: position, operator and the name it has in the file."""
    named = f" {shown(node.name)}" if node.name else ""
    return f"nodes[{position}] ({node.op_type or 'no operator'}{named})"


def _check(
    graph: GraphProto, outer: frozenset[str], opsets: Mapping[str, int], name: str, depth: int
) -> None:
    if depth > _DEEPEST_SUBGRAPH:
        raise BadInput(f"{name}: subgraphs are nested {depth} deep")
    if graph.sparse_initializer:
        where = shown(graph.sparse_initializer[0].values.name)
        raise BadInput(
            f"{name}: has sparse initializers ({where}), which memcli does not read",
            "write them as dense tensors",
        )
    known: dict[str, str] = {}
    for tensor in graph.initializer:
        if not tensor.name:
            raise BadInput(f"{name}: has an initializer without a name")
        if tensor.name in known:
            raise BadInput(f"{name}: has two initializers named {shown(tensor.name)}")
        if impossible(tensor.dims):
            raise BadInput(
                f"{name}: initializer {shown(tensor.name)} has the shape {shown(list(tensor.dims))}"
            )
        known[tensor.name] = "an initializer"
    inputs: set[str] = set()
    for value in graph.input:
        if not value.name or value.name in inputs:
            what = f"two inputs named {shown(value.name)}" if value.name else "an unnamed input"
            raise BadInput(f"{name}: has {what}")
        inputs.add(value.name)
        known.setdefault(value.name, "an input")
    makers: dict[str, int] = {}
    for position, node in enumerate(graph.node):
        place = f"{name}: {node_place(position, node)}"
        if not node.op_type:
            raise BadInput(f"{place}: names no operator")
        if domain_of(node) not in opsets:
            raise BadInput(
                f"{place}: is of domain {shown(node.domain)}, which the file does not import",
                "its opset_import should list each domain with a version",
            )
        _check_inputs(node, opsets[domain_of(node)], place)
        _check_attributes(node, opsets[domain_of(node)], place)
        for output in node.output:
            if not output:
                continue
            if output in makers or output in known:
                first = (
                    node_place(makers[output], graph.node[makers[output]])
                    if output in makers
                    else known[output]
                )
                raise BadInput(f"{place}: makes {shown(output)}, which {first} makes or is already")
            makers[output] = position
    for position, node in enumerate(graph.node):
        for used in node.input:
            if not used or used in known or used in outer or makers.get(used, position) < position:
                continue
            raise _unmade(graph, position, used, makers, name)
        inner = subgraphs(node)
        if inner:
            visible = outer | known.keys() | {o for o, at in makers.items() if at < position}
            at = f"{name}: {node_place(position, node)}"
            for subgraph in inner:
                _check(subgraph, visible, opsets, at, depth + 1)
    for value in graph.output:
        if value.name not in makers and value.name not in known and value.name not in outer:
            raise BadInput(f"{name}: output {shown(value.name)} is made by no node")


def domain_of(node: NodeProto) -> str:
    """The node's domain, with ONNX's own in its short spelling."""
    return "" if node.domain == "ai.onnx" else node.domain


def _check_inputs(node: NodeProto, version: int, place: str) -> None:
    """Checks that a node has the inputs that its operator must have, and no more than it may."""
    known = _inputs_of(node.op_type, version, domain_of(node))
    if known is None:
        return
    needed, most = known
    given = len(node.input)
    while given and not node.input[given - 1]:
        given -= 1
    if given > most:
        raise BadInput(f"{place}: has {given} inputs, but the operator takes {most} at most")
    for position, what in needed:
        if position >= given or not node.input[position]:
            raise BadInput(f"{place}: lacks its input {position} ({what})")


def _check_attributes(node: NodeProto, version: int, place: str) -> None:
    """Checks that a node has the attributes that its operator must have, each of its type, and as
    many outputs as it may. Attributes that the operator does not have are passed over: exporters
    leave some behind."""
    known = _attributes_of(node.op_type, version, domain_of(node))
    if known is None:
        return
    types, required, outputs = known
    if not outputs[0] <= len(node.output) <= outputs[1]:
        raise BadInput(
            f"{place}: has {len(node.output)} outputs, but the operator has "
            f"{outputs[0] if outputs[0] == outputs[1] else f'{outputs[0]} to {outputs[1]}'}"
        )
    given: set[str] = set()
    for attribute in node.attribute:
        if attribute.name in given:
            raise BadInput(f"{place}: has two attributes named {shown(attribute.name)}")
        given.add(attribute.name)
        wanted = types.get(attribute.name)
        if wanted is not None and attribute.type != wanted:
            raise BadInput(
                f"{place}: its attribute {shown(attribute.name)} is "
                f"{_TYPE_WORDS.get(attribute.type, 'of no type')}, not "
                f"{_TYPE_WORDS.get(wanted, 'that')}"
            )
        if attribute.type == AttributeProto.TENSOR:
            _check_tensor(attribute.t, f"{place}: its attribute {shown(attribute.name)}")
    for name in required:
        if name not in given:
            raise BadInput(f"{place}: lacks its attribute {shown(name)}")


def impossible(dims: Iterable[int]) -> bool:
    """Whether no tensor has this shape; sizes of 0 do not excuse the others."""
    sizes = list(dims)
    return any(size < 0 for size in sizes) or (
        math.prod(max(1, size) for size in sizes) > LARGEST_TENSOR
    )


def _check_tensor(tensor: TensorProto, place: str) -> None:
    if impossible(tensor.dims):
        raise BadInput(f"{place} has the shape {shown(list(tensor.dims))}")


_TYPE_WORDS: Mapping[int, str] = {
    AttributeProto.FLOAT: "a float",
    AttributeProto.INT: "an integer",
    AttributeProto.STRING: "a string",
    AttributeProto.TENSOR: "a tensor",
    AttributeProto.GRAPH: "a graph",
    AttributeProto.SPARSE_TENSOR: "a sparse tensor",
    AttributeProto.TYPE_PROTO: "a type",
    AttributeProto.FLOATS: "a list of floats",
    AttributeProto.INTS: "a list of integers",
    AttributeProto.STRINGS: "a list of strings",
    AttributeProto.TENSORS: "a list of tensors",
    AttributeProto.GRAPHS: "a list of graphs",
    AttributeProto.SPARSE_TENSORS: "a list of sparse tensors",
    AttributeProto.TYPE_PROTOS: "a list of types",
}


@cache
def _attributes_of(
    operator: str, version: int, domain: str
) -> tuple[dict[str, int], list[str], tuple[int, int]] | None:
    """({attribute: AttributeProto's number of its type}, those that must be there, the least and
    the most outputs); None: unknown."""
    schema = _schema(operator, version, domain)
    if schema is None:
        return None
    # onnx's stubs know no values of its enumerations
    types = {n: int(a.type.value) for n, a in schema.attributes.items()}  # type: ignore[attr-defined]
    required = [name for name, a in schema.attributes.items() if a.required]
    return types, required, (schema.min_output, schema.max_output)


@cache
def _schema(operator: str, version: int, domain: str) -> defs.OpSchema | None:
    try:
        return defs.get_schema(operator, version, domain)
    except defs.SchemaError:
        return None


@cache
def _inputs_of(
    operator: str, version: int, domain: str
) -> tuple[list[tuple[int, str]], int] | None:
    """((position, name) of inputs that must be there, the most there may be); None: unknown."""
    schema = _schema(operator, version, domain)
    if schema is None:
        return None
    single = defs.OpSchema.FormalParameterOption.Single
    needed = [(i, p.name) for i, p in enumerate(schema.inputs) if p.option == single]
    return needed, schema.max_input


def _unmade(
    graph: GraphProto, position: int, used: str, makers: Mapping[str, int], name: str
) -> BadInput:
    """Why a tensor is not there when a node uses it."""
    place = f"{name}: {node_place(position, graph.node[position])}"
    if used not in makers:
        return BadInput(
            f"{place}: reads {shown(used)}, which is no input, no initializer and made by no node",
            "is the file a part of a model?",
        )
    if _reaches(graph, makers, position, makers[used]):
        return BadInput(
            f"{place}: depends on itself through {shown(used)}: the graph has a cycle",
            "no engine can run it",
        )
    return BadInput(
        f"{place}: reads {shown(used)} before {node_place(makers[used], graph.node[makers[used]])}"
        " makes it",
        "ONNX wants nodes in topological order: sort them, as onnxslim or onnxoptimizer do",
    )


def _reaches(graph: GraphProto, makers: Mapping[str, int], target: int, start: int) -> bool:
    """Whether node ``start`` needs node ``target``, directly or not."""
    seen, stack = {start}, [start]
    while stack:
        position = stack.pop()
        if position == target:
            return True
        for used in graph.node[position].input:
            needed = makers.get(used)
            if needed is not None and needed not in seen:
                seen.add(needed)
                stack.append(needed)
    return False
