"""Reading and writing at positions that are tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def taken(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """``x`` at positions ``index`` (negative ones from the end) along ``axis``."""
    return x[(slice(None),) * axis + (index.long(),)]


def taken_elements(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """``torch.gather`` for positions that may be negative."""
    index = index.long()
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


def taken_by_coordinates(x: Tensor, index: Tensor, batch_dims: int) -> Tensor:
    """``x`` at the coordinates in the last dimension of ``index``, within each batch."""
    parts = _coordinates(x, index, batch_dims)
    return x[parts]


def scattered(x: Tensor, index: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """``x`` with ``updates`` put, added, … at positions ``index`` along ``axis``."""
    index = index.long()
    index = torch.where(index < 0, index + x.shape[axis], index)
    if reduction == "none":
        return x.scatter(axis, index, updates)
    how = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, index, updates, how, include_self=True)


def scattered_by_coordinates(x: Tensor, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """``x`` with ``updates`` put or added at the coordinates in the last dimension of ``index``."""
    return x.index_put(_coordinates(x, index, 0), updates, accumulate=reduction == "add")


def scattered_and_reduced(x: Tensor, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """The same for products, maxima and minima."""
    depth = index.shape[-1]
    sizes = x.shape[:depth]
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=x.device)
    for part, size in zip(_coordinates(x, index, 0), sizes, strict=True):
        flat = flat * size + torch.where(part < 0, part + size, part)
    rows = x.reshape(-1, *x.shape[depth:])
    shape = (-1,) + (1,) * (rows.dim() - 1)
    values = updates.reshape(-1, *x.shape[depth:])
    how = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    places = flat.reshape(shape).expand(values.shape)
    return rows.scatter_reduce(0, places, values, how, include_self=True).reshape(x.shape)


def one_hot(index: Tensor, values: Tensor, depth: int, axis: int) -> Tensor:
    """``values[1]`` at position ``index`` of a new dimension, ``values[0]`` elsewhere.

    Positions are from -depth to depth - 1; others give no ``values[1]`` at all.
    """
    places = torch.arange(depth, device=index.device)
    shape = [1] * (index.dim() + 1)
    shape[axis] = depth
    index = index.long().unsqueeze(axis)
    hit = torch.where(index < 0, index + depth, index) == places.reshape(shape)
    return torch.where(hit, values[1], values[0])


def cumulated(x: Tensor, axis: int, exclusive: bool, backwards: bool, product: bool) -> Tensor:
    """Running sums or products; ``exclusive``: without the element itself."""
    x = x.flip(axis) if backwards else x
    if exclusive:
        padding = (0, 0) * (x.dim() - 1 - axis) + (1, 0)
        x = F.pad(x, padding, value=1.0 if product else 0.0).narrow(axis, 0, x.shape[axis])
    y = torch.cumprod(x, axis, dtype=x.dtype) if product else torch.cumsum(x, axis, dtype=x.dtype)
    return y.flip(axis) if backwards else y


def _coordinates(x: Tensor, index: Tensor, batch_dims: int) -> tuple[Tensor, ...]:
    """An index tensor for each dimension that the coordinates name, batches before them."""
    index = index.long()
    shape = index.shape[:-1]
    parts = []
    for d in range(batch_dims):
        sizes = [1] * len(shape)
        sizes[d] = x.shape[d]
        parts.append(torch.arange(x.shape[d], device=x.device).reshape(sizes).expand(shape))
    return (*parts, *index.unbind(-1))
