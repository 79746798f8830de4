"""The DenseBlock layer of the Caffe fork that trains DenseNets in little memory."""

from __future__ import annotations

from memcli.formats.caffe.building import Tensor
from memcli.formats.caffe.layers.activations import dropout_inputs
from memcli.formats.caffe.layers.normalization import normalized
from memcli.formats.caffe.registry import LayerCall, Result, Unsupported, layer

_EPSILON = 1e-5  # cuDNN's least, which the fork takes
_BOTTLENECK = 4
_SIDE = 3


@layer("DenseBlock")
def dense_block(call: LayerCall) -> Result:
    """Huang et al., arXiv 1608.06993: each transition adds channels made of all before it.

    BatchNorm, ReLU, 3x3 convolution and dropout; with ``use_BC`` the convolution is a 1x1 one to
    four times the growth, BatchNorm, ReLU and then the 3x3 one. ``use_dropout`` drops at the end of
    each transition. The fork keeps channels side by side in one buffer; the graph says Concat,
    whose result a plan can leave out.
    """
    call.take(1)
    p, x = call.p.denseblock_param, call.x
    growth, count = p.growthRate, p.numTransition
    if x.rank != 4 or x.shape[1] != p.initChannel:
        raise call.wrong(f"initChannel is {p.initChannel}; its bottom has the shape {x.shape}")
    if growth < 1 or count < 1:
        raise call.wrong(f"growthRate {growth} and numTransition {count} must be positive")
    if (p.filter_H, p.filter_W, p.pad_h, p.pad_w) != (_SIDE, _SIDE, 1, 1):
        raise Unsupported("filters that are not 3 x 3, padded by 1")
    if (p.conv_verticalStride, p.conv_horizentalStride) != (1, 1):
        raise Unsupported("strides")
    parts = [x]
    for transition in range(count):
        parts.append(_transition(call, parts, transition))
    return _joined(call, parts, "")


def _joined(call: LayerCall, parts: list[Tensor], suffix: str) -> Tensor:
    first = parts[0]
    if len(parts) == 1:
        return first
    channels = sum(part.shape[1] for part in parts)
    shape = (first.shape[0], channels, *first.shape[2:])
    if suffix:
        return call.step(suffix, "Concat", parts, shape, axis=1)
    return call.result("Concat", parts, shape, axis=1)


def _transition(call: LayerCall, parts: list[Tensor], number: int) -> Tensor:
    p = call.p.denseblock_param
    growth, count = p.growthRate, p.numTransition
    x = _joined(call, parts, f"{number}/concat")
    # Places of parameters among the layer's: filters, scales, biases (two statistics of each
    # follow), and with use_BC the same of the bottleneck.
    x = _normed(call, x, f"{number}/norm", count + number, 2 * count + number)
    if p.use_BC:
        wide = _BOTTLENECK * growth
        x = _convolved(call, x, f"{number}/bottleneck", 5 * count + number, wide, 1)
        x = _normed(call, x, f"{number}/norm2", 6 * count + number, 7 * count + number)
    x = _convolved(call, x, f"{number}/conv", number, growth, _SIDE)
    if p.use_dropout and p.dropout_amount > 0:
        inputs = dropout_inputs(call, x, p.dropout_amount)
        x = call.step(f"{number}/dropout", "Dropout", inputs, x.shape)
    return x


def _normed(call: LayerCall, x: Tensor, suffix: str, scale: int, bias: int) -> Tensor:
    """BatchNorm with scale and bias, and ReLU."""
    channels = x.shape[1]
    weights = (
        call.weight(scale, f"{suffix}.weight", (channels,)),
        call.weight(bias, f"{suffix}.bias", (channels,)),
    )
    old = 1 - call.p.denseblock_param.moving_average_fraction
    y = normalized(call, x, *weights, _EPSILON, old, suffix=suffix)
    return call.step(f"{suffix}_relu", "Relu", [y], x.shape)


def _convolved(
    call: LayerCall, x: Tensor, suffix: str, index: int, filters: int, side: int
) -> Tensor:
    weight = call.weight(index, f"{suffix}.weight", (filters, x.shape[1], side, side))
    shape = (x.shape[0], filters, *x.shape[2:])
    return call.step(
        suffix, "Conv", [x, weight], shape, kernel_shape=[side, side], pads=[side // 2] * 4
    )
