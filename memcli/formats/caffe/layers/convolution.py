"""Convolutions and inner products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memcli.formats.caffe.building import Shape, Tensor
from memcli.formats.caffe.registry import Result, Site, Unsupported, layer


def _spatial(site: Site, field: str, rank: int, default: int | None) -> Shape:
    """A parameter for each spatial dimension: repeated, or ``_h`` and ``_w``."""
    p = site.p.convolution_param
    old = {"kernel_size": "kernel"}.get(field, field)
    by_side = [f"{old}_h", f"{old}_w"]
    has_sides = field != "dilation" and any(p.HasField(name) for name in by_side)
    given = list(getattr(p, field))
    if has_sides:
        if rank != 2 or given:
            raise site.wrong(f"give {field} or {by_side[0]} and {by_side[1]}, for two dimensions")
        return tuple(int(getattr(p, name)) for name in by_side)
    if not given:
        if default is None:
            raise site.wrong(f"has no {field}")
        return (default,) * rank
    if len(given) not in (1, rank):
        raise site.wrong(f"has {len(given)} values for {field}, and {rank} spatial dimensions")
    return tuple(given * rank if len(given) == 1 else given)


def _windows(site: Site) -> tuple[Shape, Shape, Shape, Shape]:
    """Kernel, stride, pad and dilation."""
    p, rank = site.p.convolution_param, site.x.rank - 2
    if site.axis(p.axis) != 1 or rank < 1:
        raise Unsupported("channels that are not at axis 1")
    kernel = _spatial(site, "kernel_size", rank, None)
    stride = _spatial(site, "stride", rank, 1)
    pad = _spatial(site, "pad", rank, 0)
    dilation = _spatial(site, "dilation", rank, 1)
    if min(kernel) < 1 or min(stride) < 1 or min(dilation) < 1:
        raise site.wrong("kernel, stride and dilation must be positive")
    return kernel, stride, pad, dilation


def _outputs(site: Site, groups: int) -> int:
    count = int(site.p.convolution_param.num_output)
    if count < 1:
        raise site.wrong("has no num_output")
    if groups < 1 or site.x.shape[1] % groups or count % groups:
        raise site.wrong(
            f"{site.x.shape[1]} channels to {count} cannot be divided into {groups} groups"
        )
    return count


@layer("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution")
def convolution(site: Site) -> Result:
    """Several bottoms go through the same weights, each to its own top."""
    site.take((1, 1 << 16), len(site.layer.bottoms))
    p = site.p.convolution_param
    kernel, stride, pad, dilation = _windows(site)
    channels = site.x.shape[1]
    groups = channels if site.layer.type != "Convolution" else int(p.group)
    count = _outputs(site, groups)
    inputs = [site.weight(0, "weight", (count, channels // groups, *kernel))]
    if p.bias_term:
        inputs.append(site.weight(1, "bias", (count,)))
    return [
        _convolved(site, x, inputs, count, top, kernel, stride, pad, dilation, groups)
        for top, x in enumerate(site.bottoms)
    ]


def _convolved(
    site: Site,
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
    if x.shape[1:2] != site.x.shape[1:2] or min(sizes) < 1:
        raise site.wrong(f"its window of {kernel} does not fit a bottom of shape {x.shape}")
    return site.result(
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
def deconvolution(site: Site) -> Result:
    site.take(1)
    p, x = site.p.convolution_param, site.x
    kernel, stride, pad, dilation = _windows(site)
    groups = int(p.group)
    count = _outputs(site, groups)
    sizes = tuple(
        s * (n - 1) + d * (k - 1) + 1 - 2 * p
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, pad, dilation, strict=True)
    )
    if min(sizes) < 1:
        raise site.wrong(f"its result would have the shape {sizes}")
    inputs = [x, site.weight(0, "weight", (x.shape[1], count // groups, *kernel))]
    if p.bias_term:
        inputs.append(site.weight(1, "bias", (count,)))
    return site.result(
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
def inner_product(site: Site) -> Result:
    site.take(1)
    p, x = site.p.inner_product_param, site.x
    count, axis = int(p.num_output), site.axis(p.axis)
    if count < 1:
        raise site.wrong("has no num_output")
    width = math.prod(x.shape[axis:])
    shape = (*x.shape[:axis], count)
    flat = _flat(site, x, axis, width)
    stored = (width, count) if p.transpose else (count, width)
    inputs: list[Any] = [flat, site.weight(0, "weight", stored)]
    if p.bias_term:
        inputs.append(site.weight(1, "bias", (count,)))
    attributes: dict[str, Any] = {"transB": 0 if p.transpose else 1}
    if axis == 1:
        return site.result("Gemm", inputs, shape, **attributes)
    made = site.step("rows", "Gemm", inputs, (flat.shape[0], count), **attributes)
    return site.reshaped(made, shape)


def _flat(site: Site, x: Tensor, axis: int, width: int) -> Tensor:
    """Rows of what each product sums up."""
    rows = math.prod(x.shape[:axis])
    if x.shape == (rows, width):
        return x
    if axis > 0:
        return site.step("flat", "Flatten", [x], (rows, width), axis=axis)
    return site.reshaped(x, (rows, width), "flat")


@layer("Embed")
def embed(site: Site) -> Result:
    site.take(1)
    p, x = site.p.embed_param, site.x
    rows, count = int(p.input_dim), int(p.num_output)
    if rows < 1 or count < 1:
        raise site.wrong("has no input_dim or num_output")
    shape = (*x.shape, count)
    inputs = [site.weight(0, "weight", (rows, count)), site.labels(x, "indices")]
    if not p.bias_term:
        return site.result("Gather", inputs, shape, axis=0)
    taken = site.step("rows", "Gather", inputs, shape, axis=0)
    return site.result("Add", [taken, site.weight(1, "bias", (count,))], shape)
