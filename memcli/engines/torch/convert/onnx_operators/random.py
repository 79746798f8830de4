"""Random numbers and Dropout; seeds in the file are left to PyTorch's generator."""

from __future__ import annotations

from typing import Any

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import random as functions
from memcli.engines.torch.convert.registry import NOT_KNOWN, Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported, torch_type


@operator("Dropout")
def dropout(site: Site) -> Result:
    """Draws in training mode alone, which is an input from operator set 12 on."""
    ratio = site.get("ratio", 0.5)
    training = False
    if site.opset < 12:
        site.note("Dropout before operator set 12 does not say whether it trains: left out")
    else:
        if site.has(2) and site.value(2).known is None:
            raise Unsupported(f"its training mode {NOT_KNOWN}")
        training = bool(site.number(2)) if site.has(2) else False
        ratio = float(site.number(1)) if site.has(1) and training else ratio
    if training and ratio > 0:
        if site.is_used(1):
            return Call(functions.dropout_and_mask, (site.value(0), ratio), many=True)
        return Call(functions.dropout, (site.value(0), ratio))
    if site.is_used(1):
        return Call(functions.kept_and_mask, (site.value(0),), many=True)
    return site.value(0)


@operator("RandomUniformLike", "RandomNormalLike")
def random_like(site: Site) -> Result:
    return _draw(site, site.value(0), site.dtype())


@operator("RandomUniform", "RandomNormal")
def random(site: Site) -> Result:
    # Nothing but the shape is read of it.
    shape = torch.zeros(()).expand(site.ints_of("shape", ()) or ())
    return _draw(site, site.constant(shape, "shape"), torch.float32)


@operator("Bernoulli")
def bernoulli(site: Site) -> Result:
    return Call(functions.bernoulli, (site.value(0), _type(site, site.dtype())))


def _draw(site: Site, like: Any, default: torch.dtype) -> Result:
    dtype = _type(site, default)
    if "Uniform" in site.node.op_type:
        bounds = site.get("low", 0.0), site.get("high", 1.0)
        return Call(functions.uniform_like, (like, *bounds, dtype))
    return Call(functions.normal_like, (like, site.get("mean", 0.0), site.get("scale", 1.0), dtype))


def _type(site: Site, default: torch.dtype) -> torch.dtype:
    return torch_type(site.get("dtype", 0)) if "dtype" in site.attributes else default
