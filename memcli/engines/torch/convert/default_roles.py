"""What a tensor of the file is to training, where the caller does not say."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

PARAMETER, STATE, CONSTANT = "parameter", "state", "constant"

_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
# Inputs that are weights even where a Constant or ConstantOfShape node makes them.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs right after the node that holds them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def default_roles(graph: onnx.GraphProto) -> dict[str, str]:
    """{tensor name: role}: initializers, and the Constant nodes that make weights.

    BatchNorm's running statistics are states; floating-point initializers of at least one
    dimension are parameters, and so are floating-point Constant and ConstantOfShape nodes that a
    layer reads as its weights. What is not named is constant.
    """
    roles: dict[str, str] = {}
    made: set[str] = set()
    aliases: dict[str, str] = {}
    for part in graphs_of(graph):
        for tensor in part.initializer:
            is_float = tensor.data_type in _FLOATS and len(tensor.dims) > 0
            roles[tensor.name] = PARAMETER if is_float else CONSTANT
    for node in nodes_of(graph):
        if node.op_type in ("Constant", "ConstantOfShape") and _makes_floats(node):
            made.add(node.output[0])
        if node.op_type == "Identity" and node.input:
            aliases[node.output[0]] = node.input[0]
    for node in nodes_of(graph):
        for i, name in enumerate(node.input):
            name = _origin(name, aliases)
            if node.op_type == "BatchNormalization" and i in (3, 4):
                if name in made or roles.get(name) == PARAMETER:
                    roles[name] = STATE
            elif name in made and name not in roles and i in _WEIGHTS.get(node.op_type, ()):
                roles[name] = PARAMETER
    return roles


def _origin(name: str, aliases: dict[str, str]) -> str:
    while name in aliases:
        name = aliases[name]
    return name


def _makes_floats(node: onnx.NodeProto) -> bool:
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t.data_type in _FLOATS
        if attribute.name in ("value_float", "value_floats"):
            return True
    return node.op_type == "ConstantOfShape"  # its default is a float zero
