"""Names that the exporter before ``torch.export`` gives: ``/layer1/layer1.0/conv1/Conv``.

A name is the path of modules called, each by its attribute (a number with what it stands in:
``layer1.0``), and the ONNX operator. Within one module nodes are matched in their order, each to
the next ONNX node of a type that its operator becomes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from memcli.torch.exported import ExportedModel

_NAME = re.compile(r"^(?P<scope>(?:/[^/]+)*)/(?P<type>[A-Z][A-Za-z]*)(?:_\d+)?$")
_NUMBERED = re.compile(r"^(.+)_\d+$")

# What an operator becomes: alternatives, each the types of some of its nodes in order, the last
# of which makes the output.
_BECOMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "add": (("Add",),),
    "sub": (("Sub",),),
    "rsub": (("Sub",),),
    "mul": (("Mul",),),
    "div": (("Div",),),
    "neg": (("Neg",),),
    "pow": (("Pow",),),
    "sqrt": (("Sqrt",),),
    "exp": (("Exp",),),
    "log": (("Log",),),
    "erf": (("Erf",),),
    "tanh": (("Tanh",),),
    "sigmoid": (("Sigmoid",),),
    "relu": (("Relu",),),
    "relu6": (("Clip",), ("Min",)),
    "hardtanh": (("Clip",),),
    "clamp": (("Clip",),),
    "leaky_relu": (("LeakyRelu",),),
    "elu": (("Elu",),),
    "selu": (("Selu",),),
    "prelu": (("PRelu",),),
    "silu": (("Sigmoid", "Mul"),),
    "hardswish": (("HardSwish",), ("HardSigmoid", "Mul")),
    "hardsigmoid": (("HardSigmoid",),),
    "softplus": (("Softplus",),),
    "mish": (("Mish",), ("Softplus", "Tanh", "Mul")),
    "glu": (("Split", "Sigmoid", "Mul"),),
    "gelu": (("Gelu",), ("Erf", "Add", "Mul", "Mul"), ("Tanh", "Add", "Mul", "Mul")),
    "softmax": (("Softmax",),),
    "_softmax": (("Softmax",),),
    "log_softmax": (("LogSoftmax",),),
    "_log_softmax": (("LogSoftmax",),),
    "dropout": (("Dropout",),),
    "native_dropout": (("Dropout",),),
    "batch_norm": (("BatchNormalization",),),
    "layer_norm": (("LayerNormalization",), ("Sqrt", "Div", "Mul", "Add"), ("Sqrt", "Div")),
    "group_norm": (("InstanceNormalization", "Mul", "Add"), ("GroupNormalization",)),
    "instance_norm": (("InstanceNormalization",),),
    "linear": (("Gemm",), ("MatMul", "Add"), ("MatMul",)),
    "addmm": (("Gemm",),),
    "matmul": (("MatMul",),),
    "mm": (("MatMul",), ("Gemm",)),
    "bmm": (("MatMul",),),
    "einsum": (("Einsum",),),
    "scaled_dot_product_attention": (("Softmax", "MatMul"),),
    "embedding": (("Gather",),),
    "index_select": (("Gather",),),
    "cat": (("Concat",),),
    "stack": (("Concat",),),
    "pad": (("Pad",),),
    "constant_pad_nd": (("Pad",),),
    "mean": (("ReduceMean",), ("GlobalAveragePool",)),
    "sum": (("ReduceSum",),),
    "amax": (("ReduceMax",),),
    "where": (("Where",),),
    "masked_fill": (("Where",),),
    "adaptive_avg_pool1d": (("GlobalAveragePool",), ("AveragePool",)),
    "adaptive_avg_pool2d": (("GlobalAveragePool",), ("AveragePool",)),
    "adaptive_avg_pool3d": (("GlobalAveragePool",), ("AveragePool",)),
    **{f"avg_pool{n}d": (("AveragePool",),) for n in (1, 2, 3)},
    **{f"max_pool{n}d": (("MaxPool",),) for n in (1, 2, 3)},
    **{f"conv{n}d": (("Conv",),) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (("ConvTranspose",),) for n in (1, 2, 3)},
    "convolution": (("Conv",), ("ConvTranspose",)),
    "upsample_nearest2d": (("Resize",),),
    "upsample_bilinear2d": (("Resize",),),
}


def is_scoped(name: str) -> bool:
    """Whether a node is named in this manner."""
    return _NAME.match(name) is not None


def match_scopes(model: ExportedModel, by_name: Mapping[str, int]) -> dict[str, int]:
    """{function node: mark} where an ONNX node of the same module and a fitting type is found."""
    nodes = [n for n in model.graph.nodes if n.op == "call_function" and n.name in model.names]
    inside = {node.name: _scope_of(model.scopes[node.name]) for node in nodes}
    there = _nodes_by_scope(by_name, set(inside.values()))
    at = dict.fromkeys(there, 0)
    found: dict[str, int] = {}
    for node in nodes:
        scope = inside[node.name]
        listed = there.get(scope, [])
        end = _find(listed, at.get(scope, 0), _BECOMES.get(_operator(node), ()))
        if end is not None:
            found[node.name] = listed[end][1]
            at[scope] = end + 1
    return found


def _nodes_by_scope(
    by_name: Mapping[str, int], scopes: set[str]
) -> dict[str, list[tuple[str, int]]]:
    """{scope: [(type, mark)]} in the file's order; calls after the first go to the same scope."""
    there: dict[str, list[tuple[str, int]]] = {}
    for name, mark in by_name.items():
        match = _NAME.match(name)
        if match is None:
            continue
        scope = match["scope"]
        if scope not in scopes:
            scope = "/".join(
                (numbered[1] if (numbered := _NUMBERED.match(part)) else part)
                for part in scope.split("/")
            )
        there.setdefault(scope, []).append((match["type"], mark))
    return there


def _scope_of(modules: list[str]) -> str:
    """``/layer1/layer1.0/conv1`` for the modules layer1, layer1.0 and layer1.0.conv1."""
    parts = []
    for name in modules:
        atoms = name.partition("@")[0].split(".")
        start = len(atoms) - 1
        while start > 0 and atoms[start].isdigit():
            start -= 1
        parts.append("/" + ".".join(atoms[start:]))
    return "".join(parts)


def _find(
    listed: list[tuple[str, int]], start: int, alternatives: tuple[tuple[str, ...], ...]
) -> int | None:
    """The position of the last node of the alternative that begins first."""
    best: tuple[int, int] | None = None
    for types in alternatives:
        positions = []
        position = start
        for wanted in types:
            while position < len(listed) and listed[position][0] != wanted:
                position += 1
            if position == len(listed):
                break
            positions.append(position)
            position += 1
        if len(positions) == len(types) and (best is None or positions[0] < best[0]):
            best = positions[0], positions[-1]
    return best[1] if best is not None else None


def _operator(node: Node) -> str:
    target: Any = getattr(node.target, "function", node.target)
    if hasattr(target, "_schema"):
        return str(target._schema.name).partition("::")[2]
    return str(getattr(target, "__name__", ""))
