"""Elementwise functions of ONNX that PyTorch spells differently."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as another type."""
    return x.to(dtype)


def divide_integers(x: Tensor, y: Tensor) -> Tensor:
    """Division of integers, rounded towards zero."""
    return torch.div(x, y, rounding_mode="trunc")


def power(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """``x ** y`` with the type of ``x``, whatever that of ``y``."""
    return torch.pow(x, y).to(dtype)


def sum_of(*tensors: Tensor) -> Tensor:
    """The sum of tensors that broadcast to each other."""
    return reduce(torch.add, tensors)


def mean_of(*tensors: Tensor) -> Tensor:
    """The mean of tensors that broadcast to each other."""
    return reduce(torch.add, tensors) / len(tensors)


def maximum_of(*tensors: Tensor) -> Tensor:
    """The elementwise maximum of tensors that broadcast to each other."""
    return reduce(torch.maximum, tensors)


def minimum_of(*tensors: Tensor) -> Tensor:
    """The elementwise minimum of tensors that broadcast to each other."""
    return reduce(torch.minimum, tensors)


def clip_by_tensors(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """``x`` within bounds that are tensors; ``high`` wins where they cross."""
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def prelu_broadcast(x: Tensor, slope: Tensor) -> Tensor:
    """PReLU with a slope that broadcasts to ``x`` in another way than along the channels."""
    return torch.where(x >= 0, x, x * slope)


def prelu_channels(x: Tensor, slope: Tensor) -> Tensor:
    """PReLU with one slope for each channel (dimension 1), or one for all."""
    return F.prelu(x, slope.reshape(-1))


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``max(0, min(1, alpha x + beta))``."""
    return F.hardtanh(x * alpha + beta, 0.0, 1.0)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """SELU with constants of its own: ``gamma (x if x > 0 else alpha (e^x - 1))``."""
    return F.elu(x, alpha) * gamma


def swish(x: Tensor, alpha: float) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(x * alpha)


def shrink(x: Tensor, bias: float, limit: float) -> Tensor:
    """``x`` pulled towards zero by ``bias`` outside ``limit``; zero within."""
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


def is_infinite(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Where ``x`` is infinite, of the signs asked for."""
    if negative and positive:
        return torch.isinf(x)
    if not negative and not positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf(x) if negative else torch.isposinf(x)


def softmax_flattened(x: Tensor, axis: int) -> Tensor:
    """Softmax before operator set 13: over all dimensions from ``axis`` on together."""
    return F.softmax(x.flatten(axis), -1).reshape(x.shape)


def log_softmax_flattened(x: Tensor, axis: int) -> Tensor:
    """LogSoftmax before operator set 13: over all dimensions from ``axis`` on together."""
    return F.log_softmax(x.flatten(axis), -1).reshape(x.shape)


def hardmax(x: Tensor, axis: int) -> Tensor:
    """One at the first maximum along ``axis``, zero elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def hardmax_flattened(x: Tensor, axis: int) -> Tensor:
    """Hardmax before operator set 13: over all dimensions from ``axis`` on together."""
    return hardmax(x.flatten(axis), -1).reshape(x.shape)
