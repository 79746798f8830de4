"""Elementwise operators: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import elementwise as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import torch_type

_UNARY: dict[str, Any] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Sigmoid": torch.sigmoid,
    "Relu": F.relu,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
}
_BINARY: dict[str, Any] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Equal": torch.eq,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
}
_LOGIC: dict[str, Any] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
# What to call with the arguments in the other order.
_SWAPPED: dict[str, Any] = {
    "Add": torch.add,
    "Mul": torch.mul,
    "Sub": torch.rsub,
    "Equal": torch.eq,
    "Less": torch.gt,
    "LessOrEqual": torch.ge,
    "Greater": torch.lt,
    "GreaterOrEqual": torch.le,
}
_NARY: dict[str, tuple[Any, Any]] = {
    "Sum": (torch.add, functions.sum_of),
    "Mean": (functions.mean_of, functions.mean_of),
    "Max": (torch.maximum, functions.maximum_of),
    "Min": (torch.minimum, functions.minimum_of),
}
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


@operator(*_UNARY)
def unary(site: Site) -> Result:
    return Call(_UNARY[site.node.op_type], (site.value(0),))


@operator(*_BINARY)
def binary(site: Site) -> Result:
    """A scalar constant becomes a number: the backward saves nothing for it."""
    left, right = site.scalar(0, 1), site.scalar(1, 0)
    kind = site.node.op_type
    if isinstance(left, (int, float)):
        return Call(_SWAPPED[kind], (right, left))
    return Call(_BINARY[kind], (left, right))


@operator(*_LOGIC)
def logic(site: Site) -> Result:
    return Call(_LOGIC[site.node.op_type], (site.value(0), site.value(1)))


@operator("Div")
def divide(site: Site) -> Result:
    args = (site.value(0), site.scalar(1, 0))
    return Call(torch.div if site.is_float() else functions.divide_integers, args)


@operator("Mod")
def modulo(site: Site) -> Result:
    function = torch.fmod if site.get("fmod", 0) else torch.remainder
    return Call(function, (site.value(0), site.scalar(1, 0)))


@operator("Pow")
def power(site: Site) -> Result:
    base, exponent = site.value(0), site.scalar(1, 0)
    plain = isinstance(exponent, (int, float)) and base.dtype.is_floating_point
    if plain or (not isinstance(exponent, (int, float)) and exponent.dtype == base.dtype):
        return Call(torch.pow, (base, exponent))
    return Call(functions.power, (base, exponent, base.dtype))


@operator("BitShift")
def shift(site: Site) -> Result:
    left = site.get("direction", "") == "LEFT"
    function = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return Call(function, (site.value(0), site.value(1)))


@operator(*_NARY)
def variadic(site: Site) -> Result:
    values = site.values()
    two, many = _NARY[site.node.op_type]
    if len(values) == 1:
        return values[0]
    return Call(two if len(values) == 2 else many, tuple(values))


@operator("Where")
def where(site: Site) -> Result:
    # A number for at most one side, or the type would be lost.
    other = site.scalar(2, 1)
    first = site.value(1) if isinstance(other, (int, float)) else site.scalar(1, 2)
    return Call(torch.where, (site.value(0), first, other))


@operator("Cast")
def cast(site: Site) -> Result:
    return _cast(site, torch_type(site.get("to", 0)))


@operator("CastLike")
def cast_like(site: Site) -> Result:
    return _cast(site, site.dtype(1))


def _cast(site: Site, dtype: torch.dtype) -> Result:
    if site.dtype() == dtype:
        return site.value(0)
    return Call(functions.cast, (site.value(0), dtype))


@operator("Clip")
def clip(site: Site) -> Result:
    """The layer that it was: hardtanh (ReLU6) between two numbers, whose gradient is 0 at them."""
    if "min" in site.attributes or "max" in site.attributes:
        low, high = site.get("min", None), site.get("max", None)
    else:
        for i in (1, 2):
            if site.has(i) and site.value(i).known is None:
                args = (site.value(0), site.optional(1), site.optional(2))
                return Call(functions.clip_by_tensors, args)
        low, high = (site.number(i) if site.has(i) else None for i in (1, 2))
    if low is None and high is None:
        return site.value(0)
    if site.is_float() and low is not None and high is not None and low < high:
        return Call(F.hardtanh, (site.value(0), float(low), float(high)))
    if site.is_float() and low == 0.0 and high is None:
        return Call(F.relu, (site.value(0),))
    return Call(torch.clamp, (site.value(0), low, high))


@operator("Gelu")
def gelu(site: Site) -> Result:
    return Call(F.gelu, (site.value(0),), {"approximate": site.get("approximate", "none")})


@operator("Elu")
def elu(site: Site) -> Result:
    return Call(F.elu, (site.value(0), site.get("alpha", 1.0)))


@operator("Celu")
def celu(site: Site) -> Result:
    return Call(F.celu, (site.value(0), site.get("alpha", 1.0)))


@operator("Selu")
def selu(site: Site) -> Result:
    alpha, gamma = site.get("alpha", _SELU_ALPHA), site.get("gamma", _SELU_GAMMA)
    if abs(alpha - _SELU_ALPHA) < 1e-6 and abs(gamma - _SELU_GAMMA) < 1e-6:
        return Call(F.selu, (site.value(0),))
    return Call(functions.selu, (site.value(0), alpha, gamma))


@operator("LeakyRelu")
def leaky_relu(site: Site) -> Result:
    return Call(F.leaky_relu, (site.value(0), site.get("alpha", 0.01)))


@operator("ThresholdedRelu")
def thresholded_relu(site: Site) -> Result:
    return Call(F.threshold, (site.value(0), site.get("alpha", 1.0), 0.0))


@operator("PRelu")
def prelu(site: Site) -> Result:
    rank, slope = site.rank(), site.shape(1)
    full = (1,) * (rank - len(slope)) + slope
    if rank >= 2 and all(n == 1 for i, n in enumerate(full) if i != 1):
        plain = len(slope) == 1 and full[-1] == 1
        return Call(F.prelu if plain else functions.prelu_channels, (site.value(0), site.value(1)))
    return Call(functions.prelu_broadcast, (site.value(0), site.value(1)))


@operator("HardSigmoid")
def hard_sigmoid(site: Site) -> Result:
    alpha, beta = site.get("alpha", 0.2), site.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return Call(F.hardsigmoid, (site.value(0),))
    return Call(functions.hard_sigmoid, (site.value(0), alpha, beta))


@operator("Swish")
def swish(site: Site) -> Result:
    alpha = site.get("alpha", 1.0)
    if alpha == 1.0:
        return Call(F.silu, (site.value(0),))
    return Call(functions.swish, (site.value(0), alpha))


@operator("Shrink")
def shrink(site: Site) -> Result:
    args = (site.value(0), site.get("bias", 0.0), site.get("lambd", 0.5))
    return Call(functions.shrink, args)


@operator("IsInf")
def is_infinite(site: Site) -> Result:
    signs = bool(site.get("detect_negative", 1)), bool(site.get("detect_positive", 1))
    return Call(functions.is_infinite, (site.value(0), *signs))


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(site: Site) -> Result:
    kind = site.node.op_type
    plain: dict[str, Any] = {
        "Softmax": F.softmax,
        "LogSoftmax": F.log_softmax,
        "Hardmax": functions.hardmax,
    }
    flattened: dict[str, Any] = {
        "Softmax": functions.softmax_flattened,
        "LogSoftmax": functions.log_softmax_flattened,
        "Hardmax": functions.hardmax_flattened,
    }
    axis = site.axis(site.get("axis", -1 if site.opset >= 13 else 1))
    if site.opset < 13 and axis != site.rank() - 1:
        sizes = site.shape()[axis:]
        if sum(size != 1 for size in sizes) > 1:
            return Call(flattened[kind], (site.value(0), axis))
        axis += next((i for i, size in enumerate(sizes) if size != 1), 0)
    return Call(plain[kind], (site.value(0), axis))


@operator("Identity")
def identity(site: Site) -> Result:
    return site.value(0)
