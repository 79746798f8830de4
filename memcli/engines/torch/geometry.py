"""Tensors as views of storages: taken apart into a light description, and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """Where a tensor lies in its storage; size, stride and offset in elements of ``dtype``."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    conj: bool
    neg: bool


def geometry(tensor: Tensor) -> Geometry:
    """The description of a strided tensor; holds nothing of it alive."""
    return Geometry(
        tensor.size(),
        tensor.stride(),
        tensor.storage_offset(),  # type: ignore[arg-type]  # shapes are numbers here
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def storage_key(tensor: Tensor) -> int:
    """Tells storages apart for as long as they live."""
    return tensor.untyped_storage()._cdata


def has_storage(tensor: Tensor) -> bool:
    """False for sparse and other tensors that are no view of one storage."""
    return tensor.layout is _STRIDED and not tensor.is_nested


_STRIDED = torch.strided


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie side by side in some order of the dimensions, each at its place."""
    if tensor.numel() < 2:
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def physical(tensor: Tensor) -> Tensor:
    """The tensor without autograd's history, and without its lazy conjugation and negation."""
    tensor = tensor.detach()
    if tensor.is_conj():
        tensor = torch._conj(tensor)
    if tensor.is_neg():
        tensor = torch._neg_view(tensor)
    return tensor


def view_of(base: Tensor, where: Geometry) -> Tensor:
    """The tensor that ``where`` describes, in the storage of ``base`` (a physical tensor)."""
    if base.dtype != where.dtype:
        elements = base.untyped_storage().nbytes() // base.element_size()
        base = base.as_strided((elements,), (1,), 0).view(where.dtype)
    result = base.as_strided(where.size, where.stride, where.offset)
    if where.conj:
        result = torch._conj(result)
    return torch._neg_view(result) if where.neg else result


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of a value of tuples, lists and dicts, in order, each as often as it is there."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
