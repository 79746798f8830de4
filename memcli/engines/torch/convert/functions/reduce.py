"""Reductions of ONNX that PyTorch spells differently."""

from __future__ import annotations

import torch

Tensor = torch.Tensor
Ints = tuple[int, ...]


def summed(x: Tensor, axes: Ints, keepdim: bool) -> Tensor:
    """The sum, of the type of ``x`` also where that is a small integer."""
    return torch.sum(x, axes, keepdim, dtype=x.dtype)


def mean_of_integers(x: Tensor, axes: Ints, keepdim: bool) -> Tensor:
    """The mean, rounded towards zero to the type of ``x``."""
    return torch.mean(x.double(), axes, keepdim).to(x.dtype)


def multiplied(x: Tensor, axes: Ints, keepdim: bool) -> Tensor:
    """The product."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim, dtype=x.dtype)
    return x


def highest_of_none(x: Tensor, axes: Ints, keepdim: bool, lowest: bool) -> Tensor:
    """Maximum (or minimum) over empty dimensions: the least (or largest) value of the type."""
    if x.dtype.is_floating_point:
        value: float = float("inf") if lowest else -float("inf")
    elif x.dtype is torch.bool:
        value = lowest
    else:
        value = torch.iinfo(x.dtype).max if lowest else torch.iinfo(x.dtype).min
    shape = [1 if d in axes else size for d, size in enumerate(x.shape) if keepdim or d not in axes]
    return x.new_full(shape, value)


def norm(x: Tensor, order: int, axes: Ints, keepdim: bool) -> Tensor:
    """The sum of absolute values (1) or the root of the sum of squares (2)."""
    if not x.dtype.is_floating_point:
        return torch.linalg.vector_norm(x.double(), order, axes, keepdim).to(x.dtype)
    return torch.linalg.vector_norm(x, order, axes, keepdim)


def sum_of_squares(x: Tensor, axes: Ints, keepdim: bool) -> Tensor:
    """The sum of squares."""
    return torch.sum(x * x, axes, keepdim, dtype=x.dtype)


def log_of_sum(x: Tensor, axes: Ints, keepdim: bool) -> Tensor:
    """The logarithm of the sum."""
    return torch.log(torch.sum(x, axes, keepdim))


def log_of_sum_of_exponentials(x: Tensor, axes: Ints, keepdim: bool) -> Tensor:
    """The logarithm of the sum of exponentials; of integers rounded to them."""
    if not x.dtype.is_floating_point:
        return torch.logsumexp(x.double(), axes, keepdim).to(x.dtype)
    return torch.logsumexp(x, axes, keepdim)


def position_of_last(x: Tensor, axis: int, keepdim: bool, lowest: bool) -> Tensor:
    """The last position of the maximum (or minimum) along ``axis``."""
    x = x.flip(axis)
    found = torch.argmin(x, axis, keepdim) if lowest else torch.argmax(x, axis, keepdim)
    return x.shape[axis] - 1 - found
