"""Activations, element by element."""

from __future__ import annotations

import math

import numpy as np

from memcli.formats.caffe.building import Tensor
from memcli.formats.caffe.registry import LayerCall, Result, layer

_PLAIN = {"Sigmoid": "Sigmoid", "TanH": "Tanh", "AbsVal": "Abs", "BNLL": "Softplus"}


@layer(*_PLAIN)
def plain(call: LayerCall) -> Result:
    call.take(1)
    return call.result(_PLAIN[call.layer.type], [call.x], call.x.shape)


@layer("ReLU")
def relu(call: LayerCall) -> Result:
    call.take(1)
    slope = call.p.relu_param.negative_slope
    if slope:
        return call.result("LeakyRelu", [call.x], call.x.shape, alpha=slope)
    return call.result("Relu", [call.x], call.x.shape)


@layer("PReLU")
def prelu(call: LayerCall) -> Result:
    call.take(1)
    x = call.x
    if x.rank < 2:
        raise call.wrong(f"takes channels at axis 1; its bottom has the shape {x.shape}")
    if call.p.prelu_param.channel_shared:
        slope = call.weight(0, "slope", (), stored=(1,))
    else:
        slope = call.weight(0, "slope", (x.shape[1],), stored=(x.shape[1], *(1,) * (x.rank - 2)))
    return call.result("PRelu", [x, slope], x.shape)


@layer("ELU")
def elu(call: LayerCall) -> Result:
    call.take(1)
    return call.result("Elu", [call.x], call.x.shape, alpha=call.p.elu_param.alpha)


@layer("ReLU6")
def relu6(call: LayerCall) -> Result:
    call.take(1)
    return _clipped(call, 0.0, 6.0)


@layer("Clip")
def clip(call: LayerCall) -> Result:
    call.take(1)
    p = call.p.clip_param
    if not p.HasField("min") or not p.HasField("max"):
        raise call.wrong("has no min or no max")
    return _clipped(call, p.min, p.max)


def _clipped(call: LayerCall, low: float, high: float) -> Tensor:
    bounds = [call.builder.constant(low), call.builder.constant(high)]
    return call.result("Clip", [call.x, *bounds], call.x.shape)


@layer("Swish")
def swish(call: LayerCall) -> Result:
    """``x * sigmoid(beta * x)``."""
    call.take(1)
    x, beta = call.x, call.p.swish_param.beta
    inner = x if beta == 1 else call.times(x, beta, "beta")
    gate = call.step("sigmoid", "Sigmoid", [inner], x.shape)
    return call.result("Mul", [x, gate], x.shape)


@layer("Power")
def power(call: LayerCall) -> Result:
    """``(shift + scale * x) ^ power``."""
    call.take(1)
    p = call.p.power_param
    return _affine_then(call, p.scale, p.shift, "Pow", p.power if p.power != 1 else None)


@layer("Exp")
def exp(call: LayerCall) -> Result:
    """``base ^ (shift + scale * x)``; without a base, e."""
    call.take(1)
    p = call.p.exp_param
    if p.base != -1 and p.base <= 0:
        raise call.wrong(f"base {p.base} is not positive")
    log = 1.0 if p.base == -1 else math.log(p.base)
    return _affine_then(call, p.scale * log, p.shift * log, "Exp", 0.0)


@layer("Log")
def log(call: LayerCall) -> Result:
    """``log_base(shift + scale * x)``; without a base, e."""
    call.take(1)
    p, x = call.p.log_param, call.x
    if p.base == -1:
        return _affine_then(call, p.scale, p.shift, "Log", 0.0)
    if p.base <= 0 or p.base == 1:
        raise call.wrong(f"base {p.base} is not possible")
    inner = _affine(call, p.scale, p.shift)
    natural = call.step("log", "Log", [inner], x.shape)
    return call.times(natural, 1 / math.log(p.base))


def _affine(call: LayerCall, scale: float, shift: float) -> Tensor:
    x = call.x
    if scale != 1:
        x = call.times(x, scale, "scaled")
    return call.plus(x, shift, "shifted") if shift else x


def _affine_then(
    call: LayerCall, scale: float, shift: float, op: str, exponent: float | None
) -> Tensor:
    """An operator on ``shift + scale * x``; ``exponent`` None: nothing but that."""
    x = call.x
    if exponent is not None:
        inner = [_affine(call, scale, shift)]
        if op == "Pow":
            inner.append(call.builder.constant(exponent))
        return call.result(op, inner, x.shape)
    if scale != 1 and shift:
        return call.plus(call.times(x, scale, "scaled"), shift)
    if scale != 1:
        return call.times(x, scale)
    return call.plus(x, shift) if shift else x


@layer("Threshold")
def threshold(call: LayerCall) -> Result:
    """1 where x is larger; no gradient."""
    call.take(1)
    bound = call.builder.constant(call.p.threshold_param.threshold)
    larger = call.step("larger", "Greater", [call.x, bound], call.x.shape)
    return call.result("Cast", [larger], call.x.shape, to=1)


@layer("Dropout")
def dropout(call: LayerCall) -> Result:
    call.take(1)
    ratio = call.p.dropout_param.dropout_ratio
    if not 0 < ratio < 1:
        raise call.wrong(f"dropout_ratio {ratio} is not between 0 and 1")
    return call.result("Dropout", dropout_inputs(call, call.x, ratio), call.x.shape)


def dropout_inputs(call: LayerCall, x: Tensor, ratio: float) -> list[Tensor | None]:
    """What ONNX's Dropout takes in training."""
    return [x, call.builder.constant(ratio), call.builder.constant(True, np.bool_)]


@layer("Softmax")
def softmax(call: LayerCall) -> Result:
    call.take(1)
    axis = call.axis(call.p.softmax_param.axis)
    return call.result("Softmax", [call.x], call.x.shape, axis=axis)
