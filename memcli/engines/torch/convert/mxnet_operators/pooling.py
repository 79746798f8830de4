"""Pooling with MXNet's conventions of how many windows there are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions.pooling import (
    average_pool_padded,
    lp_pool_padded,
    max_pool_padded,
)
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor
Ints = tuple[int, ...]

_LAYOUTS = ("NCW", "NCHW", "NCDHW")
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def global_average(x: Tensor) -> Tensor:
    """The mean over all spatial dimensions, which stay with size 1."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_sum(x: Tensor) -> Tensor:
    """The sum over all spatial dimensions, which stay with size 1."""
    return x.sum(tuple(range(2, x.dim())), keepdim=True)


def global_maximum(x: Tensor) -> Tensor:
    """The maximum over all spatial dimensions; its gradient goes to the first one that has it."""
    y = x.reshape(*x.shape[:2], -1).max(2).values
    return y.reshape(*x.shape[:2], *(1,) * (x.dim() - 2))


def global_norm(x: Tensor, p: int) -> Tensor:
    """The p-norm over all spatial dimensions, which stay with size 1."""
    return x.abs().pow(p).sum(tuple(range(2, x.dim())), keepdim=True).pow(1.0 / p)


def sum_pool(x: Tensor, padding: Ints, kernel: Ints, stride: Ints, sizes: Ints) -> Tensor:
    """Sums over ``sizes`` windows; what lies outside of the padded ``x`` counts for nothing."""
    channels = x.shape[:2]
    x = F.pad(x.reshape(-1, 1, *x.shape[2:]), padding)
    room: list[int] = []
    for d in reversed(range(len(kernel))):
        room += [0, max(0, (sizes[d] - 1) * stride[d] + kernel[d] - x.shape[2 + d])]
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    zeros, single = (0,) * len(kernel), (1,) * len(kernel)
    y = torch.convolution(F.pad(x, room), ones, None, stride, zeros, single, False, zeros, 1)
    window = (slice(None), slice(None), *[slice(0, size) for size in sizes])
    y = y[window]
    return y.reshape(*channels, *y.shape[2:])


@operator("Pooling", "Pooling_v1")
def pooling(site: Site) -> Call:
    attributes = site.attributes
    kind = attributes.text("pool_type", "max")
    layout = attributes.text("layout", "NCHW")
    if layout not in _LAYOUTS:
        raise Unsupported(f"layout={layout}")
    x = site.value()
    if attributes.flag("global_pool"):
        if kind == "lp":
            return Call(global_norm, (x, attributes.integer("p_value", 2)))
        return Call({"max": global_maximum, "avg": global_average, "sum": global_sum}[kind], (x,))
    kernel = attributes.ints("kernel")
    rank = len(kernel)
    if rank != site.rank() - 2:
        raise Unsupported(f"a kernel of {rank} dimensions for data of {site.rank()}")
    stride = attributes.ints("stride") or (1,) * rank
    pad = attributes.ints("pad") or (0,) * rank
    convention = attributes.text("pooling_convention", "valid")
    sizes = tuple(
        _windows(size, k, s, p, convention)
        for size, k, s, p in zip(site.shape()[2:], kernel, stride, pad, strict=True)
    )
    for size, count, s, p in zip(site.shape()[2:], sizes, stride, pad, strict=True):
        if (count - 1) * s >= size + p:
            raise Unsupported("a window that lies outside of the data")
    padding = tuple(p for p in reversed(pad) for _ in range(2))
    # PyTorch's own pooling takes padding up to half of the window.
    plain = convention != "same" and all(2 * p <= k for k, p in zip(kernel, pad, strict=True))
    ceil = convention == "full"
    if kind == "max":
        if plain:
            return Call(_MAX[rank], (x, kernel, stride, pad, 1, ceil))
        single = (1,) * rank
        return Call(max_pool_padded, (x, _covering(site, sizes), kernel, stride, single))
    if kind == "avg":
        counted = attributes.flag("count_include_pad", True)
        if plain:
            return Call(_AVERAGE[rank], (x, kernel, stride, pad, ceil, counted))
        single = (1,) * rank
        return Call(average_pool_padded, (x, padding, kernel, stride, single, sizes, counted))
    if kind == "sum":
        return Call(sum_pool, (x, padding, kernel, stride, sizes))
    if kind == "lp":
        p_value = attributes.integer("p_value", 2)
        return Call(lp_pool_padded, (x, padding, kernel, stride, (1,) * rank, sizes, p_value))
    raise Unsupported(f"pool_type={kind}")


def _windows(size: int, kernel: int, stride: int, pad: int, convention: str) -> int:
    """How many windows there are along a dimension."""
    if convention == "same":
        return math.ceil((size + 2 * pad) / stride)
    room = size + 2 * pad - kernel
    return 1 + (math.ceil(room / stride) if convention == "full" else room // stride)


def _covering(site: Site, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Padding, the last dimension first, under which just the windows of MXNet fit."""
    attributes = site.attributes
    kernel = attributes.ints("kernel")
    stride = attributes.ints("stride") or (1,) * len(kernel)
    pad = attributes.ints("pad") or (0,) * len(kernel)
    padding: list[int] = []
    for size, count, k, s, p in zip(
        site.shape()[2:][::-1], sizes[::-1], kernel[::-1], stride[::-1], pad[::-1], strict=True
    ):
        padding += [p, max(p, (count - 1) * s + k - size - p)]
    return tuple(padding)
