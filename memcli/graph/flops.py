"""Floating-point operations of an operator, from its attributes and the sizes around it.

A multiply and an add count as two. Counts are for the forward operator; a backward operator is
counted by what its own kernel does (twice the forward for convolutions and matrix products, once
for each of the two gradients).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

Shape = Sequence[int]

# Operators that only move data or name it.
_FREE = frozenset(
    {
        "Reshape", "Flatten", "reshape_like", "expand_dims", "squeeze", "_copy", "BlockGrad",
        "stop_gradient", "identity", "_identity_with_attr_like_rhs", "zeros_like", "_zeros",
        "ones_like", "_ones", "_zeros_without_dtype", "shape_array", "size_array", "MakeLoss",
        "make_loss",
    }
)  # fmt: skip
_PER_ELEMENT = {
    "BatchNorm": 8, "BatchNorm_v1": 8, "_contrib_SyncBatchNorm": 8, "LayerNorm": 8,
    "InstanceNorm": 8, "GroupNorm": 8, "softmax": 5, "log_softmax": 5, "SoftmaxOutput": 5,
    "SoftmaxActivation": 5, "LRN": 10, "L2Normalization": 4, "erf": 8, "exp": 4, "log": 4,
    "tanh": 6, "sigmoid": 4, "sqrt": 2,
}  # fmt: skip

_REDUCTIONS = frozenset({"sum", "mean", "max", "min", "prod", "norm", "argmax", "argmin"})


def _tuple(attrs: Mapping[str, str], key: str) -> tuple[int, ...]:
    try:
        value = ast.literal_eval(attrs.get(key, "()"))
    except (ValueError, SyntaxError):
        return ()
    if isinstance(value, int):
        return (value,)
    return tuple(int(v) for v in value)


def _product(values: Sequence[int]) -> int:
    result = 1
    for v in values:
        result *= max(v, 0)
    return result


def forward_flops(
    op: str, attrs: Mapping[str, str], inputs: Sequence[Shape], outputs: Sequence[Shape]
) -> float:
    """FLOPs of one run of a forward operator, given the shapes of its inputs and outputs."""
    if op in _FREE or not outputs:
        return 0.0
    out = _product(outputs[0])
    read = _product(inputs[0]) if inputs else 0
    if op in ("Convolution", "Convolution_v1"):
        # each output element sums over (input channels / groups) x kernel products
        return 2.0 * out * _product(inputs[1][1:]) if len(inputs) > 1 else 0.0
    if op in ("_contrib_DeformableConvolution", "_contrib_ModulatedDeformableConvolution"):
        weight = inputs[-1] if attrs.get("no_bias", "False") in ("True", "1") else inputs[-2]
        return 2.0 * out * _product(weight[1:])
    if op == "Deconvolution":
        return 2.0 * read * _product(inputs[1][1:]) if len(inputs) > 1 else 0.0
    if op == "FullyConnected":
        return 2.0 * out * inputs[1][-1] if len(inputs) > 1 and inputs[1] else 0.0
    if op in ("dot", "batch_dot", "_linalg_gemm2", "_linalg_gemm", "_npi_matmul"):
        if not inputs or not inputs[0]:
            return 0.0
        transposed = attrs.get("transpose_a", "False") in ("True", "1")
        if op == "dot" and transposed:
            inner = inputs[0][0]
        elif transposed and len(inputs[0]) > 1:
            inner = inputs[0][-2]
        else:
            inner = inputs[0][-1]
        return 2.0 * out * inner
    if op == "RNN":
        # every parameter is used once for each time step and sample: data is (steps, batch, size)
        if len(inputs) < 2 or len(inputs[0]) < 2:
            return 0.0
        return 2.0 * _product(inputs[1]) * inputs[0][0] * inputs[0][1]
    if op in ("Pooling", "Pooling_v1"):
        if attrs.get("global_pool", "False") in ("True", "1"):
            return float(read)
        return float(out * _product(_tuple(attrs, "kernel") or (1,)))
    if op in _REDUCTIONS:
        return float(read)
    return float(_PER_ELEMENT.get(op, 1) * out)


def backward_flops(
    op: str, inputs: Sequence[Shape], outputs: Sequence[Shape], forward: float
) -> float:
    """FLOPs of a backward operator whose forward operator takes ``forward``."""
    if op.startswith("_backward_") and forward > 0:
        return 2.0 * forward
    if op in _FREE or not outputs:
        return 0.0
    if op in ("add_n", "_grad_add", "elemwise_add"):
        return float(_product(outputs[0]) * max(1, len(inputs) - 1))
    return float(_product(outputs[0]))
