"""Where Resize reads: positions and weights for each output of one dimension.

The formulas are those of the operator's text (ONNX, Resize-19).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """How one dimension of ``size`` elements becomes one of ``out``."""

    axis: int
    size: int
    out: int
    scale: float
    start: float = 0.0  # of the part that is read, where it is cropped
    end: float = 1.0


def positions(axis: Axis, coordinates: str) -> Floats:
    """The place in the input, in elements, for each output.

    Raises:
        KeyError: coordinates that the operator's text does not know.
    """
    i = np.arange(axis.out, dtype=np.float64)
    half = (i + 0.5) / axis.scale - 0.5
    if coordinates == "half_pixel":
        return half
    if coordinates == "pytorch_half_pixel":
        return half if axis.out > 1 else np.zeros(axis.out)
    if coordinates == "half_pixel_symmetric":
        adjustment = axis.out / (axis.scale * axis.size)
        return axis.size / 2 * (1 - adjustment) + half
    if coordinates == "align_corners":
        return i * (axis.size - 1) / (axis.out - 1) if axis.out > 1 else np.zeros(axis.out)
    if coordinates == "asymmetric":
        return i / axis.scale
    if coordinates == "tf_crop_and_resize":
        last = axis.size - 1
        if axis.out > 1:
            return axis.start * last + i * (axis.end - axis.start) * last / (axis.out - 1)
        return np.full(axis.out, 0.5 * (axis.start + axis.end) * last)
    raise KeyError(coordinates)


def nearest(axis: Axis, coordinates: str, rounding: str) -> tuple[int, ...]:
    """Which element each output takes."""
    x = positions(axis, coordinates)
    rounded = {
        "round_prefer_floor": lambda: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda: np.floor(x + 0.5),
        "floor": lambda: np.floor(x),
        "ceil": lambda: np.ceil(x),
    }[rounding]()
    return tuple(int(p) for p in np.clip(rounded, 0, axis.size - 1))


@lru_cache(maxsize=256)
def weights(
    axis: Axis, coordinates: str, cubic: float | None, antialias: bool, exclude_outside: bool
) -> Floats:
    """(out, size): how much of each element each output takes; ``cubic`` is its coefficient,
    None for linear interpolation.
    """
    x = positions(axis, coordinates)
    shrink = min(axis.scale, 1.0) if antialias else 1.0
    reach = 1 if cubic is None else 2
    half = int(np.ceil(reach / shrink))
    left = np.ceil(x)[:, None] + np.arange(-half, half)[None, :]
    distance = np.abs(x[:, None] - left) * shrink
    if cubic is None:
        w = np.clip(1 - distance, 0, 1)
    else:
        near = ((cubic + 2) * distance - (cubic + 3)) * distance**2 + 1
        far = ((cubic * distance - 5 * cubic) * distance + 8 * cubic) * distance - 4 * cubic
        w = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    if exclude_outside:
        w = np.where((left < 0) | (left >= axis.size), 0.0, w)
    if antialias or exclude_outside:
        w = w / w.sum(1, keepdims=True)
    matrix = np.zeros((axis.out, axis.size))
    places = np.clip(left, 0, axis.size - 1).astype(np.int64)
    np.add.at(matrix, (np.arange(axis.out)[:, None], places), w)
    return matrix
