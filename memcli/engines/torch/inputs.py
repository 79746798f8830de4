"""Values to train on: the same for the same seed, and such as a graph can take."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from memcli.engines.torch.convert.onnx_graph import FreeInput

# Indices are drawn below this: small enough for any table, class or position.
_INDICES = 2


def input_values(inputs: Sequence[FreeInput], seed: int) -> list[Tensor]:
    """A value for each free input: normal numbers, ones for masks, small indices.

    Drawn on the CPU, so that every device gets the same.
    """
    values = []
    for wanted in inputs:
        generator = torch.Generator().manual_seed(zlib.crc32(wanted.name.encode()) ^ seed)
        if wanted.dtype == torch.bool or "mask" in wanted.name.lower():
            values.append(torch.ones(wanted.shape, dtype=wanted.dtype))
        elif wanted.dtype.is_floating_point:
            drawn = torch.randn(wanted.shape, generator=generator)
            values.append(drawn.to(wanted.dtype))
        elif wanted.dtype.is_complex:
            values.append(torch.randn(wanted.shape, generator=generator, dtype=wanted.dtype))
        else:
            drawn = torch.randint(0, _INDICES, wanted.shape, generator=generator)
            values.append(drawn.to(wanted.dtype))
    return values
