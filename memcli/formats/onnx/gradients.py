"""Through which inputs of ONNX operators a gradient flows, as PyTorch differentiates them."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto

from memcli.formats.onnx.check import domain_of, subgraphs
from memcli.formats.onnx.types import FLOATS

# Positions of float inputs that no gradient flows to. ONNX's own marks
# (OpSchema.FormalParameter.differentiation_category) are missing for a third of the operators and
# differ from PyTorch for some: an LSTM's initial states and GridSample's grid do have gradients.
_NO_GRADIENT: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "Dropout": (1, 2),
    "MaxRoiPool": (1,),
    "Mod": (1,),
    "NegativeLogLikelihoodLoss": (2,),
    "Pad": (2,),
    "Resize": (1, 2, 3),
    "RoiAlign": (1,),
    "SoftmaxCrossEntropyLoss": (2,),
    "ThresholdedRelu": (1,),
    "Upsample": (1,),
}
# Their outputs depend on no input in a way that has a gradient other than zero.
_NO_GRADIENT_AT_ALL = frozenset(
    {
        "ArgMax",
        "ArgMin",
        "Bernoulli",
        "BlackmanWindow",
        "Ceil",
        "Constant",
        "ConstantOfShape",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "EyeLike",
        "Floor",
        "HammingWindow",
        "HannWindow",
        "Hardmax",
        "MelWeightMatrix",
        "Multinomial",
        "NonMaxSuppression",
        "NonZero",
        "OneHot",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
        "Round",
        "Shape",
        "Sign",
        "Size",
    }
)


def gradient_inputs(node: NodeProto, types: Mapping[str, int]) -> list[str]:
    """The node's inputs that a gradient reaches when one reaches its outputs.

    For operators with subgraphs, float tensors that the subgraphs read from outside as well.
    """
    if domain_of(node) == "" and node.op_type in _NO_GRADIENT_AT_ALL:
        return []
    closed = _NO_GRADIENT.get(node.op_type, ()) if domain_of(node) == "" else ()
    found = [
        used
        for position, used in enumerate(node.input)
        if used and position not in closed and types.get(used) in FLOATS
    ]
    for subgraph in subgraphs(node):
        found += [used for used in outer_reads(subgraph) if types.get(used) in FLOATS]
    return found


def outer_reads(graph: GraphProto) -> list[str]:
    """Tensors that a subgraph reads and does not make, those of its own subgraphs included."""
    own = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    found: dict[str, None] = {}
    for node in graph.node:
        inner = [used for subgraph in subgraphs(node) for used in outer_reads(subgraph)]
        found.update((used, None) for used in (*node.input, *inner) if used and used not in own)
        own.update(node.output)
    found.update((v.name, None) for v in graph.output if v.name not in own)
    return list(found)


def gradient_reached(graph: GraphProto, types: Mapping[str, int]) -> set[str]:
    """Tensors that the gradient of a loss on all float outputs reaches."""
    reached = {value.name for value in graph.output if types.get(value.name) in FLOATS}
    for node in reversed(graph.node):
        if any(o in reached and types.get(o) in FLOATS for o in node.output if o):
            reached.update(gradient_inputs(node, types))
    return reached
