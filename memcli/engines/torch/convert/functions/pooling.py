"""Pooling windows that PyTorch's own functions do not take."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Ints = tuple[int, ...]

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def max_pool_padded(x: Tensor, padding: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> Tensor:
    """The maximum over windows of ``x`` padded by the lowest value of its type."""
    x = F.pad(x, padding, value=_lowest(x.dtype))
    return _MAX[len(kernel)](x, kernel, stride, 0, dilation)


def max_pool_of_integers(
    x: Tensor, padding: Ints, kernel: Ints, stride: Ints, dilation: Ints
) -> Tensor:
    """The same for integers, which PyTorch does not pool; exact up to 2^53."""
    y = max_pool_padded(x.double(), padding, kernel, stride, dilation)
    return y.to(x.dtype)


def max_pool_indices(
    x: Tensor,
    before: Ints,
    after: Ints,
    kernel: Ints,
    stride: Ints,
    dilation: Ints,
    column_major: bool,
) -> tuple[Tensor, Tensor]:
    """The maxima, and their positions in the whole of ``x`` as one dimension."""
    rank = len(kernel)
    pads = tuple(n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair)
    padded = F.pad(x, pads, value=_lowest(x.dtype))
    y, flat = _MAX[rank](padded, kernel, stride, 0, dilation, return_indices=True)
    sizes, padded_sizes = x.shape[2:], padded.shape[2:]
    places = []
    for size, room in zip(reversed(padded_sizes), reversed(before), strict=True):
        places.append(flat % size - room)
        flat = torch.div(flat, size, rounding_mode="floor")
    places.reverse()
    order = range(rank - 1, -1, -1) if column_major else range(rank)
    position = torch.zeros_like(places[0])
    for d in order:
        position = position * sizes[d] + places[d]
    maps = torch.arange(math.prod(x.shape[:2]), device=x.device).reshape(*x.shape[:2], *(1,) * rank)
    return y, position + maps * math.prod(sizes)


def average_pool_padded(
    x: Tensor,
    padding: Ints,
    kernel: Ints,
    stride: Ints,
    dilation: Ints,
    sizes: Ints,
    include_pad: bool,
) -> Tensor:
    """The mean over windows of any padding and dilation, ``sizes`` of them for each dimension.

    The last windows may lie partly outside of what is padded; what lies there counts for nothing.
    """
    channels = x.shape[:2]
    x = x.reshape(-1, 1, *x.shape[2:])
    inside = torch.ones_like(x[:1])
    padded = F.pad(x, padding)
    counted = F.pad(inside, padding, value=1.0) if include_pad else F.pad(inside, padding)
    room: list[int] = []
    for d in reversed(range(len(kernel))):
        need = (sizes[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1
        room += [0, max(0, need - padded.shape[2 + d])]
    padded, counted = F.pad(padded, room), F.pad(counted, room)
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    zeros = (0,) * len(kernel)
    total = torch.convolution(padded, ones, None, stride, zeros, dilation, False, zeros, 1)
    count = torch.convolution(counted, ones, None, stride, zeros, dilation, False, zeros, 1)
    window = (slice(None), slice(None), *[slice(0, size) for size in sizes])
    mean = total[window] / count[window]
    return mean.reshape(*channels, *mean.shape[2:])


def lp_pool_padded(
    x: Tensor, padding: Ints, kernel: Ints, stride: Ints, dilation: Ints, sizes: Ints, p: int
) -> Tensor:
    """The p-norm over windows: ``(Σ |x|^p)^(1/p)``."""
    channels = x.shape[:2]
    x = F.pad(x.abs().pow(p).reshape(-1, 1, *x.shape[2:]), padding)
    room: list[int] = []
    for d in reversed(range(len(kernel))):
        need = (sizes[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1
        room += [0, max(0, need - x.shape[2 + d])]
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    zeros = (0,) * len(kernel)
    y = torch.convolution(F.pad(x, room), ones, None, stride, zeros, dilation, False, zeros, 1)
    window = (slice(None), slice(None), *[slice(0, size) for size in sizes])
    y = y[window].pow(1.0 / p)
    return y.reshape(*channels, *y.shape[2:])


def global_max_pool(x: Tensor) -> Tensor:
    """The maximum over all spatial dimensions, which stay with size 1."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def global_lp_pool(x: Tensor, p: int) -> Tensor:
    """The p-norm over all spatial dimensions, which stay with size 1."""
    return torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), keepdim=True)


def _lowest(dtype: torch.dtype) -> float:
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min
