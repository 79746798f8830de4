"""Reading at positions that are tensors, choosing, and sorting."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, direct, operator
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor


def taken(x: Tensor, index: Tensor, axis: int, wrap: bool) -> Tensor:
    """``x`` at positions along ``axis``; those outside count as the nearest, or wrap around."""
    size = x.shape[axis]
    places = index.long().remainder(size) if wrap else index.long().clamp(0, size - 1)
    y = x.index_select(axis, places.reshape(-1))
    return y.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def picked(x: Tensor, index: Tensor, axis: int, keep: bool, wrap: bool) -> Tensor:
    """One element along ``axis`` for each position in ``index``."""
    size = x.shape[axis]
    places = index.long().remainder(size) if wrap else index.long().clamp(0, size - 1)
    places = places.reshape(*x.shape[:axis], 1, *x.shape[axis + 1 :])
    y = x.gather(axis, places)
    if keep:
        return y
    y = y.squeeze(axis)
    return y.reshape(1) if y.dim() == 0 else y


def gathered(x: Tensor, index: Tensor) -> Tensor:
    """``x`` at the coordinates in the first dimension of ``index``."""
    parts = tuple(
        part.clamp(0, size - 1) for part, size in zip(index.long().unbind(0), x.shape, strict=False)
    )
    return x[parts]


def scattered(values: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros with ``values`` at the coordinates in the first dimension of ``index``."""
    zeros = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return zeros.index_put(tuple(index.long().unbind(0)), values)


def one_hot(index: Tensor, depth: int, on: float, off: float, dtype: torch.dtype) -> Tensor:
    """``on`` at the position along a new last dimension, ``off`` elsewhere."""
    hot = index.long().unsqueeze(-1) == torch.arange(depth, device=index.device)
    result = torch.full(hot.shape, off, dtype=dtype, device=index.device)
    return result.masked_fill(hot, on)


def chosen(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``x`` where ``condition`` is not 0, else ``y``; it may be a vector that chooses rows."""
    hot = condition != 0
    if hot.dim() == 1 and x.dim() > 1:
        hot = hot.reshape(-1, *(1,) * (x.dim() - 1))
    return torch.where(hot, x, y)


def order(x: Tensor, axis: int, ascending: bool, dtype: torch.dtype) -> Tensor:
    """The positions that sort ``x`` along ``axis``, as numbers of type ``dtype``."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(dtype)


def ordered(x: Tensor, axis: int, ascending: bool) -> Tensor:
    """``x`` sorted along ``axis``."""
    return torch.sort(x, dim=axis, descending=not ascending, stable=True).values


def first_ones(
    x: Tensor, count: int, axis: int, ascending: bool, kind: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The ``count`` largest (smallest) along ``axis``: values, positions, both or a mask."""
    values, places = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    values, places = values.narrow(axis, 0, count), places.narrow(axis, 0, count)
    if kind == "mask":
        return (torch.zeros_like(x).scatter(axis, places, 1.0),)
    if kind == "value":
        return (values,)
    return (values, places.to(dtype)) if kind == "both" else (places.to(dtype),)


@operator("take")
def take(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("axis", 0))
    wrap = site.attributes.text("mode", "clip") == "wrap"
    return Call(taken, (site.value(), site.value(1), axis, wrap))


@operator("pick", "choose_element_0index")
def pick(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("axis", -1))
    keep = site.attributes.flag("keepdims")
    wrap = site.attributes.text("mode", "clip") == "wrap"
    return Call(picked, (site.value(), site.value(1), axis, keep, wrap))


@operator("batch_take")
def batch_take(site: Site) -> Call:
    return Call(picked, (site.value(), site.value(1), 1, False, False))


@operator("scatter_nd")
def scatter(site: Site) -> Call:
    return Call(scattered, (site.value(), site.value(1), site.attributes.ints("shape")))


@operator("one_hot")
def hot(site: Site) -> Call:
    attributes = site.attributes
    on, off = attributes.number("on_value", 1.0), attributes.number("off_value", 0.0)
    depth = attributes.integer("depth", 1)
    return Call(one_hot, (site.value(), depth, on, off, attributes.dtype()))


@operator("argsort")
def argsort(site: Site) -> Call:
    axis = site.axis(_axis(site))
    ascending = site.attributes.flag("is_ascend", True)
    return Call(order, (site.value(), axis, ascending, site.attributes.dtype()))


@operator("sort")
def sort(site: Site) -> Call:
    axis = site.axis(_axis(site))
    return Call(ordered, (site.value(), axis, site.attributes.flag("is_ascend", True)))


@operator("topk")
def top(site: Site) -> Call:
    axis = site.axis(_axis(site))
    count = site.attributes.integer("k", 1)
    count = count if count > 0 else site.shape()[axis]
    kind = site.attributes.text("ret_typ", "indices")
    ascending = site.attributes.flag("is_ascend")
    dtype = site.attributes.dtype()
    return Call(first_ones, (site.value(), count, axis, ascending, kind, dtype), many=True)


def _axis(site: Site) -> int:
    """The axis attribute of the sorting operators, -1 unless set."""
    if site.attributes.has("axis"):
        return site.attributes.integer("axis", -1)
    if site.attributes.text("axis", "-1") == "-1" and site.rank() > 0:
        return -1
    raise Unsupported("axis=None")


direct(chosen, "where")
direct(gathered, "gather_nd")
