"""A hash of an ONNX graph's structure, to tell whether a plan still fits the graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, TensorProto

from memcli.formats.onnx.check import domain_of
from memcli.formats.onnx.external import is_external, tensor_array
from memcli.formats.onnx.types import FLOATS

# Integers of up to so many elements are shapes and axes, and count by value; more are data.
_LARGEST_VALUE = 64


def graph_sha256(graph: GraphProto, opsets: Mapping[str, int]) -> str:
    """SHA-256 of what a plan depends on: nodes in order, attributes, tensors' names and types.

    Independent of metadata, documentation, names of nodes, value infos, sizes of inputs, the
    values of weights and where they are stored; dependent on small integer constants.
    """
    digest = hashlib.sha256()
    used = {domain_of(node) for node in graph.node}
    versions = sorted((domain, opsets.get(domain, 0)) for domain in used)
    digest.update(json.dumps(versions).encode())
    for part in _graph(graph):
        digest.update(json.dumps(part, separators=(",", ":")).encode())
    return digest.hexdigest()


def _graph(graph: GraphProto) -> list[Any]:
    held = {tensor.name for tensor in graph.initializer}
    parts: list[Any] = [
        [
            "inputs",
            [[v.name, v.type.tensor_type.elem_type] for v in graph.input if v.name not in held],
        ],
        ["outputs", [v.name for v in graph.output]],
    ]
    # Sorted: a tool may write initializers in another order.
    parts += sorted((["tensor", t.name, *_tensor(t)] for t in graph.initializer), key=str)
    for node in graph.node:
        attributes = sorted((_attribute(a) for a in node.attribute), key=lambda a: a[0])
        parts.append(
            [domain_of(node), node.op_type, list(node.input), list(node.output), attributes]
        )
    return parts


def _attribute(attribute: AttributeProto) -> list[Any]:
    kind = attribute.type
    value: Any
    if kind == AttributeProto.TENSOR:
        value = _tensor(attribute.t)
    elif kind == AttributeProto.TENSORS:
        value = [_tensor(t) for t in attribute.tensors]
    elif kind == AttributeProto.GRAPH:
        value = _graph(attribute.g)
    elif kind == AttributeProto.GRAPHS:
        value = [_graph(g) for g in attribute.graphs]
    elif kind == AttributeProto.FLOAT:
        value = attribute.f.hex()
    elif kind == AttributeProto.INT:
        value = attribute.i
    elif kind == AttributeProto.STRING:
        value = attribute.s.hex()
    elif kind == AttributeProto.FLOATS:
        value = [f.hex() for f in attribute.floats]
    elif kind == AttributeProto.INTS:
        value = list(attribute.ints)
    elif kind == AttributeProto.STRINGS:
        value = [s.hex() for s in attribute.strings]
    else:
        value = None
    return [attribute.name, kind, value, attribute.ref_attr_name]


def _tensor(tensor: TensorProto) -> list[Any]:
    described: list[Any] = [tensor.data_type, list(tensor.dims)]
    elements = int(np.prod(tensor.dims, dtype=np.int64)) if tensor.dims else 1
    if tensor.data_type not in FLOATS and elements <= _LARGEST_VALUE and not is_external(tensor):
        values = tensor_array(tensor)
        described.append([str(v) for v in np.asarray(values).ravel().tolist()])
    return described
