"""Reductions; MXNet has no tensors of no dimension, so the sum of all has shape (1,)."""

from __future__ import annotations

from typing import Any

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor
Ints = tuple[int, ...]


class _Extreme(torch.autograd.Function):
    """Maximum or minimum whose gradient goes in full to every element that has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: Ints, keep: bool, lowest: bool) -> Tensor:
        y = x.amin(axes, keepdim=True) if lowest else x.amax(axes, keepdim=True)
        ctx.save_for_backward(x, y)
        ctx.shape = y.shape
        return y.clone() if keep else _at_least_one(y.squeeze(axes).clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, y = ctx.saved_tensors
        return (x == y).to(x.dtype) * gradients[0].reshape(ctx.shape), None, None, None


def total(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    """The sum over ``axes``."""
    return _at_least_one(torch.sum(x, axes, keep, dtype=x.dtype))


def average(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    """The mean over ``axes``."""
    return _at_least_one(torch.mean(x, axes, keep))


def product(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    """The product over ``axes``."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return _at_least_one(x)


def total_of_numbers(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    """The sum over ``axes``, what is no number counting as 0."""
    return _at_least_one(torch.nansum(x, axes, keep))


def maximum(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    """The maximum over ``axes``."""
    return _Extreme.apply(x, axes, keep, False)


def minimum(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    """The minimum over ``axes``."""
    return _Extreme.apply(x, axes, keep, True)


def norm(x: Tensor, axes: Ints, keep: bool, order: int) -> Tensor:
    """The sum of absolute values (1) or the root of the sum of squares (2) over ``axes``."""
    return _at_least_one(torch.linalg.vector_norm(x, order, axes, keep))


def total_of_squares(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    """The sum of squares over ``axes``."""
    return _at_least_one(torch.sum(x.square(), axes, keep))


def position(x: Tensor, axis: int | None, keep: bool, lowest: bool, dtype: torch.dtype) -> Tensor:
    """Where the maximum (minimum) first stands, as a number of type ``dtype``."""
    function = torch.argmin if lowest else torch.argmax
    if axis is None:
        return function(x.reshape(-1)).reshape(1).to(dtype)
    return _at_least_one(function(x, axis, keep).to(dtype))


def _at_least_one(x: Tensor) -> Tensor:
    return x.reshape(1) if x.dim() == 0 else x


_FUNCTIONS = {
    "sum": total,
    "sum_axis": total,
    "mean": average,
    "prod": product,
    "nansum": total_of_numbers,
    "max": maximum,
    "max_axis": maximum,
    "min": minimum,
    "min_axis": minimum,
    "_square_sum": total_of_squares,
}


def axes_of(site: Site) -> Ints:
    """The dimensions that a reduction goes over."""
    rank = site.rank()
    named = sorted({site.axis(axis) for axis in site.attributes.ints("axis")})
    if site.attributes.flag("exclude"):
        return tuple(axis for axis in range(rank) if axis not in named)
    return tuple(named) or tuple(range(rank))


@operator(*_FUNCTIONS)
def reduction(site: Site) -> Call:
    keep = site.attributes.flag("keepdims")
    return Call(_FUNCTIONS[site.op], (site.value(), axes_of(site), keep))


@operator("norm")
def norm_over(site: Site) -> Call:
    order = site.attributes.integer("ord", 2)
    if order not in (1, 2):
        raise Unsupported(f"ord={order}")
    keep = site.attributes.flag("keepdims")
    return Call(norm, (site.value(), axes_of(site), keep, order))


@operator("argmax", "argmin")
def place(site: Site) -> Call:
    axis = site.attributes.optional("axis")
    keep = site.attributes.flag("keepdims")
    if axis is not None:
        axis = site.axis(axis)
    return Call(position, (site.value(), axis, keep, site.op == "argmin", site.dtype()))


@operator("argmax_channel")
def channel(site: Site) -> Call:
    return Call(position, (site.value(), 1, False, False, site.dtype()))
