"""Where data comes in: the tops of data layers, with what the net says of their shapes."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memcli.errors import BadInput
from memcli.formats.caffe.net import Layer, Net
from memcli.formats.caffe.registry import LEFT_OUT

Dims = tuple[int | str | None, ...]

# Bottoms that are labels: whole numbers.
_LABELS = {
    ("SoftmaxWithLoss", 1),
    ("HingeLoss", 1),
    ("MultinomialLogisticLoss", 1),
    ("InfogainLoss", 1),
    ("Accuracy", 1),
    ("Embed", 0),
}
_PASSES_ON = {"Split", "Slice", "Reshape", "Flatten", "Crop", "Concat", "Permute", "Tile"}
# What is said of a shape that nothing in the net tells.
CHANNELS = 3


@dataclass(frozen=True)
class FreeBlob:
    """A top of a data layer."""

    name: str
    dims: Dims | None  # names for what is open; None: not even how many there are
    integer: bool
    assumed: bool = False  # a dimension was made up here


def is_source(layer: Layer) -> bool:
    """Whether a layer brings data in; a layer of an unknown type without bottoms does."""
    return not layer.bottoms and layer.type not in ("Parameter",)


def free_blobs(
    net: Net, asked: Mapping[str, Sequence[int]], unnamed: bool
) -> tuple[list[FreeBlob], int | None]:
    """Tops of the data layers that training reads, in order, and the batch that they are for.

    Leading dimensions that are the batch are open: it may be another one.

    Channels that the net does not tell are three, unless the user gives the shape (``asked``: by
    name or pattern; ``unnamed``: without a name).

    Raises:
        BadInput: a data layer with impossible parameters.
    """
    found: list[FreeBlob] = []
    for position, layer in enumerate(net.layers):
        if not is_source(layer):
            continue
        shapes = _shapes(layer, net.path)
        for top, (name, dims) in enumerate(zip(layer.tops, shapes, strict=True)):
            readers = {net.layers[r].type for r, _ in net.readers_of(position, top)}
            if readers <= LEFT_OUT:
                continue
            integer = is_label(net, position, top)
            if dims is None and integer:
                dims = (int(layer.parameter.hdf5_data_param.batch_size) or None,)
            if dims is not None and any(isinstance(d, int) and d < 0 for d in dims):
                raise BadInput(f"{net.path}: {layer.where}: blob {name!r} has shape {dims}")
            given = unnamed or any(fnmatch.fnmatchcase(name, pattern) for pattern in asked)
            assumed = dims is not None and "channels" in dims and not given
            if assumed:
                assert dims is not None
                dims = tuple(CHANNELS if d == "channels" else d for d in dims)
            found.append(FreeBlob(name, dims, integer, assumed))
    batch = next((b.dims[0] for b in found if b.dims and isinstance(b.dims[0], int)), None)
    return [
        FreeBlob(b.name, ("batch", *b.dims[1:]), b.integer, b.assumed)
        if b.dims and b.dims[0] in (batch, None)
        else b
        for b in found
    ], batch


def _shapes(layer: Layer, path: str) -> list[Dims | None]:
    """The shape of each top."""
    p, kind, tops = layer.parameter, layer.type, len(layer.tops)
    if kind in ("Data", "ImageData", "WindowData"):
        return _of_images(layer)[:tops] + [None] * (tops - 2)
    if kind == "MemoryData":
        of = p.memory_data_param
        both: list[Dims | None] = [
            (of.batch_size, of.channels, of.height, of.width),
            (of.batch_size,),
        ]
        return both[:tops] + [None] * (tops - 2)
    if kind == "HDF5Data":
        return [None] * tops  # its file says them
    if kind == "Input":
        shapes = [tuple(shape.dim) for shape in p.input_param.shape]
        return _for_each(shapes, layer, path)
    if kind == "DummyData":
        of = p.dummy_data_param
        sizes = [list(getattr(of, f)) for f in ("num", "channels", "height", "width")]
        old = [
            tuple(row[min(i, len(row) - 1)] for row in sizes)
            for i in range(max(len(row) for row in sizes))
            if all(sizes)
        ]
        return _for_each([tuple(shape.dim) for shape in of.shape] or old, layer, path)
    return [None] * tops


def _for_each(shapes: list[tuple[Any, ...]], layer: Layer, path: str) -> list[Dims | None]:
    tops = len(layer.tops)
    if not shapes:
        return [None] * tops
    if len(shapes) not in (1, tops):
        raise BadInput(f"{path}: {layer.where} has {len(shapes)} shapes for {tops} tops")
    return list(shapes * tops if len(shapes) == 1 else shapes)


def _of_images(layer: Layer) -> list[Dims | None]:
    """Images and a label for each."""
    p = layer.parameter
    transform = p.transform_param
    of = {"Data": p.data_param, "ImageData": p.image_data_param, "WindowData": p.window_data_param}[
        layer.type
    ]
    batch = int(of.batch_size) or None
    crop = transform.crop_size or of.crop_size
    height: int | str = int(crop) or "height"
    width: int | str = int(crop) or "width"
    channels: int | str = "channels"
    if layer.type == "ImageData":
        channels = 3 if of.is_color else 1
        if not crop and of.new_height and of.new_width:
            height, width = int(of.new_height), int(of.new_width)
    elif layer.type == "WindowData":
        channels = 3
    elif transform.force_color or len(transform.mean_value) > 1:
        channels = 3 if transform.force_color else len(transform.mean_value)
    elif transform.force_gray:
        channels = 1
    return [(batch, channels, height, width), (batch,)]


def is_label(net: Net, layer: int, top: int) -> bool:
    """Whether a blob is read as labels and as nothing else, by way of layers that pass it on."""
    stack, seen, labels = [(layer, top)], {(layer, top)}, False
    while stack:
        for reader, bottom in net.readers.get(stack.pop(), []):
            kind = net.layers[reader].type
            if (kind, bottom) in _LABELS:
                labels = True
            elif kind in _PASSES_ON:
                if kind == "Crop" and bottom == 1:
                    continue  # for its shape alone
                tops = [(reader, t) for t in range(len(net.layers[reader].tops))]
                stack += [t for t in tops if t not in seen]
                seen.update(tops)
            elif kind != "Silence":
                return False
    return labels
