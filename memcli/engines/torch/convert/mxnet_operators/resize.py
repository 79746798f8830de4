"""Changes of resolution: UpSampling, BilinearResize2D, AdaptiveAvgPooling2D."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor


def nearest(*tensors: Tensor, scale: int, add: bool) -> Tensor:
    """Each pixel ``scale`` times in both directions.

    Of several tensors all are brought to the size of the first, and then joined or added.
    """
    height = tensors[0].shape[2] * scale
    grown = [
        x.repeat_interleave(height // x.shape[2], 2).repeat_interleave(height // x.shape[2], 3)
        for x in tensors
    ]
    if len(grown) == 1:
        return grown[0]
    if not add:
        return torch.cat(grown, 1)
    total = grown[0]
    for x in grown[1:]:
        total = total + x
    return total


def bilinear(x: Tensor, height: int, width: int, corners: bool) -> Tensor:
    """Bilinear interpolation to ``height`` and ``width``."""
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=corners)


def adaptive_average(x: Tensor, height: int, width: int) -> Tensor:
    """Means over windows that divide ``x`` into ``height`` by ``width``."""
    return F.adaptive_avg_pool2d(x, (height, width))


@operator("UpSampling")
def upsampling(site: Site) -> Call:
    kind = site.attributes.text("sample_type", "nearest")
    scale = site.attributes.integer("scale", 1)
    if kind == "nearest":
        add = site.attributes.text("multi_input_mode", "concat") == "sum"
        return Call(nearest, tuple(site.inputs), {"scale": scale, "add": add})
    if kind != "bilinear":
        raise Unsupported(f"sample_type={kind}")
    # a transposed convolution of each channel by itself
    pad = -(-(scale - 1) // 2)
    groups = site.shape()[1]
    window = ((scale, scale), (pad, pad), (1, 1), True, (0, 0), groups)
    return Call(torch.convolution, (site.value(), site.value(1), None, *window))


@operator("_contrib_BilinearResize2D")
def resize(site: Site) -> Call:
    attributes = site.attributes
    mode = attributes.text("mode", "size")
    if mode == "like":
        height, width = site.shape(1)[2:]
    elif mode == "size" and attributes.has("scale_height"):
        height = int(attributes.number("scale_height", 1.0) * site.shape()[2])
        width = int(attributes.number("scale_width", 1.0) * site.shape()[3])
    elif mode == "size":
        height, width = attributes.integer("height", 1), attributes.integer("width", 1)
    else:
        raise Unsupported(f"mode={mode}")
    return Call(bilinear, (site.value(), height, width, attributes.flag("align_corners", True)))


@operator("_contrib_AdaptiveAvgPooling2D")
def adaptive(site: Site) -> Call:
    size = site.attributes.ints("output_size") or (1,)
    return Call(adaptive_average, (site.value(), size[0], size[-1]))
