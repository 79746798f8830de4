"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import pooling as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported
from memcli.engines.torch.convert.windows import Windows, flat_padding, windows_of

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("MaxPool")
def max_pool(site: Site) -> Result:
    sizes = site.shape()[2:]
    windows = windows_of(site, sizes)
    ceil_mode = bool(site.get("ceil_mode", 0))
    if len(sizes) not in _MAX:
        raise Unsupported(f"{len(sizes)} spatial dimensions")
    x = site.value(0)
    if site.is_float() and not site.is_used(1) and windows.symmetric and _fits(windows):
        args = (x, windows.kernel, windows.stride, windows.before, windows.dilation, ceil_mode)
        return Call(_MAX[len(sizes)], args)
    after = _room_after(windows, sizes, _counts(windows, sizes, ceil_mode))
    rest = (windows.kernel, windows.stride, windows.dilation)
    if site.is_used(1):
        column_major = bool(site.get("storage_order", 0))
        return Call(
            functions.max_pool_indices, (x, windows.before, after, *rest, column_major), many=True
        )
    function = functions.max_pool_padded if site.is_float() else functions.max_pool_of_integers
    return Call(function, (x, flat_padding(windows.before, after), *rest))


@operator("AveragePool")
def average_pool(site: Site) -> Result:
    sizes = site.shape()[2:]
    windows = windows_of(site, sizes)
    ceil_mode = bool(site.get("ceil_mode", 0))
    include = bool(site.get("count_include_pad", 0))
    x = site.value(0)
    plain = windows.symmetric and _fits(windows) and set(windows.dilation) <= {1}
    if plain and len(sizes) in _AVERAGE:
        args: tuple[Any, ...] = (
            x,
            windows.kernel,
            windows.stride,
            windows.before,
            ceil_mode,
            include,
        )
        return Call(_AVERAGE[len(sizes)], args)
    counts = _counts(windows, sizes, ceil_mode)
    args = (x, windows.flat(), windows.kernel, windows.stride, windows.dilation, counts, include)
    return Call(functions.average_pool_padded, args)


@operator("LpPool")
def lp_pool(site: Site) -> Result:
    sizes = site.shape()[2:]
    windows = windows_of(site, sizes)
    counts = _counts(windows, sizes, bool(site.get("ceil_mode", 0)))
    args = (site.value(0), windows.flat(), windows.kernel, windows.stride, windows.dilation)
    return Call(functions.lp_pool_padded, (*args, counts, site.get("p", 2)))


@operator("GlobalAveragePool")
def global_average_pool(site: Site) -> Result:
    if site.rank() == 4:
        return Call(F.adaptive_avg_pool2d, (site.value(0), (1, 1)))
    return Call(torch.mean, (site.value(0), tuple(range(2, site.rank())), True))


@operator("GlobalMaxPool")
def global_max_pool(site: Site) -> Result:
    return Call(functions.global_max_pool, (site.value(0),))


@operator("GlobalLpPool")
def global_lp_pool(site: Site) -> Result:
    return Call(functions.global_lp_pool, (site.value(0), site.get("p", 2)))


def _fits(windows: Windows) -> bool:
    """PyTorch pads at most half of the kernel."""
    return all(2 * p <= k for p, k in zip(windows.before, windows.kernel, strict=True))


def _counts(windows: Windows, sizes: Sequence[int], ceil_mode: bool) -> tuple[int, ...]:
    """How many windows each dimension has; none begins in the padding after the end."""
    counts = []
    for d, size in enumerate(sizes):
        room = size + windows.before[d] + windows.after[d]
        span = room - (windows.kernel[d] - 1) * windows.dilation[d] - 1
        step = windows.stride[d]
        count = (-(-span // step) if ceil_mode else span // step) + 1
        if ceil_mode and (count - 1) * step >= size + windows.before[d]:
            count -= 1
        counts.append(count)
    return tuple(counts)


def _room_after(windows: Windows, sizes: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """Padding after the end (negative: cropped) with which just ``counts`` windows fit."""
    return tuple(
        (count - 1) * step + (k - 1) * d + 1 - size - before
        for count, step, k, d, size, before in zip(
            counts,
            windows.stride,
            windows.kernel,
            windows.dilation,
            sizes,
            windows.before,
            strict=True,
        )
    )
