"""Functions that draw random numbers, from PyTorch's own generator of the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.rules import draws_random

Tensor = torch.Tensor


@draws_random
def dropout(x: Tensor, ratio: float) -> Tensor:
    """Zeros with probability ``ratio``, the rest scaled by ``1 / (1 - ratio)``."""
    return F.dropout(x, ratio, True)


@draws_random
def dropout_and_mask(x: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The same, and where elements were kept."""
    return torch.native_dropout(x, ratio, True)


def kept_and_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    """Dropout outside of training: ``x``, and a mask that keeps all."""
    return x, torch.ones_like(x, dtype=torch.bool)


@draws_random
def uniform_like(x: Tensor, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Numbers uniform from ``low`` to ``high``, of the shape of ``x``."""
    return torch.empty(x.shape, dtype=dtype, device=x.device).uniform_(low, high)


@draws_random
def normal_like(x: Tensor, mean: float, scale: float, dtype: torch.dtype) -> Tensor:
    """Normal numbers of the shape of ``x``."""
    return torch.empty(x.shape, dtype=dtype, device=x.device).normal_(mean, scale)


@draws_random
def bernoulli(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One with the probability that ``x`` gives, else zero."""
    return torch.bernoulli(x).to(dtype)
