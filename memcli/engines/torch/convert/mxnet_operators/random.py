"""Operators that draw random numbers; theirs are PyTorch's, never those of MXNet."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions.random import dropout
from memcli.engines.torch.convert.mxnet_operators.elementwise import identity
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator
from memcli.engines.torch.convert.values import Unsupported
from memcli.engines.torch.rules import draws_random

Tensor = torch.Tensor
Ints = tuple[int, ...]


@draws_random
def dropout_along(x: Tensor, ratio: float, axes: Ints) -> Tensor:
    """Dropout that drops along ``axes`` as a whole."""
    shape = [1 if d in axes else size for d, size in enumerate(x.shape)]
    kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1.0 - ratio)
    return x * (kept / (1.0 - ratio))


@draws_random
def uniform(anchor: Tensor, shape: Ints, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Numbers uniform from ``low`` to ``high``."""
    return torch.empty(shape, dtype=dtype, device=anchor.device).uniform_(low, high)


@draws_random
def normal(anchor: Tensor, shape: Ints, mean: float, scale: float, dtype: torch.dtype) -> Tensor:
    """Normal numbers."""
    return torch.empty(shape, dtype=dtype, device=anchor.device).normal_(mean, scale)


@operator("Dropout")
def drop(site: Site) -> Call:
    ratio = site.attributes.number("p", 0.5)
    if ratio == 0.0:
        return Call(identity, (site.value(),))
    axes = site.attributes.ints("axes")
    if axes:
        return Call(dropout_along, (site.value(), ratio, axes))
    return Call(dropout, (site.value(), ratio))


@operator("_random_uniform", "uniform", "random_uniform")
def uniform_numbers(site: Site) -> Call:
    low, high = site.attributes.number("low", 0.0), site.attributes.number("high", 1.0)
    return Call(uniform, (site.anchor(), _shape(site), low, high, site.attributes.dtype()))


@operator("_random_normal", "normal", "random_normal")
def normal_numbers(site: Site) -> Call:
    mean, scale = site.attributes.number("loc", 0.0), site.attributes.number("scale", 1.0)
    return Call(normal, (site.anchor(), _shape(site), mean, scale, site.attributes.dtype()))


def _shape(site: Site) -> Ints:
    if site.known:
        return tuple(site.known[0])
    shape = site.attributes.ints("shape")
    if not shape or 0 in shape or -1 in shape:
        raise Unsupported(f"shape={shape}: its shape is not known")
    return shape
