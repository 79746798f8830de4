"""Tensors that no input decides: zeros, ones, ranges, shapes."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Shape, Site, direct, operator
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor


def filled(anchor: Tensor, shape: Shape, value: float, dtype: torch.dtype) -> Tensor:
    """A tensor of one value, on the device of ``anchor`` as those below."""
    return torch.full(shape, value, dtype=dtype, device=anchor.device)


def numbers(
    anchor: Tensor, start: float, step: float, count: int, repeat: int, dtype: torch.dtype
) -> Tensor:
    """``count`` numbers from ``start`` in steps, each ``repeat`` times."""
    values = torch.arange(count, dtype=torch.float64, device=anchor.device) * step + start
    return values.repeat_interleave(repeat).to(dtype)


def numbers_like(x: Tensor, start: float, step: float, axis: int | None, repeat: int) -> Tensor:
    """As many numbers as ``x`` has along ``axis``, or of its shape where that is None."""
    count = x.numel() if axis is None else x.shape[axis]
    places = torch.arange(count, device=x.device) // repeat
    values = (places.double() * step + start).to(x.dtype)
    return values.reshape(x.shape) if axis is None else values


def diagonal(anchor: Tensor, rows: int, columns: int, k: int, dtype: torch.dtype) -> Tensor:
    """Ones on the ``k``-th diagonal."""
    row = torch.arange(rows, device=anchor.device).reshape(-1, 1)
    column = torch.arange(columns, device=anchor.device)
    return (column - row == k).to(dtype)


def shape_of(x: Tensor) -> Tensor:
    """The shape as a tensor of whole numbers."""
    return torch.tensor(x.shape, dtype=torch.int64, device=x.device)


def size_of(x: Tensor) -> Tensor:
    """The number of elements as a tensor of shape (1,)."""
    return torch.tensor([x.numel()], dtype=torch.int64, device=x.device)


def zeros_like(x: Tensor) -> Tensor:
    """Zeros of the shape and type of ``x``."""
    return torch.zeros_like(x)


def ones_like(x: Tensor) -> Tensor:
    """Ones of the shape and type of ``x``."""
    return torch.ones_like(x)


@operator("_zeros", "_ones", "_full")
def constant(site: Site) -> Call:
    shape = site.attributes.ints("shape")
    if 0 in shape or -1 in shape or not shape:
        # what the file leaves open, MXNet finds from those that read it
        if not site.known:
            raise Unsupported(f"shape={shape}: its shape is not known")
        shape = site.known[0]
    value = {"_ones": 1.0, "_full": site.attributes.number("value", 0.0)}.get(site.op, 0.0)
    return Call(filled, (site.anchor(), tuple(shape), value, site.attributes.dtype()))


@operator("_arange")
def arange(site: Site) -> Call:
    attributes = site.attributes
    start, step = attributes.number("start", 0.0), attributes.number("step", 1.0)
    repeat = attributes.integer("repeat", 1)
    if attributes.has("stop"):
        count = max(0, -int(-(attributes.number("stop", 0.0) - start) // step))
    elif attributes.flag("infer_range"):
        if not site.known:
            raise Unsupported("infer_range=True: its shape is not known")
        count = site.known[0][0] // repeat
    else:  # a single number given is where to stop
        count, start = max(0, -int(-start // step)), 0.0
    return Call(numbers, (site.anchor(), start, step, count, repeat, attributes.dtype()))


@operator("_contrib_arange_like")
def arange_like(site: Site) -> Call:
    attributes = site.attributes
    start, step = attributes.number("start", 0.0), attributes.number("step", 1.0)
    axis = attributes.optional("axis")
    axis = None if axis is None else site.axis(axis)
    return Call(numbers_like, (site.value(), start, step, axis, attributes.integer("repeat", 1)))


@operator("_eye")
def eye(site: Site) -> Call:
    rows, columns = site.attributes.integer("N", 1), site.attributes.integer("M", 0)
    k = site.attributes.integer("k", 0)
    return Call(diagonal, (site.anchor(), rows, columns or rows, k, site.attributes.dtype()))


direct(zeros_like, "zeros_like")
direct(ones_like, "ones_like")
direct(shape_of, "shape_array")
direct(size_of, "size_array")
