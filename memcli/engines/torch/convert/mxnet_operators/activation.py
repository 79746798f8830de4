"""Activations: Activation, LeakyReLU in all its kinds, softmax and its relatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions.elementwise import prelu_channels
from memcli.engines.torch.convert.mxnet_operators.registry import Site, direct, operator
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor

_KINDS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softrelu": F.softplus,
    "softsign": F.softsign,
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
}
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
# What stands where a sequence is over: the exponential of it is nothing.
_OUTSIDE = float("-inf")


class _Selu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.elu(x, _SELU_ALPHA) * _SELU_SCALE
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (y,) = ctx.saved_tensors
        slope = torch.where(y > 0, _SELU_SCALE, _SELU_SCALE * (_SELU_ALPHA + y))
        return gradients[0] * slope.to(y.dtype)


def selu(x: Tensor) -> Tensor:
    """SELU with the gradient that MXNet 1.9.1 gives it.

    Below zero that is ``scale (alpha + y)``, where ``scale alpha + y`` would be right.
    """
    return _Selu.apply(x)


def softmax_scaled(x: Tensor, axis: int, temperature: float, dtype: torch.dtype) -> Tensor:
    """``softmax(x / temperature)`` along ``axis``, computed and given as ``dtype``."""
    return F.softmax(x.to(dtype) / temperature, axis)


def softmin(x: Tensor, axis: int, temperature: float, dtype: torch.dtype) -> Tensor:
    """``softmax(-x / temperature)`` along ``axis``."""
    return F.softmax(-x.to(dtype) / temperature, axis)


def log_softmax_scaled(x: Tensor, axis: int, temperature: float, dtype: torch.dtype) -> Tensor:
    """``log(softmax(x / temperature))`` along ``axis``."""
    return F.log_softmax(x.to(dtype) / temperature, axis)


def softmax_of_lengths(
    x: Tensor, lengths: Tensor, axis: int, temperature: float, dtype: torch.dtype
) -> Tensor:
    """Softmax over the first ``lengths`` elements along ``axis``, zero behind them.

    ``lengths`` has the shape of ``x`` without ``axis``.
    """
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    places = torch.arange(x.shape[axis], device=x.device).reshape(shape)
    inside = places < lengths.unsqueeze(axis)
    y = F.softmax((x.to(dtype) / temperature).masked_fill(~inside, _OUTSIDE), axis)
    return y.masked_fill(~inside, 0.0)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``clip(alpha x + beta, 0, 1)``."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("Activation")
def activation(site: Site) -> Call:
    kind = site.attributes.text("act_type")
    if kind not in _KINDS:
        raise Unsupported(f"act_type={kind}")
    return Call(_KINDS[kind], (site.value(),))


@operator("LeakyReLU")
def leaky(site: Site) -> Call:
    kind = site.attributes.text("act_type", "leaky")
    slope = site.attributes.number("slope", 0.25)
    x = site.value()
    if kind == "leaky":
        return Call(F.leaky_relu, (x, slope))
    if kind == "elu":
        return Call(F.elu, (x, slope))
    if kind == "selu":
        return Call(selu, (x,))
    if kind == "gelu":
        return Call(F.gelu, (x,))
    if kind == "prelu":
        # Its backward writes the data's gradient over the output's, where the memory plan has them
        # in one place, and then reads that for the slope's.
        site.note(
            "LeakyReLU prelu: MXNet 1.9.1 multiplies a slope's gradient by the slope where it "
            "works in place; PyTorch's gradient is the right one"
        )
        return Call(prelu_channels, (x, site.value(1)))
    raise Unsupported(f"act_type={kind}" + (": its slopes are random" if kind == "rrelu" else ""))


@operator("hard_sigmoid")
def hard(site: Site) -> Call:
    attributes = site.attributes
    alpha, beta = attributes.number("alpha", 0.2), attributes.number("beta", 0.5)
    return Call(hard_sigmoid, (site.value(), alpha, beta))


@operator("softmax", "softmin", "log_softmax")
def softmax(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("axis", -1))
    temperature = site.attributes.number("temperature", 1.0)
    dtype = site.attributes.dtype() if site.attributes.has("dtype") else site.dtype()
    if site.attributes.flag("use_length"):
        if site.op != "softmax":
            raise Unsupported("use_length=True")
        site.note(
            "softmax with lengths: where MXNet 1.9.1 makes a gradient of the lengths too, it may "
            "write zeros over the gradient of the scores; PyTorch's gradient is the right one"
        )
        return Call(softmax_of_lengths, (site.value(), site.value(1), axis, temperature, dtype))
    if site.op == "softmin":
        return Call(softmin, (site.value(), axis, temperature, dtype))
    if temperature == 1.0 and dtype == site.dtype():
        return Call(F.softmax if site.op == "softmax" else F.log_softmax, (site.value(), axis))
    function = softmax_scaled if site.op == "softmax" else log_softmax_scaled
    return Call(function, (site.value(), axis, temperature, dtype))


@operator("SoftmaxActivation")
def softmax_activation(site: Site) -> Call:
    if site.attributes.text("mode", "instance") == "channel":
        return Call(F.softmax, (site.value(), 1))
    if site.rank() > 2:
        # MXNet 1.9.1 goes over the last dimension forward and over dimension 1 backward.
        raise Unsupported("mode=instance of more than two dimensions: MXNet's gradient is wrong")
    return Call(F.softmax, (site.value(), 1))


direct(torch.relu, "relu", "_npx_relu")
direct(torch.sigmoid, "sigmoid", "_npx_sigmoid")
direct(F.softsign, "softsign")
