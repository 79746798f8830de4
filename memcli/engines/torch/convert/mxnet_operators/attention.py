"""Attention on queries, keys and values that stand interleaved (GluonNLP's transformers)."""

from __future__ import annotations

import math

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator

Tensor = torch.Tensor


def _heads(x: Tensor, heads: int, count: int) -> tuple[Tensor, ...]:
    """(steps, batch, heads * count * size) to ``count`` tensors (batch * heads, steps, size)."""
    steps, batch = x.shape[:2]
    x = x.reshape(steps, batch * heads, count, -1).permute(2, 1, 0, 3)
    return tuple(x.unbind(0))


def self_scores(x: Tensor, heads: int) -> Tensor:
    """Scaled products of queries and keys, (batch * heads, steps, steps)."""
    q, k, _ = _heads(x, heads, 3)
    return torch.bmm(q / math.sqrt(q.shape[-1]), k.transpose(1, 2))


def self_values(x: Tensor, weights: Tensor, heads: int) -> Tensor:
    """Values by attention weights, (steps, batch, heads * size)."""
    _, _, v = _heads(x, heads, 3)
    return _merged(torch.bmm(weights, v), x.shape[1])


def cross_scores(queries: Tensor, x: Tensor, heads: int) -> Tensor:
    """The same between queries and another sequence's keys and values."""
    (q,) = _heads(queries, heads, 1)
    k, _ = _heads(x, heads, 2)
    return torch.bmm(q / math.sqrt(q.shape[-1]), k.transpose(1, 2))


def cross_values(x: Tensor, weights: Tensor, heads: int) -> Tensor:
    """Values of another sequence by attention weights."""
    _, v = _heads(x, heads, 2)
    return _merged(torch.bmm(weights, v), x.shape[1])


def _merged(y: Tensor, batch: int) -> Tensor:
    """(batch * heads, steps, size) to (steps, batch, heads * size)."""
    steps = y.shape[1]
    return y.transpose(0, 1).reshape(steps, batch, -1)


@operator("_contrib_interleaved_matmul_selfatt_qk")
def selfatt_qk(site: Site) -> Call:
    return Call(self_scores, (site.value(), site.attributes.integer("heads", 1)))


@operator("_contrib_interleaved_matmul_selfatt_valatt")
def selfatt_valatt(site: Site) -> Call:
    return Call(self_values, (site.value(), site.value(1), site.attributes.integer("heads", 1)))


@operator("_contrib_interleaved_matmul_encdec_qk")
def encdec_qk(site: Site) -> Call:
    return Call(cross_scores, (site.value(), site.value(1), site.attributes.integer("heads", 1)))


@operator("_contrib_interleaved_matmul_encdec_valatt")
def encdec_valatt(site: Site) -> Call:
    return Call(cross_values, (site.value(), site.value(1), site.attributes.integer("heads", 1)))
