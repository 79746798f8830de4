"""Convolution and Deconvolution."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor
Ints = tuple[int, ...]

_LAYOUTS = ("NCW", "NCHW", "NCDHW")


@operator("Convolution", "Convolution_v1")
def convolution(site: Site) -> Call:
    kernel, stride, dilate, pad = _window(site)
    bias = None if site.attributes.flag("no_bias") else site.value(2)
    groups = site.attributes.integer("num_group", 1)
    zeros = (0,) * len(kernel)
    x, weight = site.value(), site.value(1)
    return Call(torch.convolution, (x, weight, bias, stride, pad, dilate, False, zeros, groups))


@operator("Deconvolution")
def deconvolution(site: Site) -> Call:
    kernel, stride, dilate, pad = _window(site)
    adjust = site.attributes.ints("adj", (0,) * len(kernel))
    target = site.attributes.ints("target_shape")
    if any(target):
        # MXNet then works out padding and adjustment, the larger half of it in front.
        sizes = zip(site.shape()[2:], target, kernel, stride, dilate, strict=True)
        spare = [s * (i - 1) + d * (k - 1) + 1 - t for i, t, k, s, d in sizes]
        pad = tuple((n + 1) // 2 for n in spare)
        adjust = tuple(n % 2 for n in spare)
    bias = None if site.attributes.flag("no_bias", True) else site.value(2)
    groups = site.attributes.integer("num_group", 1)
    x, weight = site.value(), site.value(1)
    return Call(torch.convolution, (x, weight, bias, stride, pad, dilate, True, adjust, groups))


def _window(site: Site) -> tuple[Ints, Ints, Ints, Ints]:
    """Kernel, stride, dilation and padding.

    Raises:
        Unsupported: channels stand last, or the numbers of dimensions differ.
    """
    layout = site.attributes.text("layout", "NCHW")
    if layout not in _LAYOUTS:
        raise Unsupported(f"layout={layout}")
    kernel = site.attributes.ints("kernel")
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    stride = site.attributes.ints("stride") or ones
    dilate = site.attributes.ints("dilate") or ones
    pad = site.attributes.ints("pad") or zeros
    if not len(kernel) == len(stride) == len(dilate) == len(pad) == site.rank() - 2:
        raise Unsupported(f"a kernel of {len(kernel)} dimensions for data of {site.rank()}")
    return kernel, stride, dilate, pad
