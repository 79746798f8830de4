"""Resizing in the ways that PyTorch's own interpolation does not know."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.interpolation import Axis, positions, weights

Tensor = torch.Tensor
Ints = tuple[int, ...]
# (axis, size, out, scale, start, end), the fields of Axis
Described = tuple[int, int, int, float, float, float]


def resized_nearest(x: Tensor, indices: tuple[Ints | None, ...]) -> Tensor:
    """``x`` at the given positions of each dimension; None for all."""
    for axis, index in enumerate(indices):
        if index is not None:
            x = x.index_select(axis, torch.tensor(index, device=x.device))
    return x


def interpolated(
    x: Tensor, sizes: Ints | None, scales: tuple[float, ...] | None, mode: str, corners: bool
) -> Tensor:
    """PyTorch's linear and cubic interpolation."""
    return F.interpolate(x, sizes, scales, mode, corners, recompute_scale_factor=False)


def resized_by_weights(
    x: Tensor,
    axes: tuple[Described, ...],
    coordinates: str,
    cubic: float | None,
    antialias: bool,
    exclude_outside: bool,
    extrapolated: float | None,
) -> Tensor:
    """A product with a matrix of weights for each dimension that changes.

    ``extrapolated`` is what stands where the position is outside of ``x``; None: the edge.
    """
    inside: Tensor | None = None
    for described in axes:
        axis = Axis(*described)
        matrix = weights(axis, coordinates, cubic, antialias, exclude_outside)
        factor = torch.tensor(matrix.tolist(), dtype=x.dtype, device=x.device)
        x = torch.tensordot(x, factor, ([axis.axis], [1])).movedim(-1, axis.axis)
        if extrapolated is not None:
            places = positions(axis, coordinates)
            within = (places >= 0) & (places <= axis.size - 1)
            shape = [1] * x.dim()
            shape[axis.axis] = axis.out
            mask = torch.tensor(within.tolist(), device=x.device).reshape(shape)
            inside = mask if inside is None else inside & mask
    return x if inside is None else torch.where(inside, x, extrapolated or 0.0)
