"""Shapes and layouts: Reshape with its codes, slices, joins, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions.layout import padded_as_given, sliced, sliced_backwards
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator
from memcli.engines.torch.convert.mxnet_operators.shapes import reshaped, reshaped_like
from memcli.engines.torch.convert.values import Unsupported

Tensor = torch.Tensor
Ints = tuple[int, ...]


def flattened(x: Tensor) -> Tensor:
    """All dimensions behind the first as one."""
    return x.reshape(x.shape[0], -1)


def joined(*tensors: Tensor, axis: int) -> Tensor:
    """Tensors one behind the other along ``axis``."""
    return torch.cat(tensors, axis)


def joined_flat(*tensors: Tensor) -> Tensor:
    """All elements of all tensors in one dimension."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def stacked(*tensors: Tensor, axis: int) -> Tensor:
    """Tensors side by side along a new dimension."""
    return torch.stack(tensors, axis)


def parts(x: Tensor, count: int, axis: int, squeeze: bool) -> tuple[Tensor, ...]:
    """``count`` equal parts along ``axis``, which goes where ``squeeze`` is set."""
    pieces = torch.split(x, x.shape[axis] // count, axis)
    return tuple(piece.squeeze(axis) for piece in pieces) if squeeze else tuple(pieces)


def parts_at(x: Tensor, starts: Ints, axis: int, squeeze: bool) -> tuple[Tensor, ...]:
    """The parts that begin at ``starts`` along ``axis``."""
    ends = (*starts[1:], x.shape[axis])
    pieces = [x.narrow(axis, a, b - a) for a, b in zip(starts, ends, strict=True)]
    return tuple(piece.squeeze(axis) for piece in pieces) if squeeze else tuple(pieces)


def repeated(x: Tensor, count: int, axis: int | None) -> Tensor:
    """Every element ``count`` times, along ``axis`` or of all dimensions as one."""
    if axis is None:
        return x.reshape(-1).repeat_interleave(count)
    return x.repeat_interleave(count, axis)


def padded(x: Tensor, padding: Ints, value: float) -> Tensor:
    """``x`` padded by a number; ``padding`` as ``torch.nn.functional.pad`` has it."""
    return F.pad(x, padding, value=value)


def squeezed(x: Tensor, axes: Ints) -> Tensor:
    """``x`` without ``axes``; at least one dimension stays."""
    y = x.squeeze(axes)
    return y.reshape(1) if y.dim() == 0 else y


@operator("Flatten", "flatten")
def flatten(site: Site) -> Call:
    return Call(flattened, (site.value(),))


@operator("Reshape", "reshape")
def reshape(site: Site) -> Call:
    attributes = site.attributes
    spec = attributes.ints("shape") or attributes.ints("target_shape")
    if not attributes.ints("shape") and spec:
        # the first form of the operator: 0 is what is left, or the old size where it is kept
        if attributes.flag("keep_highest"):
            spec = (site.shape()[0], *spec[1:])
        spec = tuple(-1 if size == 0 else size for size in spec)
    return Call(torch.reshape, (site.value(), reshaped(site.shape(), spec, attributes)))


@operator("reshape_like")
def like(site: Site) -> Call:
    return Call(
        torch.reshape, (site.value(), reshaped_like(site.shape(), site.shape(1), site.attributes))
    )


@operator("transpose")
def transpose(site: Site) -> Call:
    axes = site.attributes.ints("axes") or tuple(reversed(range(site.rank())))
    return Call(torch.permute, (site.value(), tuple(site.axis(axis) for axis in axes)))


@operator("SwapAxis", "swapaxes")
def swapped(site: Site) -> Call:
    first = site.axis(site.attributes.integer("dim1", 0))
    return Call(
        torch.transpose, (site.value(), first, site.axis(site.attributes.integer("dim2", 0)))
    )


@operator("expand_dims")
def expanded(site: Site) -> Call:
    axis = site.attributes.integer("axis", 0)
    return Call(torch.unsqueeze, (site.value(), axis))


@operator("squeeze")
def squeeze(site: Site) -> Call:
    if site.attributes.has("axis"):
        axes = tuple(site.axis(axis) for axis in site.attributes.ints("axis"))
    else:
        axes = tuple(d for d, size in enumerate(site.shape()) if size == 1)
    return Call(squeezed, (site.value(), axes))


@operator("Concat", "concat")
def concat(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("dim", 1))
    return Call(joined, tuple(site.inputs), {"axis": axis})


@operator("_rnn_param_concat")
def concat_parameters(site: Site) -> Call:
    return Call(joined_flat, tuple(site.inputs))


@operator("stack")
def stack(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("axis", 0), site.rank() + 1)
    return Call(stacked, tuple(site.inputs), {"axis": axis})


@operator("SliceChannel", "split")
def split(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("axis", 1))
    count = site.attributes.integer("num_outputs", 1)
    squeeze_axis = site.attributes.flag("squeeze_axis")
    return Call(parts, (site.value(), count, axis, squeeze_axis), many=True)


@operator("_split_v2")
def split_at(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("axis", 1))
    squeeze_axis = site.attributes.flag("squeeze_axis")
    sections = site.attributes.integer("sections", 0)
    if sections:
        return Call(parts, (site.value(), sections, axis, squeeze_axis), many=True)
    starts = site.attributes.ints("indices")
    return Call(parts_at, (site.value(), starts, axis, squeeze_axis), many=True)


@operator("slice_axis")
def slice_axis(site: Site) -> Call:
    axis = site.axis(site.attributes.integer("axis", 0))
    size = site.shape()[axis]
    begin = site.attributes.integer("begin", 0)
    end = site.attributes.optional("end")
    begin = begin + size if begin < 0 else begin
    end = size if end is None else (end + size if end < 0 else end)
    return Call(sliced, (site.value(), (begin,), (end,), (axis,), (1,)))


@operator("slice", "crop")
def slice_dims(site: Site) -> Call:
    begin = site.attributes.open_ints("begin")
    end = site.attributes.open_ints("end")
    step = site.attributes.open_ints("step") or (None,) * len(begin)
    starts, stops, steps = [], [], []
    for size, b, e, s in zip(site.shape(), begin, end, step, strict=False):
        jump = 1 if s in (None, 0) else s
        assert jump is not None
        start, stop, _ = slice(b, e, jump).indices(size)
        starts.append(start)
        stops.append(stop)
        steps.append(jump)
    function = sliced if all(s > 0 for s in steps) else sliced_backwards
    axes = tuple(range(len(starts)))
    return Call(function, (site.value(), tuple(starts), tuple(stops), axes, tuple(steps)))


@operator("slice_like")
def slice_like(site: Site) -> Call:
    axes = tuple(site.axis(axis) for axis in site.attributes.ints("axes"))
    axes = axes or tuple(range(site.rank(1)))
    stops = tuple(site.shape(1)[axis] for axis in axes)
    zeros, ones = (0,) * len(axes), (1,) * len(axes)
    return Call(sliced, (site.value(), zeros, stops, axes, ones))


@operator("Crop")
def crop(site: Site) -> Call:
    x = site.shape()
    height, width = site.attributes.ints("h_w", (0, 0))
    if len(site.inputs) > 1:
        height, width = site.shape(1)[2:]
    top, left = site.attributes.ints("offset", (0, 0))
    if site.attributes.flag("center_crop"):
        top, left = (x[2] - height) // 2, (x[3] - width) // 2
    stops = (top + height, left + width)
    return Call(sliced, (site.value(), (top, left), stops, (2, 3), (1, 1)))


@operator("reverse", "flip")
def reverse(site: Site) -> Call:
    axes = tuple(site.axis(axis) for axis in site.attributes.ints("axis"))
    return Call(torch.flip, (site.value(), axes))


@operator("tile")
def tile(site: Site) -> Call:
    return Call(torch.tile, (site.value(), site.attributes.ints("reps")))


@operator("repeat")
def repeat(site: Site) -> Call:
    axis = site.attributes.optional("axis")
    axis = None if axis is None else site.axis(axis)
    return Call(repeated, (site.value(), site.attributes.integer("repeats", 1), axis))


@operator("broadcast_axis", "broadcast_axes")
def broadcast_axis(site: Site) -> Call:
    shape = list(site.shape())
    axes, sizes = site.attributes.ints("axis"), site.attributes.ints("size")
    for axis, size in zip(axes, sizes, strict=True):
        shape[site.axis(axis)] = size
    return Call(torch.broadcast_to, (site.value(), tuple(shape)))


@operator("broadcast_to")
def broadcast_to(site: Site) -> Call:
    asked = site.attributes.ints("shape")
    shape = tuple(new or old for old, new in zip(site.shape(), asked, strict=True))
    return Call(torch.broadcast_to, (site.value(), shape))


@operator("broadcast_like")
def broadcast_like(site: Site) -> Call:
    shape = list(site.shape())
    left, right = site.attributes.ints("lhs_axes"), site.attributes.ints("rhs_axes")
    if not left:
        shape = list(site.shape(1))
    for a, b in zip(left, right, strict=True):
        shape[site.axis(a)] = site.shape(1)[site.axis(b, site.rank(1))]
    return Call(torch.broadcast_to, (site.value(), tuple(shape)))


@operator("Pad", "pad")
def pad(site: Site) -> Call:
    widths = site.attributes.ints("pad_width")
    pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)]
    padding = tuple(width for pair in reversed(pairs) for width in pair)
    mode = site.attributes.text("mode", "constant")
    if mode == "constant":
        value = site.attributes.number("constant_value", 0.0)
        return Call(padded, (site.value(), padding, value))
    if mode not in ("edge", "reflect") or any(padding[-4:]):
        raise Unsupported(f"mode={mode}")
    kind = {"edge": "replicate", "reflect": "reflect"}[mode]
    return Call(padded_as_given, (site.value(), padding[:-4], kind))


@operator("depth_to_space")
def depth_to_space(site: Site) -> Call:
    from memcli.engines.torch.convert.functions.layout import depth_to_space_columns_last

    block = site.attributes.integer("block_size", 1)
    return Call(depth_to_space_columns_last, (site.value(), block))


@operator("space_to_depth")
def space_to_depth(site: Site) -> Call:
    from memcli.engines.torch.convert.functions.layout import space_to_depth as function

    return Call(function, (site.value(), site.attributes.integer("block_size", 1)))
