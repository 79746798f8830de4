"""Normalizations."""

from __future__ import annotations

import numpy as np

from memcli.formats.caffe.building import Tensor
from memcli.formats.caffe.layers.pooling import attributes
from memcli.formats.caffe.net import Net
from memcli.formats.caffe.registry import LayerCall, Result, Unsupported, layer

_ACROSS, _WITHIN = 0, 1
_CUDNN = 2


@layer("BatchNorm")
def batch_norm(call: LayerCall) -> Result:
    """ONNX's BatchNormalization, with the Scale that alone reads it taken in.

    Without such a Scale, scale and bias are constants (ones and zeros). Forks whose BatchNorm has
    both itself are told by their parameters: a filler, ``scale_bias`` or the cuDNN engine.
    Running statistics are exponential averages; Caffe corrects their start, which no gradient
    sees.
    """
    call.take(1)
    p, x = call.p.batch_norm_param, call.x
    fixed = bool(p.HasField("use_global_stats") and p.use_global_stats)
    channels = x.shape[1] if x.rank > 1 else 1
    if x.rank < 2:
        raise Unsupported(f"a bottom of {x.rank} dimensions")
    fraction = p.moving_average_fraction
    if own_affine(p):
        scale = call.weight(0, "weight", (channels,))
        bias = call.weight(1, "bias", (channels,))
        if fraction < 0.5:  # cuDNN's factor: the part of the new, where Caffe's is of the old
            fraction = 1 - fraction
    else:
        scale, bias = _taken_in(call, channels)
    if not 0 <= fraction <= 1 or p.eps < 0:
        raise call.wrong(f"moving_average_fraction {fraction:g} or eps {p.eps:g} is impossible")
    return normalized(call, x, scale, bias, p.eps, fraction, training=not fixed)


def normalized(
    call: LayerCall,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    eps: float,
    old: float,
    *,
    suffix: str = "",
    training: bool = True,
) -> Tensor:
    """BatchNormalization with states of its own; ``old``: their part in a step's average."""
    channels = x.shape[1]
    stem = f"{call.layer.name}/{suffix}" if suffix else call.layer.name
    mean = call.builder.state(f"{stem}.mean", np.zeros(channels, np.float32))
    variance = call.builder.state(f"{stem}.variance", np.ones(channels, np.float32))
    outputs = [(stem if suffix else call.blob(), x.shape, False)]
    if training:
        outputs += [(f"{stem}.new_{what}", (channels,), False) for what in ("mean", "variance")]
    return call.builder.node(
        call.position,
        "BatchNormalization",
        [x, scale, bias, mean, variance],
        stem,
        outputs,
        epsilon=eps,
        momentum=old,
        training_mode=int(training),
    )[0]


def own_affine(p: object) -> bool:
    """Whether a BatchNorm of a fork has scale and bias itself."""
    has = p.HasField  # type: ignore[attr-defined]
    return (
        has("scale_filler")
        or has("bias_filler")
        or p.scale_bias  # type: ignore[attr-defined]
        or p.engine == _CUDNN  # type: ignore[attr-defined]
    )


def _taken_in(call: LayerCall, channels: int) -> tuple[Tensor, Tensor]:
    """Scale and bias of the Scale layer that goes into a BatchNorm; ones and zeros."""
    builder = call.builder
    ones = builder.constant(np.ones(channels, np.float32))
    zeros = builder.constant(np.zeros(channels, np.float32))
    reader = _scale_of(call.net, call.position)
    if reader is None:
        return ones, zeros
    there = LayerCall(call.net, reader, call.net.layers[reader], [call.x], builder, call.shared)
    scale = there.weight(0, "weight", (channels,))
    has_bias = there.p.scale_param.bias_term
    return scale, there.weight(1, "bias", (channels,)) if has_bias else zeros


def _scale_of(net: Net, position: int) -> int | None:
    """The Scale layer that a BatchNorm may take in: it alone reads it, channel by channel."""
    readers = net.readers_of(position)
    if net.layers[position].type != "BatchNorm" or len(readers) != 1:
        return None
    reader = net.layers[readers[0][0]]
    p = reader.parameter.scale_param
    fits = (
        reader.type == "Scale"
        and len(reader.bottoms) == 1
        and p.axis == 1
        and p.num_axes == 1
        and not own_affine(net.layers[position].parameter.batch_norm_param)
        and not net.layers[position].parameter.loss_weight
        # What another layer owns may have another shape in the graph.
        and not any(spec.name for spec in reader.parameter.param)
    )
    return readers[0][0] if fits else None


def folded_into_batch_norm(net: Net, position: int) -> bool:
    """Whether a Scale layer is part of the BatchNorm that it reads."""
    return _scale_of(net, net.sources[position][0][0]) == position


@layer("LRN")
def local_response(call: LayerCall) -> Result:
    """Across channels ONNX's own; within a channel by squares, their average, and a power."""
    call.take(1)
    p, x = call.p.lrn_param, call.x
    size = int(p.local_size)
    if size % 2 == 0:
        raise call.wrong(f"local_size {size} is not odd")
    call.takes_images()
    if p.norm_region == _ACROSS:
        return call.result("LRN", [x], x.shape, size=size, alpha=p.alpha, beta=p.beta, bias=p.k)
    pad = ((size - 1) // 2,) * 2
    squares = call.step("squares", "Mul", [x, x], x.shape)
    more = attributes("AveragePool", (size, size), (1, 1), pad, up=False)
    mean = call.step("mean", "AveragePool", [squares], x.shape, **more)
    inner = call.plus(call.times(mean, p.alpha, "alpha"), 1.0, "one")
    factor = call.step("power", "Pow", [inner, call.builder.constant(-p.beta)], x.shape)
    return call.result("Mul", [x, factor], x.shape)


@layer("MVN")
def mean_variance(call: LayerCall) -> Result:
    """``(x - mean) / (deviation + eps)`` of each image's channels, or of the whole image."""
    call.take(1)
    p, x = call.p.mvn_param, call.x
    call.takes_images()
    axes = [1, 2, 3] if p.across_channels else [2, 3]
    shape = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    over = call.builder.ints(*axes)
    mean = call.step("mean", "ReduceMean", [x, over], shape, keepdims=1)
    if not p.normalize_variance:
        return call.result("Sub", [x, mean], x.shape)
    centred = call.step("centred", "Sub", [x, mean], x.shape)
    squares = call.step("squares", "Mul", [centred, centred], x.shape)
    variance = call.step("variance", "ReduceMean", [squares, over], shape, keepdims=1)
    deviation = call.step("deviation", "Sqrt", [variance], shape)
    return call.result("Div", [centred, call.plus(deviation, p.eps, "eps")], x.shape)


@layer("Normalize")
def normalize(call: LayerCall) -> Result:
    """SSD's: by the Euclidean norm over channels (or the whole image), times a parameter."""
    call.take(1)
    p, x = call.p.norm_param, call.x
    call.takes_images()
    axes = [1, 2, 3] if p.across_spatial else [1]
    shape = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    squares = call.step("squares", "Mul", [x, x], x.shape)
    total = call.step("sum", "ReduceSum", [squares, call.builder.ints(*axes)], shape, keepdims=1)
    norm = call.step("norm", "Sqrt", [call.plus(total, p.eps, "eps")], shape)
    divided = call.step("divided", "Div", [x, norm], x.shape)
    shared = p.channel_shared
    weight = (
        call.weight(0, "scale", (1,))
        if shared
        else call.weight(0, "scale", (x.shape[1],), stored=(x.shape[1], 1, 1))
    )
    return call.result("Mul", [divided, weight], x.shape)
