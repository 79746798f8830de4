"""Shapes and layouts: slices, splits, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Ints = tuple[int, ...]


def sliced(x: Tensor, starts: Ints, stops: Ints, axes: Ints, steps: Ints) -> Tensor:
    """A view of ``x`` from ``starts`` to before ``stops``, along ``axes``, in positive steps."""
    window: list[slice] = [slice(None)] * x.dim()
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        window[axis] = slice(start, stop, step)
    return x[tuple(window)]


def sliced_backwards(x: Tensor, starts: Ints, stops: Ints, axes: Ints, steps: Ints) -> Tensor:
    """The same where some steps are negative; ``starts`` and ``stops`` lie within ``x`` (-1:
    before its beginning).
    """
    flipped = []
    window: list[slice] = [slice(None)] * x.dim()
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if step > 0:
            window[axis] = slice(start, stop, step)
            continue
        last = x.shape[axis] - 1
        flipped.append(axis)
        window[axis] = slice(last - start, max(last - stop, 0), -step)
    return x.flip(flipped)[tuple(window)]


def padded_by_index(x: Tensor, indices: tuple[Ints | None, ...]) -> Tensor:
    """``x`` with elements repeated: for each dimension the positions to take, None for all."""
    for axis, index in enumerate(indices):
        if index is not None:
            x = x.index_select(axis, torch.tensor(index, device=x.device))
    return x


def padded_as_given(x: Tensor, padding: Ints, mode: str) -> Tensor:
    """``torch.nn.functional.pad`` with a mode other than a constant."""
    return F.pad(x, padding, mode)


def padded_by_tensor(x: Tensor, padding: Ints, value: Tensor) -> Tensor:
    """``x`` padded by a value that is a tensor of one element."""
    inside = F.pad(torch.ones_like(x, dtype=torch.bool), padding)
    return torch.where(inside, F.pad(x, padding), value.reshape(()))


def depth_to_space_columns_last(x: Tensor, block: int) -> Tensor:
    """(N, C b², H, W) to (N, C, H b, W b); depth is (row, column, channel) (mode DCR)."""
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """(N, C, H b, W b) to (N, C b², H, W); depth is (row, column, channel)."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def reversed_sequences(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    """The first ``lengths[b]`` steps of each sequence in reverse order, the rest as it is."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    ends = lengths.reshape(-1, 1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    if batch_axis > time_axis:
        index = index.t()
    shape = [1] * x.dim()
    shape[batch_axis], shape[time_axis] = x.shape[batch_axis], x.shape[time_axis]
    return x.gather(time_axis, index.reshape(shape).expand(x.shape))
