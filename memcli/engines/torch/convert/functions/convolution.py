"""Convolutions whose padding differs between the two ends of a dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Ints = tuple[int, ...]


def convolution_padded(
    x: Tensor, w: Tensor, b: Tensor | None, padding: Ints, stride: Ints, dilation: Ints, groups: int
) -> Tensor:
    """A convolution of ``x`` padded by zeros; ``padding`` as ``torch.nn.functional.pad`` has it."""
    zeros = (0,) * len(stride)
    x = F.pad(x, padding)
    return torch.convolution(x, w, b, stride, zeros, dilation, False, zeros, groups)


def transposed_convolution_padded(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    padding: Ints,
    stride: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    """A transposed convolution with ``padding`` (negative: cropped) applied to its output."""
    zeros = (0,) * len(stride)
    y = torch.convolution(x, w, None, stride, zeros, dilation, True, output_padding, groups)
    y = F.pad(y, padding)
    return y if b is None else y + b.reshape(-1, *(1,) * len(stride))
