"""Activations, element by element."""

from __future__ import annotations

import math

import numpy as np

from memcli.formats.caffe.building import Tensor
from memcli.formats.caffe.registry import Result, Site, layer

_PLAIN = {"Sigmoid": "Sigmoid", "TanH": "Tanh", "AbsVal": "Abs", "BNLL": "Softplus"}


@layer(*_PLAIN)
def plain(site: Site) -> Result:
    site.take(1)
    return site.result(_PLAIN[site.layer.type], [site.x], site.x.shape)


@layer("ReLU")
def relu(site: Site) -> Result:
    site.take(1)
    slope = site.p.relu_param.negative_slope
    if slope:
        return site.result("LeakyRelu", [site.x], site.x.shape, alpha=slope)
    return site.result("Relu", [site.x], site.x.shape)


@layer("PReLU")
def prelu(site: Site) -> Result:
    site.take(1)
    x = site.x
    if x.rank < 2:
        raise site.wrong(f"takes channels at axis 1; its bottom has the shape {x.shape}")
    if site.p.prelu_param.channel_shared:
        slope = site.weight(0, "slope", (), stored=(1,))
    else:
        slope = site.weight(0, "slope", (x.shape[1],), stored=(x.shape[1], *(1,) * (x.rank - 2)))
    return site.result("PRelu", [x, slope], x.shape)


@layer("ELU")
def elu(site: Site) -> Result:
    site.take(1)
    return site.result("Elu", [site.x], site.x.shape, alpha=site.p.elu_param.alpha)


@layer("ReLU6")
def relu6(site: Site) -> Result:
    site.take(1)
    return _clipped(site, 0.0, 6.0)


@layer("Clip")
def clip(site: Site) -> Result:
    site.take(1)
    p = site.p.clip_param
    if not p.HasField("min") or not p.HasField("max"):
        raise site.wrong("has no min or no max")
    return _clipped(site, p.min, p.max)


def _clipped(site: Site, low: float, high: float) -> Tensor:
    bounds = [site.builder.constant(low), site.builder.constant(high)]
    return site.result("Clip", [site.x, *bounds], site.x.shape)


@layer("Swish")
def swish(site: Site) -> Result:
    """``x * sigmoid(beta * x)``."""
    site.take(1)
    x, beta = site.x, site.p.swish_param.beta
    inner = x if beta == 1 else site.times(x, beta, "beta")
    gate = site.step("sigmoid", "Sigmoid", [inner], x.shape)
    return site.result("Mul", [x, gate], x.shape)


@layer("Power")
def power(site: Site) -> Result:
    """``(shift + scale * x) ^ power``."""
    site.take(1)
    p = site.p.power_param
    return _affine_then(site, p.scale, p.shift, "Pow", p.power if p.power != 1 else None)


@layer("Exp")
def exp(site: Site) -> Result:
    """``base ^ (shift + scale * x)``; without a base, e."""
    site.take(1)
    p = site.p.exp_param
    if p.base != -1 and p.base <= 0:
        raise site.wrong(f"base {p.base} is not positive")
    log = 1.0 if p.base == -1 else math.log(p.base)
    return _affine_then(site, p.scale * log, p.shift * log, "Exp", 0.0)


@layer("Log")
def log(site: Site) -> Result:
    """``log_base(shift + scale * x)``; without a base, e."""
    site.take(1)
    p, x = site.p.log_param, site.x
    if p.base == -1:
        return _affine_then(site, p.scale, p.shift, "Log", 0.0)
    if p.base <= 0 or p.base == 1:
        raise site.wrong(f"base {p.base} is not possible")
    inner = _affine(site, p.scale, p.shift)
    natural = site.step("log", "Log", [inner], x.shape)
    return site.times(natural, 1 / math.log(p.base))


def _affine(site: Site, scale: float, shift: float) -> Tensor:
    x = site.x
    if scale != 1:
        x = site.times(x, scale, "scaled")
    return site.plus(x, shift, "shifted") if shift else x


def _affine_then(site: Site, scale: float, shift: float, op: str, exponent: float | None) -> Tensor:
    """An operator on ``shift + scale * x``; ``exponent`` None: nothing but that."""
    x = site.x
    if exponent is not None:
        inner = [_affine(site, scale, shift)]
        if op == "Pow":
            inner.append(site.builder.constant(exponent))
        return site.result(op, inner, x.shape)
    if scale != 1 and shift:
        return site.plus(site.times(x, scale, "scaled"), shift)
    if scale != 1:
        return site.times(x, scale)
    return site.plus(x, shift) if shift else x


@layer("Threshold")
def threshold(site: Site) -> Result:
    """1 where x is larger; no gradient."""
    site.take(1)
    bound = site.builder.constant(site.p.threshold_param.threshold)
    larger = site.step("larger", "Greater", [site.x, bound], site.x.shape)
    return site.result("Cast", [larger], site.x.shape, to=1)


@layer("Dropout")
def dropout(site: Site) -> Result:
    site.take(1)
    ratio = site.p.dropout_param.dropout_ratio
    if not 0 < ratio < 1:
        raise site.wrong(f"dropout_ratio {ratio} is not between 0 and 1")
    return site.result("Dropout", dropout_inputs(site, site.x, ratio), site.x.shape)


def dropout_inputs(site: Site, x: Tensor, ratio: float) -> list[Tensor | None]:
    """What ONNX's Dropout takes in training."""
    return [x, site.builder.constant(ratio), site.builder.constant(True, np.bool_)]


@layer("Softmax")
def softmax(site: Site) -> Result:
    site.take(1)
    axis = site.axis(site.p.softmax_param.axis)
    return site.result("Softmax", [site.x], site.x.shape, axis=axis)
