"""Convolutions and inner products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memcli.formats.caffe.building import Shape, Tensor
from memcli.formats.caffe.registry import LayerCall, Result, Unsupported, layer


def _spatial(call: LayerCall, field: str, rank: int, default: int | None) -> Shape:
    """A parameter for each spatial dimension: repeated, or ``_h`` and ``_w``."""
    p = call.p.convolution_param
    old = {"kernel_size": "kernel"}.get(field, field)
    by_side = [f"{old}_h", f"{old}_w"]
    has_sides = field != "dilation" and any(p.HasField(name) for name in by_side)
    given = list(getattr(p, field))
    if has_sides:
        if rank != 2 or given:
            raise call.wrong(f"give {field} or {by_side[0]} and {by_side[1]}, for two dimensions")
        return tuple(int(getattr(p, name)) for name in by_side)
    if not given:
        if default is None:
            raise call.wrong(f"has no {field}")
        return (default,) * rank
    if len(given) not in (1, rank):
        raise call.wrong(f"has {len(given)} values for {field}, and {rank} spatial dimensions")
    return tuple(given * rank if len(given) == 1 else given)


def _windows(call: LayerCall) -> tuple[Shape, Shape, Shape, Shape]:
    """Kernel, stride, pad and dilation."""
    p, rank = call.p.convolution_param, call.x.rank - 2
    if call.axis(p.axis) != 1 or rank < 1:
        raise Unsupported("channels that are not at axis 1")
    kernel = _spatial(call, "kernel_size", rank, None)
    stride = _spatial(call, "stride", rank, 1)
    pad = _spatial(call, "pad", rank, 0)
    dilation = _spatial(call, "dilation", rank, 1)
    if min(kernel) < 1 or min(stride) < 1 or min(dilation) < 1:
        raise call.wrong("kernel, stride and dilation must be positive")
    return kernel, stride, pad, dilation


def _outputs(call: LayerCall, groups: int) -> int:
    count = int(call.p.convolution_param.num_output)
    if count < 1:
        raise call.wrong("has no num_output")
    if groups < 1 or call.x.shape[1] % groups or count % groups:
        raise call.wrong(
            f"{call.x.shape[1]} channels to {count} cannot be divided into {groups} groups"
        )
    return count


@layer("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution")
def convolution(call: LayerCall) -> Result:
    """Several bottoms go through the same weights, each to its own top."""
    call.take((1, 1 << 16), len(call.layer.bottoms))
    p = call.p.convolution_param
    kernel, stride, pad, dilation = _windows(call)
    channels = call.x.shape[1]
    groups = channels if call.layer.type != "Convolution" else int(p.group)
    count = _outputs(call, groups)
    inputs = [call.weight(0, "weight", (count, channels // groups, *kernel))]
    if p.bias_term:
        inputs.append(call.weight(1, "bias", (count,)))
    return [
        _convolved(call, x, inputs, count, top, kernel, stride, pad, dilation, groups)
        for top, x in enumerate(call.bottoms)
    ]


def _convolved(
    call: LayerCall,
    x: Tensor,
    weights: Sequence[Tensor],
    count: int,
    top: int,
    kernel: Shape,
    stride: Shape,
    pad: Shape,
    dilation: Shape,
    groups: int,
) -> Tensor:
    sizes = tuple(
        (n + 2 * p - (d * (k - 1) + 1)) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, pad, dilation, strict=True)
    )
    if x.shape[1:2] != call.x.shape[1:2] or min(sizes) < 1:
        raise call.wrong(f"its window of {kernel} does not fit a bottom of shape {x.shape}")
    return call.result(
        "Conv",
        [x, *weights],
        (x.shape[0], count, *sizes),
        top=top,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*pad, *pad],
        dilations=list(dilation),
        group=groups,
    )


@layer("Deconvolution")
def deconvolution(call: LayerCall) -> Result:
    call.take(1)
    p, x = call.p.convolution_param, call.x
    kernel, stride, pad, dilation = _windows(call)
    groups = int(p.group)
    count = _outputs(call, groups)
    sizes = tuple(
        s * (n - 1) + d * (k - 1) + 1 - 2 * p
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, pad, dilation, strict=True)
    )
    if min(sizes) < 1:
        raise call.wrong(f"its result would have the shape {sizes}")
    inputs = [x, call.weight(0, "weight", (x.shape[1], count // groups, *kernel))]
    if p.bias_term:
        inputs.append(call.weight(1, "bias", (count,)))
    return call.result(
        "ConvTranspose",
        inputs,
        (x.shape[0], count, *sizes),
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*pad, *pad],
        dilations=list(dilation),
        group=groups,
    )


@layer("InnerProduct")
def inner_product(call: LayerCall) -> Result:
    call.take(1)
    p, x = call.p.inner_product_param, call.x
    count, axis = int(p.num_output), call.axis(p.axis)
    if count < 1:
        raise call.wrong("has no num_output")
    width = math.prod(x.shape[axis:])
    shape = (*x.shape[:axis], count)
    flat = _flat(call, x, axis, width)
    stored = (width, count) if p.transpose else (count, width)
    inputs: list[Any] = [flat, call.weight(0, "weight", stored)]
    if p.bias_term:
        inputs.append(call.weight(1, "bias", (count,)))
    attributes: dict[str, Any] = {"transB": 0 if p.transpose else 1}
    if axis == 1:
        return call.result("Gemm", inputs, shape, **attributes)
    made = call.step("rows", "Gemm", inputs, (flat.shape[0], count), **attributes)
    return call.reshaped(made, shape)


def _flat(call: LayerCall, x: Tensor, axis: int, width: int) -> Tensor:
    """Rows of what each product sums up."""
    rows = math.prod(x.shape[:axis])
    if x.shape == (rows, width):
        return x
    if axis > 0:
        return call.step("flat", "Flatten", [x], (rows, width), axis=axis)
    return call.reshaped(x, (rows, width), "flat")


@layer("Embed")
def embed(call: LayerCall) -> Result:
    call.take(1)
    p, x = call.p.embed_param, call.x
    rows, count = int(p.input_dim), int(p.num_output)
    if rows < 1 or count < 1:
        raise call.wrong("has no input_dim or num_output")
    shape = (*x.shape, count)
    inputs = [call.weight(0, "weight", (rows, count)), call.labels(x, "indices")]
    if not p.bias_term:
        return call.result("Gather", inputs, shape, axis=0)
    taken = call.step("rows", "Gather", inputs, shape, axis=0)
    return call.result("Add", [taken, call.weight(1, "bias", (count,))], shape)
