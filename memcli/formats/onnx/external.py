"""Tensors that an ONNX file keeps in other files: where they are, and their values."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from memcli.errors import BadInput
from memcli.formats.detect import LARGEST_FILE
from memcli.formats.onnx.check import subgraphs
from memcli.quoting import STANDARD, shown, shown_path, whole_number

_REPLACE = "save the model anew with its data beside it (onnx.save, save_as_external_data=True)"


def data_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder that a model's external data is in: its own. None for what came through a pipe
    of the shell's, which is in none."""
    text = os.fspath(path)
    if text == STANDARD or os.path.abspath(text).startswith(("/dev/", "/proc/")):
        return None
    return Path(text).parent


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's values are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph and its subgraphs: initializers and tensors of attributes.

    A Constant node's tensor often has no name; its output's name says what it is.
    """
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors
        for subgraph in subgraphs(node):
            yield from tensors(subgraph)


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """Those of the file's tensors whose values are in other files; functions' included."""
    found = [tensor for tensor in tensors(model.graph) if is_external(tensor)]
    for function in model.functions:
        inner = GraphProto(node=function.node)
        found += [tensor for tensor in tensors(inner) if is_external(tensor)]
    return found


def check_locations(
    external: Iterable[TensorProto], path: str | os.PathLike[str]
) -> dict[str, Path]:
    """{location as the file has it: path}, each within the folder of the model at ``path``.

    The files need not exist.

    Raises:
        BadInput: a location that is missing, absolute, or outside of the model's folder, by
            ``..`` or by a symbolic link.
    """
    name = shown_path(os.fspath(path))
    found: dict[str, Path] = {}
    for tensor in external:
        location = _entry(tensor, "location")
        if location in found:
            continue
        where = f"{name}: tensor {shown(tensor.name)}"
        if not location or "\0" in location:
            raise BadInput(f"{where}: is external, but does not say in which file", _REPLACE)
        folder = data_folder(path)
        # where there is no folder, the location is checked all the same
        found[location] = _within_folder(location, folder or Path(os.devnull).parent, where)
    return found


def read_external(
    tensor: TensorProto, path: str | os.PathLike[str], most: int = LARGEST_FILE
) -> TensorProto | None:
    """The tensor with its values in it; None where the file that has them is not there.

    Args:
        tensor: as the model has it.
        path: the model's own.
        most: bytes that are read.

    Raises:
        BadInput: a location outside of the model's folder, or a file that is too short, cannot
            be read, does not fit the tensor's shape, or is larger than ``most``.
    """
    where = f"{shown_path(os.fspath(path))}: tensor {shown(tensor.name)}"
    source = check_locations([tensor], path)[_entry(tensor, "location")]
    if data_folder(path) is None or not source.is_file():
        return None
    offset = _whole(_entry(tensor, "offset") or "0", where)
    needed = _bytes_of(tensor, where)
    said = _entry(tensor, "length")
    length = _whole(said, where) if said else needed
    if length != needed:
        raise BadInput(f"{where}: has {length} bytes, but its shape takes {needed}", _REPLACE)
    if length > most:
        raise BadInput(
            f"{where}: takes {length} bytes, and {most} at most are read of it",
            "a tensor that decides about shapes has a few numbers" if most < LARGEST_FILE else "",
        )
    try:
        with open(source, "rb") as file:
            there = os.fstat(file.fileno()).st_size
            if there < offset + length:
                raise BadInput(
                    f"{where}: wants bytes {offset} to {offset + length} of "
                    f"{shown_path(source.name)}, which ends {offset + length - there} bytes too "
                    "early",
                    "the data file is cut short or of another model: copy it again",
                )
            file.seek(offset)
            raw = file.read(length)
    except OSError as error:
        raise BadInput(
            f"{where}: {shown_path(source.name)} cannot be read: {error.strerror}"
        ) from error
    except MemoryError as error:
        raise BadInput(f"{where}: its {length} bytes do not fit in memory") from error
    if len(raw) != length:
        raise BadInput(f"{where}: {shown_path(source.name)} was cut while it was read")
    whole = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    whole.raw_data = raw
    return whole


def tensor_array(
    tensor: TensorProto, path: str | os.PathLike[str] | None = None
) -> np.ndarray | None:
    """The tensor's values; None where they are in a file that is not there (or not asked for).

    ``path``: the model's own, to load external values; None to leave them alone.

    Raises:
        BadInput: as :func:`read_external`, or values that do not fit the tensor's shape.
    """
    if is_external(tensor):
        loaded = read_external(tensor, path) if path is not None else None
        if loaded is None:
            return None
        tensor = loaded
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, MemoryError) as error:
        where = "" if path is None else f"{shown_path(os.fspath(path))}: "
        raise BadInput(
            f"{where}tensor {shown(tensor.name)}: its values do not fit its shape"
        ) from error


def same_place(tensor: TensorProto) -> tuple[str, str, str] | None:
    """(location, offset, length) as the file has them: equal where two tensors are one.

    None where the file does not say all three, so that nothing can be told from them.
    """
    place = _entry(tensor, "location"), _entry(tensor, "offset"), _entry(tensor, "length")
    return place if all(place) else None


def _entry(tensor: TensorProto, key: str) -> str:
    return next((e.value for e in tensor.external_data if e.key == key), "")


def _within_folder(location: str, folder: Path, where: str) -> Path:
    if os.path.isabs(location) or location.startswith(("/", "\\")) or location[1:2] == ":":
        raise BadInput(
            f"{where}: its data is at the absolute path {shown(location)}, "
            "and data may not be outside of the model's folder",
            _REPLACE,
        )
    target = folder / location
    steps = 0
    for part in location.replace("\\", "/").split("/"):
        steps += -1 if part == ".." else part not in ("", ".")
        if steps < 0:
            break
    # A link is followed before '..' is: the real path counts, not the text alone.
    if steps < 0 or not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(folder)):
        raise BadInput(
            f"{where}: its data at {shown(location)} is outside of the model's folder", _REPLACE
        )
    return target


def _whole(text: str, where: str) -> int:
    number = whole_number(text)
    if number is None:
        raise BadInput(f"{where}: {shown(text)} is no place in its data file", _REPLACE)
    return number


def _bytes_of(tensor: TensorProto, where: str) -> int:
    try:
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise BadInput(f"{where}: its type {tensor.data_type} cannot be external") from None
    elements = math.prod(tensor.dims)
    # Types of under a byte are packed: two or four to a byte.
    packed = {"UINT4": 2, "INT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}
    per_byte = packed.get(TensorProto.DataType.Name(tensor.data_type))
    return -(-elements // per_byte) if per_byte else elements * kind.itemsize
