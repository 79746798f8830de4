"""Normalizations: BatchNorm with its states, and those that PyTorch has not in this form."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.rules import recomputed_by

Tensor = torch.Tensor


def batch_norm_again(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """:func:`batch_norm_training` without touching the running statistics."""
    return F.batch_norm(x, None, None, scale, bias, True, momentum, epsilon)


@recomputed_by(batch_norm_again)
def batch_norm_training(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """BatchNorm by the batch's statistics; updates ``mean`` and ``variance`` in place.

    As PyTorch's layer does, which exports come from: the running variance takes the unbiased
    variance (ONNX's text says the population's), ``momentum`` is the weight of the batch.
    """
    return F.batch_norm(x, mean, variance, scale, bias, True, momentum, epsilon)


def batch_norm_and_statistics_again(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm_and_statistics` once the statistics are updated."""
    y = F.batch_norm(x, None, None, scale, bias, True, momentum, epsilon)
    return y, mean.clone(), variance.clone()


@recomputed_by(batch_norm_and_statistics_again)
def batch_norm_and_statistics(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm_training`, and copies of the updated statistics."""
    y = F.batch_norm(x, mean, variance, scale, bias, True, momentum, epsilon)
    return y, mean.clone(), variance.clone()


def batch_norm_pure(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for statistics that are no states: new ones are returned, nothing is changed."""
    mean, variance = mean.detach().clone(), variance.detach().clone()
    y = F.batch_norm(x, mean, variance, scale, bias, True, momentum, epsilon)
    return y, mean, variance


def layer_norm_broadcast(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float
) -> Tensor:
    """LayerNorm over the dimensions from ``axis`` on; scale and bias broadcast to ``x``."""
    y = F.layer_norm(x, x.shape[axis:], None, None, epsilon) * scale
    return y if bias is None else y + bias


def layer_norm_and_statistics(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm, and the mean and inverse deviation of each normalized part."""
    y, mean, inverse = torch.native_layer_norm(x, x.shape[axis:], None, None, epsilon)
    y = y * scale
    return y if bias is None else y + bias, mean, inverse


def rms_norm_broadcast(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    """RMSNorm over the dimensions from ``axis`` on; the scale broadcasts to ``x``."""
    return F.rms_norm(x, x.shape[axis:], None, epsilon) * scale


def group_norm_by_group(
    x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """GroupNorm with one scale and bias for each group (operator set 18)."""
    each = x.shape[1] // groups
    return F.group_norm(
        x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon
    )


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Local response normalization over ``size`` channels, of which the rest goes to the right."""
    before = (size - 1) // 2
    squares = F.pad(x.pow(2).unsqueeze(1), (0, 0) * (x.dim() - 2) + (before, size - 1 - before))
    total = squares.unfold(2, size, 1).sum(-1).squeeze(1)
    return x / (total * (alpha / size) + bias).pow(beta)


def mean_variance_norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``(x - mean) / (deviation + 1e-9)`` over ``axes``."""
    mean = x.mean(axes, keepdim=True)
    deviation = (x.pow(2).mean(axes, keepdim=True) - mean.pow(2)).sqrt()
    return (x - mean) / (deviation + 1e-9)
