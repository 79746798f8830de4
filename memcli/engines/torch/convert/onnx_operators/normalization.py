"""Normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import normalization as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported, Value


@operator("BatchNormalization")
def batch_norm(site: Site) -> Result:
    """Training mode is an attribute from operator set 14 on, before that more than one output."""
    x, scale, bias, mean, variance = (site.value(i) for i in range(5))
    epsilon = site.get("epsilon", 1e-5)
    # ONNX's momentum is the weight of the old statistics, PyTorch's that of the batch's. Exporters
    # subtract the latter from one: rounded, it is to the bit what it was.
    momentum = round(1.0 - site.get("momentum", 0.9), 9)
    training = site.get("training_mode", 0)
    if site.opset < 14:
        training = sum(1 for name in site.node.output if name) > 1
    if not training:
        args = (x, mean, variance, scale, bias, False, momentum, epsilon)
        return Call(F.batch_norm, args)
    if site.is_used(3) or site.is_used(4):
        raise Unsupported("its saved mean or variance is read")
    if len(x.shape) < 2 or x.tensor.numel() == x.shape[1]:
        raise Unsupported(f"training on one value for each channel (its input is {x.shape})")
    reads = site.is_used(1) or site.is_used(2)
    arguments = (x, scale, bias, mean, variance, momentum, epsilon)
    if site.is_state(3) and site.is_state(4):
        if reads:
            return Call(functions.batch_norm_and_statistics, arguments, many=True)
        return Call(functions.batch_norm_training, arguments)
    if reads:
        return Call(functions.batch_norm_pure, arguments, many=True)
    site.note("BatchNormalization in training whose running statistics are no states: not updated")
    return Call(F.batch_norm, (x, None, None, scale, bias, True, momentum, epsilon))


@operator("LayerNormalization")
def layer_norm(site: Site) -> Result:
    x, scale, bias = site.value(0), site.value(1), site.optional(2)
    axis, epsilon = site.axis(site.get("axis", -1)), site.get("epsilon", 1e-5)
    sizes = x.shape[axis:]
    statistics = site.is_used(1) or site.is_used(2)
    if not _covers(sizes, scale, bias):
        function = functions.layer_norm_broadcast
        if statistics:
            args = (x, scale, bias, axis, epsilon)
            return Call(functions.layer_norm_and_statistics, args, many=True)
        return Call(function, (x, scale, bias, axis, epsilon))
    if statistics:
        return Call(torch.native_layer_norm, (x, sizes, scale, bias, epsilon), many=True)
    return Call(F.layer_norm, (x, sizes, scale, bias, epsilon))


@operator("RMSNormalization")
def rms_norm(site: Site) -> Result:
    x, scale = site.value(0), site.value(1)
    axis, epsilon = site.axis(site.get("axis", -1)), site.get("epsilon", 1e-5)
    if _covers(x.shape[axis:], scale, None):
        return Call(F.rms_norm, (x, x.shape[axis:], scale, epsilon))
    return Call(functions.rms_norm_broadcast, (x, scale, axis, epsilon))


@operator("GroupNormalization")
def group_norm(site: Site) -> Result:
    x, scale, bias = (site.value(i) for i in range(3))
    groups, epsilon = site.get("num_groups", 1), site.get("epsilon", 1e-5)
    if scale.shape == (x.shape[1],):
        return Call(F.group_norm, (x, groups, scale, bias, epsilon))
    return Call(functions.group_norm_by_group, (x, groups, scale, bias, epsilon))


@operator("InstanceNormalization")
def instance_norm(site: Site) -> Result:
    x, scale, bias = (site.value(i) for i in range(3))
    args = (x, None, None, scale, bias, True, 0.1, site.get("epsilon", 1e-5))
    return Call(F.instance_norm, args)


@operator("LpNormalization")
def lp_norm(site: Site) -> Result:
    return Call(F.normalize, (site.value(0), site.get("p", 2), site.axis(site.get("axis", -1))))


@operator("LRN")
def local_response_norm(site: Site) -> Result:
    size = site.get("size", 1)
    args = (site.value(0), size, site.get("alpha", 1e-4), site.get("beta", 0.75))
    function = F.local_response_norm if size % 2 else functions.local_response_norm
    return Call(function, (*args, site.get("bias", 1.0)))


@operator("MeanVarianceNormalization")
def mean_variance_norm(site: Site) -> Result:
    return Call(functions.mean_variance_norm, (site.value(0), site.ints_of("axes", (0, 2, 3))))


def _covers(sizes: tuple[int, ...], scale: Value, bias: Value | None) -> bool:
    return scale.shape == sizes and (bias is None or bias.shape == sizes)
