"""Floating-point operations of an operator, from its attributes and the sizes around it.

A multiply and an add count as two. Counts are for the forward operator; a backward operator is
counted by what its own kernel does (twice the forward for convolutions and matrix products, once
for each of the two gradients). An operator that moves data counts one for each element that it
writes, so that nothing that runs is for nothing; what only names data is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memcli.formats.symbol.values import tuple_of

Shape = Sequence[int]

# Operators that only move data or name it.
_FREE = frozenset(
    {
        "Reshape",
        "Flatten",
        "reshape_like",
        "expand_dims",
        "squeeze",
        "_copy",
        "BlockGrad",
        "stop_gradient",
        "identity",
        "_identity_with_attr_like_rhs",
        "zeros_like",
        "_zeros",
        "ones_like",
        "_ones",
        "_zeros_without_dtype",
        "shape_array",
        "size_array",
        "MakeLoss",
        "make_loss",
    }
)
_PER_ELEMENT = {
    "BatchNorm": 8,
    "BatchNorm_v1": 8,
    "_contrib_SyncBatchNorm": 8,
    "LayerNorm": 8,
    "InstanceNorm": 8,
    "GroupNorm": 8,
    "softmax": 5,
    "log_softmax": 5,
    "SoftmaxOutput": 5,
    "SoftmaxActivation": 5,
    "softmin": 5,
    "L2Normalization": 4,
    "erf": 8,
    "exp": 4,
    "log": 4,
    "tanh": 6,
    "sigmoid": 4,
    "sqrt": 2,
    "_contrib_BilinearResize2D": 8,
    "BilinearSampler": 8,
    "SpatialTransformer": 8,
}
# Activation and LeakyReLU by their act_type; relu and what is not here: one an element.
_ACTIVATIONS = {
    "tanh": 6,
    "sigmoid": 4,
    "softrelu": 8,
    "softsign": 3,
    "elu": 5,
    "selu": 5,
    "gelu": 12,
}

# Operators that read everything and write little; the number: FLOPs for each element read.
_REDUCTIONS = {
    "sum": 1,
    "mean": 1,
    "max": 1,
    "min": 1,
    "prod": 1,
    "norm": 2,
    "argmax": 1,
    "argmin": 1,
    "nansum": 1,
    "nanprod": 1,
    "argmax_channel": 1,
    "_square_sum": 2,
    "moments": 4,
    "softmax_cross_entropy": 5,
    "_contrib_AdaptiveAvgPooling2D": 1,
    "_np_sum": 1,
    "_npi_mean": 1,
    "_np_max": 1,
    "_np_min": 1,
    "_np_prod": 1,
    "_npi_std": 4,
    "_npi_var": 4,
    "_npi_norm": 2,
}


def _tuple(attrs: Mapping[str, str], key: str) -> tuple[int, ...]:
    return tuple(v for v in tuple_of(attrs.get(key)) or () if v is not None)


def _true(attrs: Mapping[str, str], key: str) -> bool:
    return attrs.get(key, "False") in ("True", "true", "1")


def _number(attrs: Mapping[str, str], key: str, default: int) -> int:
    value = _tuple(attrs, key)
    return value[0] if value else default


def _product(values: Sequence[int]) -> int:
    result = 1
    for v in values:
        result *= max(v, 0)
    return result


def forward_flops(
    op: str, attrs: Mapping[str, str], inputs: Sequence[Shape], outputs: Sequence[Shape]
) -> float:
    """FLOPs of one run of a forward operator, given the shapes of its inputs and outputs.

    Args:
        op: the operator's name.
        attrs: its attributes, as the file spells them.
        inputs: shapes of what it reads.
        outputs: shapes of what it makes.

    Returns:
        A multiplication with its addition counts as two.
    """
    if op in _FREE or not outputs:
        return 0.0
    out = _product(outputs[0])
    read = _product(inputs[0]) if inputs else 0
    if op in ("Convolution", "Convolution_v1"):
        # each output element sums over (input channels / groups) x kernel products
        return 2.0 * out * _product(inputs[1][1:]) if len(inputs) > 1 else 0.0
    if op in ("_contrib_DeformableConvolution", "_contrib_ModulatedDeformableConvolution"):
        weight = inputs[-1] if _true(attrs, "no_bias") else inputs[-2]
        return 2.0 * out * _product(weight[1:])
    if op == "Deconvolution":
        return 2.0 * read * _product(inputs[1][1:]) if len(inputs) > 1 else 0.0
    if op == "FullyConnected":
        return 2.0 * out * inputs[1][-1] if len(inputs) > 1 and inputs[1] else 0.0
    if op in ("dot", "batch_dot", "_linalg_gemm2", "_linalg_gemm", "_npi_matmul"):
        if not inputs or not inputs[0]:
            return 0.0
        transposed = _true(attrs, "transpose_a")
        if op == "dot" and transposed:
            inner = inputs[0][0]
        elif transposed and len(inputs[0]) > 1:
            inner = inputs[0][-2]
        else:
            inner = inputs[0][-1]
        return 2.0 * out * inner
    matrix = _matrix_flops(op, attrs, inputs, outputs)
    if matrix is not None:
        return matrix
    if op == "RNN":
        # every parameter is used once for each time step and sample: data is (steps, batch, size)
        if len(inputs) < 2 or len(inputs[0]) < 2:
            return 0.0
        return 2.0 * _product(inputs[1]) * inputs[0][0] * inputs[0][1]
    if op in ("Pooling", "Pooling_v1"):
        if _true(attrs, "global_pool"):
            return float(read)
        return float(out * _product(_tuple(attrs, "kernel") or (1,)))
    if op in _REDUCTIONS:
        return float(_REDUCTIONS[op] * read)
    if op == "LRN":
        # a sum of squares over nsize channels (5 unless told), a power and a product
        return float((2 * _number(attrs, "nsize", 5) + 6) * out)
    if op == "UpSampling" and attrs.get("sample_type") == "bilinear" and len(inputs) > 1:
        return 2.0 * read * _product(inputs[1][1:])  # runs as a transposed convolution
    if op in ("add_n", "ElementWiseSum"):
        return float(out * max(1, len(inputs) - 1))
    if op in ("Activation", "LeakyReLU"):
        return float(_ACTIVATIONS.get(attrs.get("act_type", "leaky"), 1) * out)
    if op in _PER_ELEMENT:
        return float(_PER_ELEMENT[op] * out)
    return float(sum(_product(shape) for shape in outputs))


def _matrix_flops(
    op: str, attrs: Mapping[str, str], inputs: Sequence[Shape], outputs: Sequence[Shape]
) -> float | None:
    """FLOPs of the matrix products that the plain rule does not cover; None for all else."""
    out = _product(outputs[0])
    if op.startswith("_contrib_interleaved_matmul_"):
        heads = max(1, _number(attrs, "heads", 1))
        if not inputs or not inputs[0] or not outputs[0]:
            return 0.0
        if op.endswith("selfatt_qk"):  # queries, keys and values side by side
            return 2.0 * out * (inputs[0][-1] // (3 * heads))
        if op.endswith("encdec_qk"):
            return 2.0 * out * (inputs[0][-1] // heads)
        return 2.0 * out * inputs[-1][-1] if inputs[-1] else 0.0  # attention times values
    if op == "_npi_dot":
        return 2.0 * out * inputs[0][-1] if inputs and inputs[0] else 0.0
    if op == "_npi_tensordot":
        axes = _tuple(attrs, "a_axes_summed")
        rank = len(inputs[0])
        return 2.0 * out * _product([inputs[0][a] for a in axes if -rank <= a < rank])
    if op == "_npi_tensordot_int_axes":
        count = _number(attrs, "axes", 2)
        return 2.0 * out * _product(inputs[0][len(inputs[0]) - count :]) if count else float(out)
    if op == "_npi_einsum":
        return _einsum_flops(attrs.get("subscripts", ""), inputs, out)
    if op == "_linalg_syrk" and len(inputs[0]) > 1:
        return 2.0 * out * inputs[0][-2 if _true(attrs, "transpose") else -1]
    if op in ("_linalg_trmm", "_linalg_trsm") and inputs[0]:
        return float(out * inputs[0][-1])  # half of the matrix is zero
    if op in ("_linalg_potrf", "_linalg_potri") and inputs[0]:
        return out * inputs[0][-1] / 3.0
    if op == "Correlation":
        kernel = _number(attrs, "kernel_size", 1)
        return 2.0 * out * inputs[0][1] * kernel * kernel if len(inputs[0]) > 1 else 0.0
    return None


def _einsum_flops(subscripts: str, inputs: Sequence[Shape], out: int) -> float:
    """One product of all operands, and a sum, for each value of all subscripts together."""
    terms = subscripts.strip("'\" ").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    if len(terms) != len(inputs) or "." in subscripts:
        return float(max([out, *(_product(shape) for shape in inputs)]) * max(1, len(inputs)))
    for term, shape in zip(terms, inputs, strict=True):
        for letter, size in zip(term, shape, strict=False):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return float(max(1, len(inputs)) * _product(list(sizes.values())))


def backward_flops(
    op: str, inputs: Sequence[Shape], outputs: Sequence[Shape], forward: float
) -> float:
    """FLOPs of one run of a backward operator.

    Args:
        op: the backward operator's name.
        inputs: shapes of what it reads.
        outputs: shapes of what it makes.
        forward: FLOPs of its forward operator.
    """
    if op.startswith("_backward_") and forward > 0:
        return 2.0 * forward
    if op in _FREE or not outputs:
        return 0.0
    if op in ("add_n", "_grad_add", "elemwise_add"):
        return float(_product(outputs[0]) * max(1, len(inputs) - 1))
    return float(_product(outputs[0]))
