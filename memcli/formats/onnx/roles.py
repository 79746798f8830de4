"""Which tensors of an ONNX file are trained, which are states, and which are constants.

ONNX does not say. The rules, first that applies:

1. Tensors that are not float are constants.
2. What BatchNormalization reads as running mean and variance, directly or through reshapes and
   casts, is a state.
3. Where PyTorch's exporter noted what a tensor was (parameter, buffer, constant), it is that;
   buffers are constants here: what the training step changes is told by rule 2 alone.
4. A tensor that no gradient reaches is a constant, and so is one whose name is a usual one for
   buffers (``rotary_emb.inv_freq``, ``stft.forward_basis_buffer``).
5. A weight of a layer (Conv, Gemm, normalizations, recurrent layers, embeddings, PRelu) is a
   parameter, whatever its size.
6. One element: a constant (eps, 1/sqrt(d), a fill value) where it comes from a Constant or
   ConstantOfShape node, or from an initializer whose name is not of the kind that modules give
   to parameters (``logit_scale``, ``blocks.0.gamma``).
7. More elements: a constant where nothing but zero, infinities and numbers beyond 1e4 are in it
   (an attention mask), else a parameter.

Not told apart, and taken for parameters: tables such as fixed position encodings, anchors of
detectors and means that inputs are normalized by, where no exporter noted what they are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from memcli.formats.onnx.check import domain_of
from memcli.formats.onnx.external import is_external, same_place, tensor_array
from memcli.formats.onnx.file import OnnxFile, dtype_name
from memcli.formats.onnx.gradients import gradient_reached
from memcli.formats.onnx.signature import SignatureKind, signature_kinds
from memcli.formats.onnx.types import FLOATS
from memcli.formats.trained_file import Leaf, Role

# Positions of weights among a layer's inputs.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
# Operators that pass a tensor on with other strides or another type.
_SAME_VALUES = frozenset(
    {
        "Cast",
        "CastLike",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
# Names that tools make up for constants: /layer/Constant_output_0, onnx::Mul_12, val_3, 428, ...
_MADE_UP = re.compile(
    r"(?:^|[/:._])(?:const|constant|val|lifted|_?tensor_constant|initializer|scalar|fold|"
    r"const_fold_opt_)\w*$|::|_output_\d+$|^[\d_]+$",
    re.IGNORECASE,
)
_PARAMETER_WORDS = re.compile(
    r"(?:^|[._/])\w*(?:weight|bias|scale|gamma|beta|alpha|temperature|tau|lambda|slope|gain|"
    r"param(?:eter)?s?)\d*(?:_[vg])?$",
    re.IGNORECASE,
)
_BUFFER_NAME = re.compile(
    r"(?:^|[._/])(?:inv_freq|freqs_cis|(?:cos|sin)_cache[d]?|masked_bias|attn_mask|causal_mask|"
    r"relative_position_index|position_ids|pixel_(?:mean|std)|anchors?(?:_grid)?|strides?|\w+_buffer)$"
)
_MASK_VALUE = 1e4
# Weights are compared by value from this number of elements on; below, equal ones are chance.
_SMALLEST_TIED = 16


def tensor_roles(file: OnnxFile) -> dict[str, Leaf]:
    """{tensor: its role} of all initializers and outputs of Constant and ConstantOfShape nodes.

    In the order: initializers, then nodes.
    """
    return roles_in(file.graph, file.element_types(), signature_kinds(file.graph))


def roles_in(
    graph: GraphProto, types: Mapping[str, int], noted: Mapping[str, SignatureKind]
) -> dict[str, Leaf]:
    """As :func:`tensor_roles`, of a graph alone; ``noted``: what its exporter wrote down."""
    leaves = _leaves(graph)
    reached = gradient_reached(graph, types)
    states, weights = _states(graph), _layer_weights(graph)
    ties = _ties(leaves)
    role = {
        name: _role(name, leaf, types, noted, reached, states, weights)
        for name, leaf in leaves.items()
    }
    # Whatever makes one of them a parameter makes the tensor one; a state is nothing else.
    ties = {name: first for name, first in ties.items() if "state" not in (role[name], role[first])}
    for name, first in ties.items():
        if role[name] == "parameter":
            role[first] = "parameter"
    for name, first in ties.items():
        role[name] = role[first]
    return {
        name: Leaf(
            name, role[name], dtype_name(types.get(name, 0)), leaf.shape, leaf.node, ties.get(name)
        )
        for name, leaf in leaves.items()
    }


@dataclass(frozen=True)
class _Source:
    """Where a leaf's values come from."""

    shape: tuple[int, ...] | None
    node: int | None
    tensor: TensorProto | None  # None: one value throughout


def _leaves(graph: GraphProto) -> dict[str, _Source]:
    found = {t.name: _Source(tuple(t.dims), None, t) for t in graph.initializer}
    for position, node in enumerate(graph.node):
        if domain_of(node) or not node.output or not node.output[0]:
            continue
        if node.op_type == "Constant":
            tensor = constant_tensor(node)
            shape = None if tensor is None else tuple(tensor.dims)
            found[node.output[0]] = _Source(shape, position, tensor)
        elif node.op_type == "ConstantOfShape":
            found[node.output[0]] = _Source(_known_shape(found, node), position, None)
    return found


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds, whichever of its attributes it is in; None for strings."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            return attribute.t
        values: np.ndarray | None = None
        if attribute.name in ("value_float", "value_floats"):
            single = attribute.name == "value_float"
            values = np.array(attribute.f if single else list(attribute.floats), np.float32)
        elif attribute.name in ("value_int", "value_ints"):
            single = attribute.name == "value_int"
            values = np.array(attribute.i if single else list(attribute.ints), np.int64)
        if values is not None:
            return numpy_helper.from_array(values, node.output[0] if node.output else "")
    return None


def _known_shape(leaves: Mapping[str, _Source], node: NodeProto) -> tuple[int, ...] | None:
    source = leaves.get(node.input[0]) if node.input else None
    if source is None or source.tensor is None:
        return None
    values = tensor_array(source.tensor)
    return None if values is None else tuple(int(d) for d in values.ravel())


def _states(graph: GraphProto) -> set[str]:
    """Running means and variances, back through nodes that pass them on."""
    read = [
        used
        for node in graph.node
        if node.op_type == "BatchNormalization" and not domain_of(node)
        for used in node.input[3:5]
    ]
    return _passed_on_from(graph, read, _SAME_VALUES)


def _layer_weights(graph: GraphProto) -> set[str]:
    """Tensors in a layer's weight inputs, back through nodes that pass them on."""
    read = [
        node.input[position]
        for node in graph.node
        if not domain_of(node)
        for position in _WEIGHTS.get(node.op_type, ())
        if position < len(node.input) and node.input[position]
    ]
    # Expand repeats one value: a bias of zeros, as exporters write it, is no weight.
    return _passed_on_from(graph, read, _SAME_VALUES - {"Expand"})


def _passed_on_from(graph: GraphProto, names: list[str], passing: frozenset[str]) -> set[str]:
    """The tensors, and those that they are, back through operators that pass them on."""
    makers = {output: node for node in graph.node for output in node.output if output}
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name in found:
            continue
        found.add(name)
        node = makers.get(name)
        if node is not None and node.op_type in passing and node.input:
            stack.append(node.input[0])
    return found


def _role(
    name: str,
    leaf: _Source,
    types: Mapping[str, int],
    noted: Mapping[str, SignatureKind],
    reached: set[str],
    states: set[str],
    weights: set[str],
) -> Role:
    if types.get(name) not in FLOATS:
        return "constant"
    if name in states:
        return "state"
    if name in noted:
        return "parameter" if noted[name] == "parameter" and name in reached else "constant"
    if name not in reached or _BUFFER_NAME.search(name):
        return "constant"
    if name in weights:
        return "parameter"
    if leaf.shape is None:
        return "constant"
    if math.prod(leaf.shape) <= 1:
        named = leaf.node is None and _is_parameter_name(name)
        return "parameter" if named else "constant"
    return "constant" if _looks_like_mask(leaf) else "parameter"


def _is_parameter_name(name: str) -> bool:
    return not _MADE_UP.search(name) and _PARAMETER_WORDS.search(name) is not None


def _looks_like_mask(leaf: _Source) -> bool:
    if leaf.tensor is None or is_external(leaf.tensor):
        return False
    with np.errstate(all="ignore"):  # what is no number is no mask
        values = np.asarray(tensor_array(leaf.tensor), dtype=np.float64)
    huge = np.abs(values) >= _MASK_VALUE  # infinities as well
    return bool(huge.any() and (huge | (values == 0)).all())


def _ties(leaves: Mapping[str, _Source]) -> dict[str, str]:
    """{leaf: the first leaf that is the same tensor}: same place in a data file, or same bytes.

    By bytes only matrices and up that are not filled with one value: vectors of ones are what
    normalizations start with, and equal for no reason.
    """
    firsts: dict[object, str] = {}
    ties: dict[str, str] = {}
    muddled = _muddled_locations(leaves)
    for name, leaf in leaves.items():
        key = _identity(leaf, muddled)
        if key is None:
            continue
        first = firsts.setdefault(key, name)
        if first != name:
            ties[name] = first
    return ties


def _muddled_locations(leaves: Mapping[str, _Source]) -> set[str]:
    """Data files in which tensors of different lengths start at one place.

    Files whose weights were taken out say so (all at 0): there places tell nothing.
    """
    lengths: dict[tuple[str, str], str] = {}
    muddled = set()
    for leaf in leaves.values():
        place = same_place(leaf.tensor) if leaf.tensor and is_external(leaf.tensor) else None
        if place and lengths.setdefault(place[:2], place[2]) != place[2]:
            muddled.add(place[0])
    return muddled


def _identity(leaf: _Source, muddled: set[str]) -> object:
    tensor = leaf.tensor
    if tensor is None or tensor.data_type not in FLOATS:
        return None
    if is_external(tensor):
        place = same_place(tensor)
        trusted = place is not None and place[0] not in muddled
        return (place, tensor.data_type, leaf.shape) if trusted else None
    if len(tensor.dims) < 2 or math.prod(tensor.dims) < _SMALLEST_TIED:
        return None
    values = np.ascontiguousarray(tensor_array(tensor))
    if bool((values == values.flat[0]).all()):
        return None
    digest = hashlib.sha256(values.tobytes()).digest()
    return (digest, tensor.data_type, leaf.shape)
