"""Resizing: PyTorch's interpolation where it is the same, else the operator's own formulas."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import resize as functions
from memcli.engines.torch.convert.interpolation import Axis, nearest
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
_ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@operator("Resize", "Upsample")
def resize(site: Site) -> Result:
    """Before operator set 11 coordinates are asymmetric and the nearest is the floor."""
    old = site.node.op_type == "Upsample" or site.opset < 11
    coordinates = site.get("coordinate_transformation_mode", "half_pixel")
    rounding = site.get("nearest_mode", "round_prefer_floor")
    if old:
        coordinates, rounding = "asymmetric", "floor"
    if coordinates not in _COORDINATES or rounding not in _ROUNDING:
        raise Unsupported(f"coordinates {coordinates!r} with {rounding!r}")
    mode = site.get("mode", "nearest")
    axes = _axes(site, old, coordinates)
    if not axes:
        return site.value(0)
    if mode == "nearest":
        return _nearest(site, axes, coordinates, rounding)
    if mode not in ("linear", "cubic"):
        raise Unsupported(f"mode {mode!r}")
    return _smooth(site, axes, coordinates, mode)


def _nearest(site: Site, axes: list[Axis], coordinates: str, rounding: str) -> Result:
    tables: list[Any] = [None] * site.rank()
    for axis in axes:
        tables[axis.axis] = nearest(axis, coordinates, rounding)
    plain = site.rank() in _LINEAR and all(axis.axis >= 2 for axis in axes) and site.is_float()
    if plain and all(
        tables[a.axis] == tuple(i * a.size // a.out for i in range(a.out)) for a in axes
    ):
        return Call(F.interpolate, (site.value(0), _sizes(site, axes)), {"mode": "nearest"})
    return Call(functions.resized_nearest, (site.value(0), tuple(tables)))


def _smooth(site: Site, axes: list[Axis], coordinates: str, mode: str) -> Result:
    antialias, exclude = bool(site.get("antialias", 0)), bool(site.get("exclude_outside", 0))
    cubic = site.get("cubic_coeff_a", -0.75) if mode == "cubic" else None
    corners = coordinates == "align_corners"
    half = coordinates == "half_pixel" or (
        coordinates == "pytorch_half_pixel" and all(axis.out > 1 for axis in axes)
    )
    known = site.rank() == 4 or (mode == "linear" and site.rank() in _LINEAR)
    plain = known and not antialias and not exclude and site.is_float()
    if plain and cubic in (None, -0.75) and (corners or half) and all(a.axis >= 2 for a in axes):
        name = _LINEAR[site.rank()] if mode == "linear" else "bicubic"
        sizes: tuple[int, ...] | None = _sizes(site, axes)
        scales = None
        if any(axis.out != axis.size * axis.scale for axis in axes) and not corners:
            given = {axis.axis: axis.scale for axis in axes}
            sizes, scales = None, tuple(given.get(d, 1.0) for d in range(2, site.rank()))
        return Call(functions.interpolated, (site.value(0), sizes, scales, name, corners))
    outside = None
    if coordinates == "tf_crop_and_resize":
        outside = site.get("extrapolation_value", 0.0)
    described = tuple((a.axis, a.size, a.out, a.scale, a.start, a.end) for a in axes)
    args = (site.value(0), described, coordinates, cubic, antialias, exclude, outside)
    return Call(functions.resized_by_weights, args)


def _sizes(site: Site, axes: list[Axis]) -> tuple[int, ...]:
    given = {axis.axis: axis.out for axis in axes}
    return tuple(given.get(d, size) for d, size in enumerate(site.shape()) if d >= 2)


def _axes(site: Site, old: bool, coordinates: str) -> list[Axis]:
    """The dimensions that change."""
    shape = site.shape()
    chosen = site.ints_of("axes", range(site.rank())) or ()
    chosen = tuple(site.axis(axis) for axis in chosen)
    scales: list[float] | None = None
    sizes: tuple[int, ...] | None = None
    if old:
        found = site.get("scales", None)
        scales = list(found) if found is not None else _floats(site, 1)
    elif site.has(2) and site.value(2).tensor.numel():
        scales = _floats(site, 2)
    elif site.has(3) and site.value(3).tensor.numel():
        sizes = site.ints(3)
    else:
        raise Unsupported("neither scales nor sizes")
    if sizes is not None:
        sizes, scales = _kept_aspect(site, [shape[axis] for axis in chosen], sizes)
    roi = [0.0] * len(chosen) + [1.0] * len(chosen)
    if coordinates == "tf_crop_and_resize":
        roi = _floats(site, 1)
    axes = []
    for i, axis in enumerate(chosen):
        scale = (scales or [])[i]
        start, end = roi[i], roi[i + len(chosen)]
        out = sizes[i] if sizes is not None else math.floor(shape[axis] * scale)
        if out != shape[axis] or scale != 1.0 or (start, end) != (0.0, 1.0):
            axes.append(Axis(axis, shape[axis], out, float(scale), start, end))
    return axes


def _kept_aspect(
    site: Site, old: list[int], sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], list[float]]:
    """Sizes and scales under the policy for the aspect ratio."""
    scales = [new / before for new, before in zip(sizes, old, strict=True)]
    policy = site.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return tuple(math.floor(scale * n + 0.5) for n in old), [scale] * len(old)


def _floats(site: Site, i: int) -> list[float]:
    return [float(item) for item in site.array(i).reshape(-1).tolist()]
