"""Which tensors' values, not shapes alone, an ONNX graph's shapes depend on."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto

from memcli.formats.onnx_types import FLOATS

# Operator: positions of inputs whose values decide about shapes or modes.
_VALUE_INPUTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in (
            "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
        )
    },
}  # fmt: skip
# What these make depends on the shapes of their inputs alone.
_SHAPES_ALONE = ("Shape", "Size")


def value_positions(node: NodeProto) -> tuple[int, ...]:
    """Positions of a node's inputs whose values decide about shapes, axes or modes."""
    return () if node.domain not in ("", "ai.onnx") else _VALUE_INPUTS.get(node.op_type, ())


def values_needed(graph: GraphProto, types: Mapping[str, int]) -> dict[str, str]:
    """{tensor that no node computes: what needs its values} for everything that shapes need.

    Followed backward from :func:`value_positions` through integer computations; what a node
    computes from floats (a detection's boxes) has shapes that depend on data in any case.
    """
    makers = {output: node for node in graph.node for output in node.output if output}
    needed: dict[str, str] = {}
    stack = [
        (node.input[position], f"{node.op_type} {node.name or node.output[0]}")
        for node in graph.node
        for position in value_positions(node)
        if position < len(node.input) and node.input[position]
    ]
    while stack:
        name, reason = stack.pop()
        if name in needed:
            continue
        needed[name] = reason
        node = makers.get(name)
        if node is None or node.op_type in _SHAPES_ALONE:
            continue
        stack += [
            (used, reason) for used in node.input if used and types.get(used) not in FLOATS
        ]
    made = {name for name, node in makers.items() if node.op_type != "Constant"}
    return {name: reason for name, reason in needed.items() if name not in made}
