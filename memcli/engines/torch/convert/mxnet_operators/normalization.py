"""BatchNorm with MXNet's states, and the normalizations without states."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions.normalization import group_norm_by_group
from memcli.engines.torch.convert.mxnet_operators.registry import STATES, Site, operator
from memcli.engines.torch.convert.values import Unsupported
from memcli.engines.torch.rules import recomputed_by

Tensor = torch.Tensor
_MOVING = {3: "moving_mean", 4: "moving_var"}


def _normalized(
    x: Tensor, gamma: Tensor, beta: Tensor, fixed: bool, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by the batch's statistics, its mean, and its unbiased variance."""
    weight = torch.ones_like(gamma) if fixed else gamma
    # PyTorch hands out the statistics through running ones alone: momentum 1 makes them those
    # of this batch, whatever was there.
    mean, variance = torch.zeros_like(gamma), torch.zeros_like(gamma)
    moved = x if axis == 1 else x.movedim(axis, 1)
    if x.numel() == x.shape[axis]:  # no unbiased variance; the output is beta
        y = torch.batch_norm(moved, weight, beta, None, None, True, 0.0, epsilon, False)
        mean = moved.detach().reshape(-1)
        return (y if axis == 1 else y.movedim(1, axis)), mean, variance
    y = torch.batch_norm(
        moved, weight, beta, mean, variance, True, 1.0, epsilon, torch.backends.cudnn.enabled
    )
    return (y if axis == 1 else y.movedim(1, axis)), mean, variance


def batch_norm_again(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_variance: Tensor,
    fixed: bool,
    axis: int,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """:func:`batch_norm` without touching the moving statistics."""
    return _normalized(x, gamma, beta, fixed, axis, epsilon)[0]


@recomputed_by(batch_norm_again)
def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_variance: Tensor,
    fixed: bool,
    axis: int,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """BatchNorm by the batch's statistics; updates the moving ones in place.

    As MXNet does: ``momentum`` is the weight of the old value, and the moving variance takes the
    population's variance (PyTorch's layer takes the unbiased one). ``fixed``: gamma counts as 1
    and has no gradient.
    """
    y, mean, variance = _normalized(x, gamma, beta, fixed, axis, epsilon)
    count = x.numel() // x.shape[axis]
    with torch.no_grad():
        # a single value has no unbiased variance, and its population's is 0
        population = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
        moving_mean.mul_(momentum).add_(mean.detach(), alpha=1.0 - momentum)
        moving_variance.mul_(momentum).add_(population.detach(), alpha=1.0 - momentum)
    return y


def batch_norm_by_moving(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_variance: Tensor,
    fixed: bool,
    axis: int,
    epsilon: float,
) -> Tensor:
    """BatchNorm by the moving statistics, which stay as they are (``use_global_stats``)."""
    weight = torch.ones_like(gamma) if fixed else gamma
    moved = x if axis == 1 else x.movedim(axis, 1)
    y = F.batch_norm(moved, moving_mean, moving_variance, weight, beta, False, 0.0, epsilon)
    return y if axis == 1 else y.movedim(1, axis)


def layer_norm_along(x: Tensor, gamma: Tensor, beta: Tensor, axis: int, epsilon: float) -> Tensor:
    """LayerNorm along one dimension that is not the last."""
    y = F.layer_norm(x.movedim(axis, -1), gamma.shape, gamma, beta, epsilon)
    return y.movedim(-1, axis)


def instance_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """InstanceNorm by each sample's own statistics."""
    return F.instance_norm(x, None, None, gamma, beta, True, 0.0, epsilon)


def scaled_to_unit_length(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    """``x / sqrt(sum(x^2) + epsilon)`` over ``axes``."""
    return x / torch.sqrt(x.square().sum(axes, keepdim=True) + epsilon)


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """``x (bias + alpha / size sum(x^2))^-beta`` over ``size`` channels around each."""
    squares = F.pad(x.square().unsqueeze(1), (0, 0) * (x.dim() - 2) + (size // 2, size // 2))
    total = squares.unfold(2, size, 1).sum(-1).squeeze(1)
    return x * (total * (alpha / size) + bias).pow(-beta)


@operator("BatchNorm", "BatchNorm_v1", "CuDNNBatchNorm", "_contrib_SyncBatchNorm")
def batch_normalization(site: Site) -> Call:
    site.refuse("output_mean_var")
    attributes = site.attributes
    axis = site.axis(attributes.integer("axis", 1))
    fixed = attributes.flag("fix_gamma", True)
    epsilon, momentum = attributes.number("eps", 1e-3), attributes.number("momentum", 0.9)
    values = tuple(site.value(i) for i in range(5))
    if attributes.flag("use_global_stats"):
        return Call(batch_norm_by_moving, (*values, fixed, axis, epsilon))
    return Call(batch_norm, (*values, fixed, axis, momentum, epsilon))


for _name in ("BatchNorm", "BatchNorm_v1", "CuDNNBatchNorm", "_contrib_SyncBatchNorm"):
    STATES[_name] = _MOVING


@operator("LayerNorm")
def layer_norm(site: Site) -> Call:
    site.refuse("output_mean_var")
    axis = site.axis(site.attributes.integer("axis", -1))
    epsilon = site.attributes.number("eps", 1e-5)
    x, gamma, beta = (site.value(i) for i in range(3))
    if axis == site.rank() - 1:
        return Call(F.layer_norm, (x, site.shape(1), gamma, beta, epsilon))
    return Call(layer_norm_along, (x, gamma, beta, axis, epsilon))


@operator("InstanceNorm")
def instance_normalization(site: Site) -> Call:
    epsilon = site.attributes.number("eps", 1e-3)
    return Call(instance_norm, (site.value(), site.value(1), site.value(2), epsilon))


@operator("GroupNorm")
def group_norm(site: Site) -> Call:
    site.refuse("output_mean_var")
    groups = site.attributes.integer("num_groups", 1)
    epsilon = site.attributes.number("eps", 1e-5)
    values = (site.value(), groups, site.value(1), site.value(2), epsilon)
    return Call(group_norm_by_group, values)


@operator("L2Normalization")
def unit_length(site: Site) -> Call:
    mode = site.attributes.text("mode", "instance")
    rank = site.rank()
    axes = {"instance": range(1, rank), "channel": range(1, 2), "spatial": range(2, rank)}
    if mode not in axes:
        raise Unsupported(f"mode={mode}")
    epsilon = site.attributes.number("eps", 1e-10)
    return Call(scaled_to_unit_length, (site.value(), tuple(axes[mode]), epsilon))


@operator("LRN")
def response_norm(site: Site) -> Call:
    attributes = site.attributes
    size = attributes.integer("nsize", 5)
    alpha, beta = attributes.number("alpha", 1e-4), attributes.number("beta", 0.75)
    bias = attributes.number("knorm", 2.0)
    return Call(local_response_norm, (site.value(), size, alpha, beta, bias))
