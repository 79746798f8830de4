"""Tensors of an ONNX graph while it is converted: what is known of each, and their types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

# PyTorch stores uint16, uint32 and uint64, but computes nothing on them.
_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}


class Unsupported(Exception):
    """A node that has no counterpart here; the text says why."""


def torch_type(elem_type: int) -> torch.dtype:
    """PyTorch's type for one of ONNX's.

    Raises:
        Unsupported: strings, types of few bits, large unsigned integers.
    """
    if elem_type not in _TYPES:
        names = {v: k for k, v in TensorProto.DataType.items()}
        raise Unsupported(f"type {names.get(elem_type, elem_type)} is not supported")
    return _TYPES[elem_type]


@dataclass(eq=False)
class Value:
    """One tensor of the graph, or a sequence of them.

    ``known`` is its value on the host where shapes and constants alone decide it; ``role`` is
    set for what the module holds (parameter, state, constant) and ``stored`` then is where its
    elements are; ``node`` the fx node that gives it; ``fake`` a tensor without data that has its
    shape and type.
    """

    name: str
    fake: Any = None
    known: torch.Tensor | None = None
    role: str | None = None
    stored: onnx.TensorProto | torch.Tensor | None = None
    node: torch.fx.Node | None = None

    @property
    def is_sequence(self) -> bool:
        return isinstance(self.fake, (tuple, list))

    @property
    def tensor(self) -> torch.Tensor:
        """What has the shape and type."""
        if self.is_sequence:
            raise Unsupported("a sequence stands where a tensor should be")
        return self.known if self.known is not None else self.fake

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype


def stored_tensor(value: Value) -> torch.Tensor | None:
    """The elements that the file has of what the module holds; None where it has none."""
    if isinstance(value.stored, torch.Tensor):
        return value.stored
    if value.stored is not None and has_data(value.stored):
        return tensor_of(value.stored)
    return None


def has_data(proto: onnx.TensorProto) -> bool:
    """Whether the file itself holds the tensor's elements."""
    if proto.data_location == TensorProto.EXTERNAL:
        return False
    if not np.prod(proto.dims):
        return True
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return any(len(getattr(proto, field)) for field in fields)


def tensor_of(proto: onnx.TensorProto) -> torch.Tensor:
    """The elements of a tensor that has them, as a real tensor of its own memory.

    Raises:
        Unsupported: a type that PyTorch has not.
    """
    dtype = torch_type(proto.data_type)
    array = numpy_helper.to_array(proto)
    if dtype is torch.bfloat16 and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    array = np.array(array, copy=True, order="C")
    return torch.from_numpy(array).reshape(tuple(proto.dims)).to(dtype)
