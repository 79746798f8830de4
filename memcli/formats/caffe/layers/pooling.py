"""Pooling: Caffe rounds the number of windows up, and lets none begin beyond the image."""

from __future__ import annotations

from typing import Any

from memcli.formats.caffe.building import Shape, Tensor
from memcli.formats.caffe.registry import LayerCall, Result, Unsupported, layer

_MAX, _AVE = 0, 1
_FLOOR = 1


def _pair(call: LayerCall, field: str, default: int | None) -> Shape:
    """``field`` for both sides, or its ``_h`` and ``_w``."""
    p = call.p.pooling_param
    old = {"kernel_size": "kernel"}.get(field, field)
    sides = [f"{old}_h", f"{old}_w"]
    have = [p.HasField(side) for side in sides]
    if any(have):
        if not all(have) or p.HasField(field):
            raise call.wrong(f"give {field}, or both of {sides[0]} and {sides[1]}")
        return int(getattr(p, sides[0])), int(getattr(p, sides[1]))
    if default is None and not p.HasField(field):
        raise call.wrong(f"has no {field}")
    return (int(getattr(p, field)),) * 2


@layer("Pooling")
def pooling(call: LayerCall) -> Result:
    """The divisor of an average is Caffe's: padding counts, what is beyond it does not."""
    call.take(1, (1, 2))
    p, x = call.p.pooling_param, call.x
    if x.rank != 4:
        raise call.wrong(f"pools images of four dimensions; its bottom has the shape {x.shape}")
    if p.pool not in (_MAX, _AVE):
        raise Unsupported("stochastic pooling")
    rest: list[Tensor | None] = [None] * (len(call.layer.tops) - 1)  # the mask
    if p.global_pooling:
        if any(p.HasField(f) for f in ("kernel_size", "kernel_h", "kernel_w")):
            raise call.wrong("global_pooling takes no kernel_size")
        if any((*_pair(call, "pad", 0), *(s - 1 for s in _pair(call, "stride", 1)))):
            raise call.wrong("global_pooling takes no pad and no stride")
        op = "GlobalMaxPool" if p.pool == _MAX else "GlobalAveragePool"
        return [call.result(op, [x], (*x.shape[:2], 1, 1)), *rest]
    kernel, stride = _pair(call, "kernel_size", None), _pair(call, "stride", 1)
    pad = _pair(call, "pad", 0)
    if min(kernel) < 1 or min(stride) < 1 or any(a >= b for a, b in zip(pad, kernel, strict=True)):
        raise call.wrong("kernel and stride must be positive, and pad less than the kernel")
    up = p.round_mode != _FLOOR and p.ceil_mode
    sizes = windows(call, x.shape[2:], kernel, stride, pad, up=up)
    op = "MaxPool" if p.pool == _MAX else "AveragePool"
    shape = (*x.shape[:2], *sizes)
    return [call.result(op, [x], shape, **attributes(op, kernel, stride, pad, up=up)), *rest]


def attributes(op: str, kernel: Shape, stride: Shape, pad: Shape, *, up: bool) -> dict[str, Any]:
    """Those of the ONNX operator ``op``."""
    found: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "pads": [*pad, *pad],
        "ceil_mode": int(up),
    }
    if op == "AveragePool":
        found["count_include_pad"] = 1
    return found


def windows(
    call: LayerCall, sizes: Shape, kernel: Shape, stride: Shape, pad: Shape, *, up: bool
) -> Shape:
    """How many windows there are in each dimension.

    Raises:
        BadInput: none.
        Unsupported: a last window that lies beyond an image without padding, where Caffe's result
            is no value of the image.
    """
    counts = []
    for size, k, s, p in zip(sizes, kernel, stride, pad, strict=True):
        span = size + 2 * p - k
        count = (-(-span // s) if up else span // s) + 1
        if p and (count - 1) * s >= size + p:
            count -= 1
        if count < 1 or (span < 0 and not up):
            raise call.wrong(f"its window of {kernel} does not fit an image of {tuple(sizes)}")
        if (count - 1) * s >= size + p:
            raise Unsupported(f"its last window begins beyond the image of {tuple(sizes)}")
        counts.append(count)
    return tuple(counts)


@layer("SPP")
def pyramid(call: LayerCall) -> Result:
    """He et al., arXiv 1406.4729: poolings into 1, 4, 16, ... parts, one after the other."""
    call.take(1)
    p, x = call.p.spp_param, call.x
    if x.rank != 4 or p.pyramid_height < 1:
        raise call.wrong(f"takes images and a pyramid_height; its bottom has the shape {x.shape}")
    if p.pool not in (_MAX, _AVE):
        raise Unsupported("stochastic pooling")
    parts = []
    for level in range(p.pyramid_height):
        bins = 1 << level
        kernel = tuple(-(-size // bins) for size in x.shape[2:])
        pad = tuple((k * bins - size + 1) // 2 for k, size in zip(kernel, x.shape[2:], strict=True))
        if any(a >= b for a, b in zip(pad, kernel, strict=True)):
            raise call.wrong(f"its level {level} has more parts than the image {x.shape[2:]}")
        sizes = windows(call, x.shape[2:], kernel, kernel, pad, up=True)
        op = "MaxPool" if p.pool == _MAX else "AveragePool"
        shape = (*x.shape[:2], *sizes)
        more = attributes(op, kernel, kernel, pad, up=True)
        pooled = call.step(f"pool{level}", op, [x], shape, **more)
        width = pooled.count // pooled.shape[0]
        parts.append(call.step(f"flat{level}", "Flatten", [pooled], (x.shape[0], width), axis=1))
    width = sum(part.shape[1] for part in parts)
    return call.result("Concat", parts, (x.shape[0], width), axis=1)
