"""Which tensors' values, not shapes alone, an ONNX graph's shapes depend on."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from memcli.errors import BadInput
from memcli.formats.onnx.external import data_folder, is_external, read_external
from memcli.formats.onnx.types import FLOATS
from memcli.quoting import shown, shown_path

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
            "L1",
            "L2",
            "LogSum",
            "LogSumExp",
            "Max",
            "Mean",
            "Min",
            "Prod",
            "Sum",
            "SumSquare",
        )
    },
}
# Bytes of one tensor that decides about shapes, and of all; masks and tables of indices are the
# largest that exporters compute shapes from.
_LARGEST_VALUE = 32 << 20
_LARGEST_VALUES = 128 << 20
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
        stack += [(used, reason) for used in node.input if used and types.get(used) not in FLOATS]
    made = {name for name, node in makers.items() if node.op_type != "Constant"}
    return {name: reason for name, reason in needed.items() if name not in made}


def with_values(
    model: ModelProto, types: Mapping[str, int], path: str, *, copy: bool
) -> ModelProto:
    """The model with those external tensors loaded that shapes depend on.

    ``copy``: leave ``model`` as it is. ``path`` is the file's, beside which data is.

    Raises:
        BadInput: the values of such a tensor are in a file that is not there, or too short.
    """
    needed = values_needed(model.graph, types)
    if not any(leaf in needed and is_external(t) for leaf, t in _leaf_tensors(model.graph)):
        return model
    if copy:
        original, model = model, ModelProto()
        model.CopyFrom(original)
    total = 0
    for leaf, tensor in _leaf_tensors(model.graph):
        if leaf not in needed or not is_external(tensor):
            continue
        loaded = read_external(tensor, path, _LARGEST_VALUE)
        if loaded is not None:
            total += len(loaded.raw_data)
        if total > _LARGEST_VALUES:
            raise BadInput(
                f"{shown_path(path)}: the tensors that decide about shapes take over "
                f"{_LARGEST_VALUES >> 20} MiB",
                "a network's take some kilobytes: is the file damaged?",
            )
        if loaded is None:
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            gone = f"{shown_path(path)}: {shown(leaf)} decides about shapes ({needed[leaf]}), but "
            if data_folder(path) is None:
                raise BadInput(
                    f"{gone}its values are in a file of their own, {shown(location)}, which a pipe "
                    "does not bring along",
                    "give the path of the model, or export it with small tensors inside",
                )
            raise BadInput(
                f"{gone}its values are in a file that is not there",
                f"put {shown(location)} beside the model, or export it with small tensors inside",
            )
        tensor.CopyFrom(loaded)
    return model


def _leaf_tensors(graph: GraphProto) -> list[tuple[str, TensorProto]]:
    """(name in the graph, tensor) of initializers and of Constant nodes."""
    found = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            found += [
                (node.output[0], a.t) for a in node.attribute if a.type == AttributeProto.TENSOR
            ]
    return found
