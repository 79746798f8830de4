"""Shapes and layouts: reshaping, transposing, slicing, joining, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import layout as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported
from memcli.engines.torch.convert.windows import flat_padding

_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Reshape")
def reshape(site: Site) -> Result:
    """A zero keeps the dimension, unless ``allowzero`` says that it is a zero."""
    sizes = list(site.ints(1))
    if not site.get("allowzero", 0):
        if any(size == 0 and d >= site.rank() for d, size in enumerate(sizes)):
            raise Unsupported("a zero in its shape where the input has no dimension")
        sizes = [site.shape()[d] if size == 0 else size for d, size in enumerate(sizes)]
    return Call(torch.reshape, (site.value(0), tuple(sizes)))


@operator("Flatten")
def flatten(site: Site) -> Result:
    axis = site.get("axis", 1)
    axis = axis + site.rank() if axis < 0 else axis
    shape = site.shape()
    if axis == 1 and site.rank() > 1:
        return Call(torch.flatten, (site.value(0), 1))
    sizes = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    return Call(torch.reshape, (site.value(0), sizes))


@operator("Transpose")
def transpose(site: Site) -> Result:
    order = site.ints_of("perm", tuple(reversed(range(site.rank())))) or ()
    moved = [d for d, source in enumerate(order) if d != source]
    if len(moved) == 2:
        return Call(torch.transpose, (site.value(0), *moved))
    return Call(torch.permute, (site.value(0), order))


@operator("Squeeze")
def squeeze(site: Site) -> Result:
    axes = _axes(site)
    if axes is None:
        axes = tuple(d for d, size in enumerate(site.shape()) if size == 1)
    axes = tuple(site.axis(axis) for axis in axes)
    if any(site.shape()[axis] != 1 for axis in axes):
        raise Unsupported(f"squeezes dimensions {axes} of {site.shape()}, which are not all 1")
    return Call(torch.squeeze, (site.value(0), axes))


@operator("Unsqueeze")
def unsqueeze(site: Site) -> Result:
    given = _axes(site) or ()
    rank = site.rank() + len(given)
    axes = sorted(site.axis(axis, rank) for axis in given)
    if len(axes) == 1:
        return Call(torch.unsqueeze, (site.value(0), axes[0]))
    rest = iter(site.shape())
    sizes = tuple(1 if d in axes else next(rest) for d in range(rank))
    return Call(torch.reshape, (site.value(0), sizes))


@operator("Concat")
def concat(site: Site) -> Result:
    values = site.values()
    return Call(torch.cat, (list(values), site.axis(site.get("axis", 0))))


@operator("Split")
def split(site: Site) -> Result:
    axis = site.axis(site.get("axis", 0))
    size = site.shape()[axis]
    sizes = site.ints(1) if site.has(1) else site.ints_of("split")
    if sizes is None:
        count = site.get("num_outputs", len(site.node.output))
        each = -(-size // count)
        sizes = tuple(max(0, min(each, size - i * each)) for i in range(count))
    return Call(torch.split, (site.value(0), list(sizes), axis), many=True)


@operator("Slice")
def slice_(site: Site) -> Result:
    if "starts" in site.attributes:
        starts, ends = site.ints_of("starts") or (), site.ints_of("ends") or ()
        axes = site.ints_of("axes", range(len(starts))) or ()
        steps: tuple[int, ...] = (1,) * len(starts)
    else:
        starts, ends = site.ints(1), site.ints(2)
        axes = site.ints(3) if site.has(3) else tuple(range(len(starts)))
        steps = site.ints(4) if site.has(4) else (1,) * len(starts)
    axes = tuple(site.axis(axis) for axis in axes)
    stops = []
    begins = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Python's own rules are ONNX's, but for a stop before the beginning.
        begin, stop, _ = slice(start, end, step).indices(site.shape()[axis])
        begins.append(begin)
        stops.append(stop if step < 0 else max(begin, stop))
    function = functions.sliced if min(steps, default=1) > 0 else functions.sliced_backwards
    return Call(function, (site.value(0), tuple(begins), tuple(stops), axes, steps))


@operator("Expand")
def expand(site: Site) -> Result:
    shape = torch.broadcast_shapes(site.shape(), site.ints(1))
    return Call(torch.broadcast_to, (site.value(0), tuple(shape)))


@operator("Tile")
def tile(site: Site) -> Result:
    return Call(torch.tile, (site.value(0), site.ints(1)))


@operator("Pad")
def pad(site: Site) -> Result:
    mode = site.get("mode", "constant")
    pads = site.ints_of("pads") if "pads" in site.attributes else site.ints(1)
    axes = tuple(range(site.rank()))
    if site.has(3):
        axes = tuple(site.axis(axis) for axis in site.ints(3))
    before, after = [0] * site.rank(), [0] * site.rank()
    for i, axis in enumerate(axes):
        before[axis], after[axis] = (pads or ())[i], (pads or ())[i + len(axes)]
    first = next((d for d in range(site.rank()) if before[d] or after[d]), site.rank())
    padding = flat_padding(before[first:], after[first:])
    x = site.value(0)
    if not padding:
        return x
    if mode == "constant":
        if site.has(2) and site.value(2).known is None:
            return Call(functions.padded_by_tensor, (x, padding, site.value(2)))
        value = site.number(2) if site.has(2) else site.get("value", 0.0)
        return Call(F.pad, (x, padding, "constant", value))
    if mode not in _PAD_MODES:
        raise Unsupported(f"mode {mode!r}")
    plain = site.rank() - 2 == len(padding) // 2 <= 3 and min(padding) >= 0
    if plain and mode != "wrap" and site.is_float():
        return Call(functions.padded_as_given, (x, padding, _PAD_MODES[mode]))
    indices = tuple(
        _padding_index(x.shape[d], before[d], after[d], mode) if before[d] or after[d] else None
        for d in range(site.rank())
    )
    return Call(functions.padded_by_index, (x, indices))


@operator("DepthToSpace")
def depth_to_space(site: Site) -> Result:
    block = site.get("blocksize", 1)
    if site.get("mode", "DCR") == "CRD":
        return Call(F.pixel_shuffle, (site.value(0), block))
    return Call(functions.depth_to_space_columns_last, (site.value(0), block))


@operator("SpaceToDepth")
def space_to_depth(site: Site) -> Result:
    if site.get("mode", "DCR") == "CRD":
        return Call(F.pixel_unshuffle, (site.value(0), site.get("blocksize", 1)))
    return Call(functions.space_to_depth, (site.value(0), site.get("blocksize", 1)))


@operator("Trilu")
def triangle(site: Site) -> Result:
    function = torch.triu if site.get("upper", 1) else torch.tril
    return Call(function, (site.value(0), site.number(1) if site.has(1) else 0))


@operator("ReverseSequence")
def reverse_sequence(site: Site) -> Result:
    axes = site.get("batch_axis", 1), site.get("time_axis", 0)
    return Call(functions.reversed_sequences, (site.value(0), site.value(1), *axes))


def _axes(site: Site) -> tuple[int, ...] | None:
    """Axes that were an attribute before operator set 13 and are an input since."""
    return site.ints(1) if site.has(1) else site.ints_of("axes")


def _padding_index(size: int, before: int, after: int, mode: str) -> tuple[int, ...]:
    """Which positions of a dimension to take, in order."""
    places: Sequence[int] = range(-before, size + after)
    if mode == "edge":
        return tuple(min(max(p, 0), size - 1) for p in places)
    if mode == "wrap":
        return tuple(p % size for p in places)
    period = max(1, 2 * (size - 1))
    return tuple(min(p % period, period - p % period) for p in places)
