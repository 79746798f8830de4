"""Element types of every tensor of an ONNX graph, from the operators' own schemas."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, defs

from memcli.formats.onnx.check import domain_of, subgraphs

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
)
# Which attribute gives the type of an output that no input has, and what it is without.
_TYPE_ATTRIBUTE = {
    "Cast": ("to", TensorProto.UNDEFINED),
    "RandomNormal": ("dtype", TensorProto.FLOAT),
    "RandomUniform": ("dtype", TensorProto.FLOAT),
    "Multinomial": ("dtype", TensorProto.INT32),
    "HannWindow": ("output_datatype", TensorProto.FLOAT),
    "HammingWindow": ("output_datatype", TensorProto.FLOAT),
    "BlackmanWindow": ("output_datatype", TensorProto.FLOAT),
    "MelWeightMatrix": ("output_datatype", TensorProto.FLOAT),
    "QuantizeLinear": ("output_dtype", TensorProto.UINT8),
    "LayerNormalization": ("stash_type", TensorProto.FLOAT),  # mean and inverse deviation
}
# The attribute says it, else the first input's own type is kept.
_TYPE_OR_INPUT = ("EyeLike", "Bernoulli", "RandomNormalLike", "RandomUniformLike")
# A sequence is listed with its elements' type.
_SEQUENCES = (
    "SplitToSequence",
    "SequenceConstruct",
    "SequenceAt",
    "SequenceInsert",
    "SequenceErase",
    "ConcatFromSequence",
)


def element_types(graph: GraphProto, opsets: Mapping[str, int]) -> dict[str, int]:
    """{tensor name: TensorProto.DataType} of all tensors whose type can be told.

    What the operators' schemas say, not what value infos claim: those may be missing or stale.
    Tensors within subgraphs are not listed. Outputs of operators without a schema are left out,
    unless the file has a value info for them.
    """
    return _types(graph, opsets, {})


def _types(
    graph: GraphProto, opsets: Mapping[str, int], outer: Mapping[str, int]
) -> dict[str, int]:
    found: dict[str, int] = dict(outer)
    said = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }
    for value in graph.input:
        if value.type.HasField("tensor_type"):
            found[value.name] = value.type.tensor_type.elem_type
    found.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    for node in graph.node:
        for output, kind in zip(node.output, _outputs(node, opsets, found), strict=False):
            kind = kind or said.get(output, 0)
            if output and kind:
                found[output] = kind
    return found


def _outputs(node: NodeProto, opsets: Mapping[str, int], found: Mapping[str, int]) -> list[int]:
    """A type for each output, 0 for unknown."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    count = len(node.output)
    domain = domain_of(node)
    inner = subgraphs(node)
    if inner:
        # If, Loop and Scan: what the body's last outputs are (Loop's first is the condition).
        within = _types(inner[0], opsets, found)
        kinds = [within.get(value.name, 0) for value in inner[0].output]
        return kinds[-count:] if len(kinds) >= count else [0] * count
    if domain == "" and node.op_type in ("Constant", "ConstantOfShape"):
        return [_constant_type(node, attributes)] * count
    first = found.get(node.input[0], 0) if node.input else 0
    if domain == "" and node.op_type in _TYPE_OR_INPUT:
        own = attributes["dtype"].i if "dtype" in attributes else 0
        return [own or first] * count
    if domain == "" and node.op_type in _SEQUENCES:
        return [first] * count
    formal = _formal_types(node.op_type, opsets.get(domain, 1), domain)
    if formal is None:
        return [0] * count
    inputs, outputs = formal
    bound: dict[str, int] = {}
    for position, used in enumerate(node.input):
        if used in found and inputs:
            bound.setdefault(inputs[min(position, len(inputs) - 1)], found[used])
    open_type = 0
    if node.op_type in _TYPE_ATTRIBUTE:
        name, default = _TYPE_ATTRIBUTE[node.op_type]
        open_type = attributes[name].i if name in attributes else default
    # Of a variadic output the schema has one formal parameter for all that are left.
    texts = [outputs[min(position, len(outputs) - 1)] for position in range(count) if outputs]
    return [_BY_TEXT.get(text, 0) or bound.get(text, open_type) for text in texts]


@cache
def _formal_types(operator: str, version: int, domain: str) -> tuple[list[str], list[str]] | None:
    """Type parameters (or the one type there is) of an operator's inputs and outputs."""
    try:
        schema = defs.get_schema(operator, version, domain)
    except defs.SchemaError:
        return None
    only = {
        c.type_param_str: c.allowed_type_strs[0]
        for c in schema.type_constraints
        if len(c.allowed_type_strs) == 1
    }
    inputs = [only.get(i.type_str, i.type_str) for i in schema.inputs]
    return inputs, [only.get(o.type_str, o.type_str) for o in schema.outputs]


def _constant_type(node: NodeProto, attributes: Mapping[str, AttributeProto]) -> int:
    for name, kind in (
        ("value_float", TensorProto.FLOAT),
        ("value_floats", TensorProto.FLOAT),
        ("value_int", TensorProto.INT64),
        ("value_ints", TensorProto.INT64),
        ("value_string", TensorProto.STRING),
        ("value_strings", TensorProto.STRING),
    ):
        if name in attributes:
            return kind
    if "value" in attributes:
        return attributes["value"].t.data_type
    return TensorProto.FLOAT if node.op_type == "ConstantOfShape" else 0


_BY_TEXT = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(int64)": TensorProto.INT64,
    "tensor(int32)": TensorProto.INT32,
    "tensor(bool)": TensorProto.BOOL,
    "tensor(uint8)": TensorProto.UINT8,
    "tensor(int8)": TensorProto.INT8,
    "tensor(string)": TensorProto.STRING,
}
