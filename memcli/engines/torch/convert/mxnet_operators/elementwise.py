"""Elementwise functions of one tensor, of two, and of many."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions.elementwise import cast, sum_of
from memcli.engines.torch.convert.mxnet_operators.registry import Site, direct, operator

Tensor = torch.Tensor


def identity(x: Tensor) -> Tensor:
    """``x`` itself, as a view."""
    return x.view_as(x)


def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The larger one; where both are equal the gradient goes to ``x`` alone."""
    return torch.where(x >= y, x, y)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller one; where both are equal the gradient goes to ``x`` alone."""
    return torch.where(x <= y, x, y)


def power(x: Tensor, y: Tensor) -> Tensor:
    """``x ** y``."""
    return torch.pow(x, y)


def equal(x: Tensor, y: Tensor) -> Tensor:
    """1 where equal, else 0, in the type of ``x``; so do the comparisons below."""
    return torch.eq(x, y).to(x.dtype)


def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.ne(x, y).to(x.dtype)


def greater(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.gt(x, y).to(x.dtype)


def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.ge(x, y).to(x.dtype)


def lesser(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.lt(x, y).to(x.dtype)


def lesser_equal(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.le(x, y).to(x.dtype)


def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.logical_and(x, y).to(x.dtype)


def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.logical_or(x, y).to(x.dtype)


def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`equal`."""
    return torch.logical_xor(x, y).to(x.dtype)


def logical_not(x: Tensor) -> Tensor:
    """1 where ``x`` is 0, else 0."""
    return torch.logical_not(x).to(x.dtype)


def rounded_away(x: Tensor) -> Tensor:
    """The nearest whole number, halves away from zero."""
    return torch.sign(x) * torch.floor(torch.abs(x) + 0.5)


def nearest_whole(x: Tensor) -> Tensor:
    """The nearest whole number, halves downwards."""
    return torch.ceil(x - 0.5)


def cube_root(x: Tensor) -> Tensor:
    """The real cube root."""
    return torch.sign(x) * torch.pow(torch.abs(x), 1.0 / 3.0)


def reciprocal_cube_root(x: Tensor) -> Tensor:
    """``1 / cbrt(x)``."""
    return torch.sign(x) * torch.pow(torch.abs(x), -1.0 / 3.0)


def gamma_function(x: Tensor) -> Tensor:
    """The gamma function of positive numbers."""
    return torch.exp(torch.lgamma(x))


def smooth_l1(x: Tensor, sigma: float) -> Tensor:
    """``(sigma x)^2 / 2`` within ``1 / sigma^2`` of zero, ``|x| - 1 / (2 sigma^2)`` outside."""
    beta = 1.0 / sigma**2
    return F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none", beta=beta)


def clipped(x: Tensor, low: float, high: float) -> Tensor:
    """``x`` within bounds."""
    return torch.clamp(x, low, high)


def widest(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors as the widest type among them."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def narrowest(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors as the narrowest type among them."""
    dtype = min((tensor.dtype for tensor in tensors), key=lambda kind: kind.itemsize)
    return tuple(tensor.to(dtype) for tensor in tensors)


def divided_by_root_of_size(x: Tensor) -> Tensor:
    """``x`` divided by the root of its last dimension."""
    return x / math.sqrt(x.shape[-1])


for _function, *_names in (
    (identity, "_copy", "identity"),
    (
        torch.add,
        "elemwise_add",
        "_plus",
        "_Plus",
        "_add",
        "broadcast_add",
        "broadcast_plus",
        "_grad_add",
    ),
    (torch.sub, "elemwise_sub", "_minus", "_Minus", "_sub", "broadcast_sub", "broadcast_minus"),
    (torch.mul, "elemwise_mul", "_mul", "_Mul", "broadcast_mul"),
    (torch.div, "elemwise_div", "_div", "_Div", "broadcast_div"),
    (torch.remainder, "_mod", "_Mod", "broadcast_mod"),
    (power, "_power", "_Power", "broadcast_power"),
    (maximum, "_maximum", "_Maximum", "broadcast_maximum"),
    (minimum, "_minimum", "_Minimum", "broadcast_minimum"),
    (torch.hypot, "_hypot", "broadcast_hypot"),
    (equal, "_equal", "_Equal", "broadcast_equal"),
    (not_equal, "_not_equal", "_Not_Equal", "broadcast_not_equal"),
    (greater, "_greater", "_Greater", "broadcast_greater"),
    (greater_equal, "_greater_equal", "_Greater_Equal", "broadcast_greater_equal"),
    (lesser, "_lesser", "_Lesser", "broadcast_lesser"),
    (lesser_equal, "_lesser_equal", "_Lesser_Equal", "broadcast_lesser_equal"),
    (logical_and, "_logical_and", "_Logical_And", "broadcast_logical_and"),
    (logical_or, "_logical_or", "_Logical_Or", "broadcast_logical_or"),
    (logical_xor, "_logical_xor", "_Logical_Xor", "broadcast_logical_xor"),
    (sum_of, "add_n", "ElementWiseSum", "_sum"),
    (logical_not, "logical_not"),
    (torch.square, "square"),
    (torch.sqrt, "sqrt"),
    (torch.rsqrt, "rsqrt"),
    (torch.exp, "exp"),
    (torch.log, "log"),
    (torch.log2, "log2"),
    (torch.log10, "log10"),
    (torch.log1p, "log1p"),
    (torch.expm1, "expm1"),
    (torch.abs, "abs"),
    (torch.sign, "sign"),
    (torch.neg, "negative"),
    (torch.floor, "floor"),
    (torch.ceil, "ceil"),
    (torch.trunc, "trunc", "fix"),
    (rounded_away, "round"),
    (nearest_whole, "rint"),
    (torch.reciprocal, "reciprocal"),
    (cube_root, "cbrt"),
    (reciprocal_cube_root, "rcbrt"),
    (torch.sin, "sin"),
    (torch.cos, "cos"),
    (torch.tan, "tan"),
    (torch.arcsin, "arcsin"),
    (torch.arccos, "arccos"),
    (torch.arctan, "arctan"),
    (torch.sinh, "sinh"),
    (torch.cosh, "cosh"),
    (torch.tanh, "tanh"),
    (torch.arcsinh, "arcsinh"),
    (torch.arccosh, "arccosh"),
    (torch.arctanh, "arctanh"),
    (torch.erf, "erf"),
    (torch.erfinv, "erfinv"),
    (torch.lgamma, "gammaln"),
    (gamma_function, "gamma"),
    (torch.deg2rad, "radians"),
    (torch.rad2deg, "degrees"),
    (divided_by_root_of_size, "_contrib_div_sqrt_dim"),
):
    direct(_function, *_names)


@operator("smooth_l1")
def smooth(site: Site) -> Call:
    return Call(smooth_l1, (site.value(), site.attributes.number("scalar", 1.0)))


@operator("clip")
def clip(site: Site) -> Call:
    low, high = site.attributes.number("a_min", 0.0), site.attributes.number("a_max", 0.0)
    return Call(clipped, (site.value(), low, high))


@operator("Cast", "cast", "amp_cast")
def casted(site: Site) -> Call:
    return Call(cast, (site.value(), site.attributes.dtype()))


@operator("amp_multicast")
def multicast(site: Site) -> Call:
    function = narrowest if site.attributes.flag("cast_narrow") else widest
    return Call(function, tuple(site.inputs), many=True)
