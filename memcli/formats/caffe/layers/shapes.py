"""Layers that put blobs together, take them apart, or see them in another shape."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from memcli.formats.caffe.building import Shape, Tensor
from memcli.formats.caffe.registry import LayerCall, Result, Unsupported, layer


@layer("Split")
def split(call: LayerCall) -> Result:
    """One blob under several names; nothing is computed."""
    call.take(1, (1, 1 << 16))
    return [call.x] * len(call.layer.tops)


@layer("Concat")
def concat(call: LayerCall) -> Result:
    call.take((1, 1 << 16))
    p, first = call.p.concat_param, call.x
    axis = call.axis(p.concat_dim if p.HasField("concat_dim") else p.axis)
    for bottom in call.bottoms:
        rest = [(*b.shape[:axis], *b.shape[axis + 1 :]) for b in (first, bottom)]
        if bottom.rank != first.rank or rest[0] != rest[1]:
            raise call.wrong(f"its bottoms have the shapes {first.shape} and {bottom.shape}")
    if len(call.bottoms) == 1:
        return first
    total = sum(bottom.shape[axis] for bottom in call.bottoms)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    integer = all(bottom.integer for bottom in call.bottoms)
    return call.result("Concat", call.bottoms, shape, axis=axis, integer=integer)


@layer("Slice")
def slices(call: LayerCall) -> Result:
    call.take(1, (1, 1 << 16))
    p, x, tops = call.p.slice_param, call.x, len(call.layer.tops)
    axis = call.axis(p.slice_dim if p.HasField("slice_dim") else p.axis)
    size, points = x.shape[axis], [int(point) for point in p.slice_point]
    if points:
        bounds = [0, *points, size]
        parts = [b - a for a, b in itertools.pairwise(bounds)]
        if len(parts) != tops or min(parts) < 1:
            raise call.wrong(f"slice_point {points} of {size} does not make {tops} tops")
    elif size % tops:
        raise call.wrong(f"{size} cannot be cut into {tops} equal parts")
    else:
        parts = [size // tops] * tops
    if tops == 1:
        return x
    outputs = [
        (call.blob(top), (*x.shape[:axis], part, *x.shape[axis + 1 :]), x.integer)
        for top, part in enumerate(parts)
    ]
    return list(
        call.builder.node(
            call.position,
            "Split",
            [x, call.builder.ints(*parts)],
            call.layer.name,
            outputs,
            axis=axis,
        )
    )


@layer("Flatten")
def flatten(call: LayerCall) -> Result:
    call.take(1)
    p, x = call.p.flatten_param, call.x
    start, end = call.axis(p.axis), call.axis(p.end_axis)
    if end < start:
        raise call.wrong(f"its end_axis {p.end_axis} is before its axis {p.axis}")
    shape = (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])
    if shape == x.shape:
        return x
    if start == 1 and end == x.rank - 1:
        return call.result("Flatten", [x], shape, axis=1, integer=x.integer)
    return call.reshaped(x, shape)


@layer("Reshape")
def reshape(call: LayerCall) -> Result:
    """Zeros copy a dimension, one -1 is what is left, from ``axis`` on for ``num_axes``."""
    call.take(1)
    p, x = call.p.reshape_param, call.x
    start = p.axis if p.axis >= 0 else x.rank + p.axis + 1
    end = x.rank if p.num_axes == -1 else start + p.num_axes
    if not 0 <= start <= end <= x.rank:
        raise call.wrong(f"axis {p.axis} and num_axes {p.num_axes} of a blob of shape {x.shape}")
    wanted = [int(d) for d in p.shape.dim]
    if wanted.count(-1) > 1 or any(d < -1 for d in wanted):
        raise call.wrong(f"its shape {wanted} has more than one dimension to find out")
    middle: list[int] = []
    for k, dim in enumerate(wanted):
        if dim == 0 and start + k >= x.rank:
            raise call.wrong(f"its shape {wanted} copies a dimension that {x.shape} has not")
        middle.append(x.shape[start + k] if dim == 0 else dim)
    within = math.prod(x.shape[start:end])
    known = math.prod(d for d in middle if d != -1)
    if -1 in middle and known and within % known == 0:
        middle[middle.index(-1)] = within // known
    if math.prod(middle) != within:
        raise call.wrong(f"{x.shape} cannot take the shape {wanted} from axis {start} on")
    shape = (*x.shape[:start], *middle, *x.shape[end:])
    # What is said of the shape goes into the graph, so that another batch stays possible.
    target = [*x.shape[:start], *wanted, *x.shape[end:]]
    if x.rank and (start > 0 or (wanted and wanted[0] == 0)):
        target[0] = 0
    target = [shape[k] if k and dim == 0 else dim for k, dim in enumerate(target)]
    return call.result("Reshape", [x, call.builder.ints(*target)], shape, integer=x.integer)


@layer("Crop")
def crop(call: LayerCall) -> Result:
    """The first bottom cut to the second's sizes."""
    call.take(2)
    p, (x, like) = call.p.crop_param, call.bottoms
    start, offsets = call.axis(p.axis), [int(o) for o in p.offset]
    if len(offsets) not in (0, 1, x.rank - start) or like.rank != x.rank:
        raise call.wrong(f"{len(offsets)} offsets, and shapes {x.shape} and {like.shape}")
    if len(offsets) < 2:
        offsets = (offsets or [0]) * (x.rank - start)
    axes, begins, ends = [], [], []
    for axis, offset in zip(range(start, x.rank), offsets, strict=True):
        if offset + like.shape[axis] > x.shape[axis]:
            raise call.wrong(f"{like.shape} from {offset} on is not within {x.shape}")
        if like.shape[axis] != x.shape[axis]:
            axes.append(axis)
            begins.append(offset)
            ends.append(offset + like.shape[axis])
    shape = (*x.shape[:start], *like.shape[start:])
    if not axes:
        return x
    places = [call.builder.ints(*values) for values in (begins, ends, axes)]
    return call.result("Slice", [x, *places], shape, integer=x.integer)


@layer("Tile")
def tile(call: LayerCall) -> Result:
    call.take(1)
    p, x = call.p.tile_param, call.x
    axis, count = call.axis(p.axis), int(p.tiles)
    if count < 1:
        raise call.wrong("has no tiles")
    repeats = [count if d == axis else 1 for d in range(x.rank)]
    shape = tuple(n * r for n, r in zip(x.shape, repeats, strict=True))
    return call.result("Tile", [x, call.builder.ints(*repeats)], shape, integer=x.integer)


@layer("Permute")
def permute(call: LayerCall) -> Result:
    """SSD's; axes that are not named come after those that are."""
    call.take(1)
    x, order = call.x, [int(axis) for axis in call.p.permute_param.order]
    order += [axis for axis in range(x.rank) if axis not in order]
    if sorted(order) != list(range(x.rank)):
        raise call.wrong(f"order {order} of a blob of shape {x.shape}")
    shape = tuple(x.shape[axis] for axis in order)
    return call.result("Transpose", [x], shape, perm=order, integer=x.integer)


@layer("ShuffleChannel")
def shuffle(call: LayerCall) -> Result:
    """ShuffleNet's: channels of the groups in turn."""
    call.take(1)
    x, groups = call.x, int(call.p.shuffle_channel_param.group)
    if x.rank != 4 or groups < 1 or x.shape[1] % groups:
        raise call.wrong(f"{groups} groups of a blob of shape {x.shape}")
    batch, channels, *sizes = x.shape
    apart = call.reshaped(x, (batch, groups, channels // groups, *sizes), "groups")
    turned_shape = (batch, channels // groups, groups, *sizes)
    turned = call.step("turned", "Transpose", [apart], turned_shape, perm=[0, 2, 1, 3, 4])
    return call.reshaped(turned, x.shape)


@layer("Interp")
def interpolate(call: LayerCall) -> Result:
    """DeepLab's: bilinear, corners on corners; to sizes, by factors, or like a second bottom."""
    call.take((1, 2))
    p, x = call.p.interp_param, call.x
    if x.rank != 4 or p.pad_beg > 0 or p.pad_end > 0:
        raise call.wrong("takes images of four dimensions and paddings of at most 0")
    begin, end = -int(p.pad_beg), -int(p.pad_end)
    inner = tuple(n - begin - end for n in x.shape[2:])
    if len(call.bottoms) == 2:
        sizes = tuple(call.bottoms[1].shape[2:4])
    elif p.height and p.width:
        sizes = (int(p.height), int(p.width))
    else:
        sizes = tuple((n - 1) // p.shrink_factor + 1 for n in inner) if p.shrink_factor else ()
        sizes = tuple(n + (n - 1) * (p.zoom_factor - 1) for n in sizes)
    if len(sizes) != 2 or min(*sizes, *inner) < 1:
        raise call.wrong(f"cannot make {sizes} of {x.shape}")
    if begin or end:
        bounds = [(begin,) * 2, tuple(begin + n for n in inner), (2, 3)]
        cut = [call.builder.ints(*values) for values in bounds]
        x = call.step("cut", "Slice", [x, *cut], (*x.shape[:2], *inner))
    return _resized(call, x, sizes, mode="linear", coordinate_transformation_mode="align_corners")


@layer("Upsample")
def upsample(call: LayerCall) -> Result:
    """By a whole factor, each value repeated."""
    if len(call.layer.bottoms) > 1:
        raise Unsupported("unpooling by the mask of a pooling layer")
    call.take(1)
    p, x = call.p.upsample_param, call.x
    factors = (p.scale_h or p.scale, p.scale_w or p.scale)
    if x.rank != 4 or min(factors) < 1:
        raise call.wrong(f"factors {factors} of a blob of shape {x.shape}")
    sizes = (x.shape[2] * factors[0], x.shape[3] * factors[1])
    return _resized(
        call,
        x,
        sizes,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _resized(call: LayerCall, x: Tensor, sizes: Shape, **attributes: Any) -> Tensor:
    if sizes == x.shape[2:]:
        return x
    wanted = call.builder.constant(sizes, np.int64)
    shape = (*x.shape[:2], *sizes)
    return call.result("Resize", [x, None, None, wanted], shape, axes=[2, 3], **attributes)
