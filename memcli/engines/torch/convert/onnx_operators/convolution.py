"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import convolution as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported, Value
from memcli.engines.torch.convert.windows import flat_padding, windows_of

_PLAIN: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@operator("Conv")
def convolution(site: Site) -> Result:
    x, w, b = site.value(0), site.value(1), _bias(site)
    sizes = x.shape[2:]
    windows = windows_of(site, sizes, w.shape[2:])
    groups = site.get("group", 1)
    if windows.kernel != w.shape[2:]:
        raise Unsupported("its kernel_shape is not that of its weight")
    if windows.symmetric and len(sizes) in _PLAIN:
        args = (x, w, b, windows.stride, windows.before, windows.dilation, groups)
        return Call(_PLAIN[len(sizes)], args)
    args = (x, w, b, windows.flat(), windows.stride, windows.dilation, groups)
    return Call(functions.convolution_padded, args)


@operator("ConvTranspose")
def transposed_convolution(site: Site) -> Result:
    x, w, b = site.value(0), site.value(1), _bias(site)
    sizes = x.shape[2:]
    rank = len(sizes)
    mode = site.get("auto_pad", "NOTSET") or "NOTSET"
    windows = windows_of(site, sizes, w.shape[2:])
    groups = site.get("group", 1)
    extra = site.ints_of("output_padding", (0,) * rank) or ()
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(
            sizes, windows.stride, windows.kernel, windows.dilation, extra, strict=True
        )
    ]
    before, after = windows.before, windows.after
    wanted = site.ints_of("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(n * s for n, s in zip(sizes, windows.stride, strict=True))
    if wanted is not None:
        total = [have - want for have, want in zip(full, wanted[-rank:], strict=True)]
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        # The operator's text: the rest goes to the end with SAME_UPPER, else to the beginning.
        before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
    fits = all(
        e < max(s, d) for e, s, d in zip(extra, windows.stride, windows.dilation, strict=True)
    )
    if before == after and min(before) >= 0 and fits and rank in _TRANSPOSED:
        args = (x, w, b, windows.stride, before, extra, groups, windows.dilation)
        return Call(_TRANSPOSED[rank], args)
    if not fits:
        # Output padding is nothing but more room at the end.
        after = tuple(a - e for a, e in zip(after, extra, strict=True))
        extra = (0,) * rank
    crop = flat_padding([-n for n in before], [-n for n in after])
    args = (x, w, b, crop, windows.stride, extra, windows.dilation, groups)
    return Call(functions.transposed_convolution_padded, args)


def _bias(site: Site) -> Value | None:
    """The bias; none where it is a constant zero, which exporters of layers without one write."""
    bias = site.optional(2)
    if bias is not None and bias.known is not None and not bool(bias.known.any()):
        return None
    return bias


@operator("Col2Im")
def column_to_image(site: Site) -> Result:
    image, block = site.ints(1), site.ints(2)
    if len(image) != 2:
        raise Unsupported("images that are not of two dimensions")
    dilation = site.ints_of("dilations", (1, 1))
    pads = site.ints_of("pads", (0, 0, 0, 0)) or ()
    if pads[:2] != pads[2:]:
        raise Unsupported("padding that differs between the ends")
    args = (site.value(0), image, block, dilation, pads[:2], site.ints_of("strides", (1, 1)))
    return Call(F.fold, args)
