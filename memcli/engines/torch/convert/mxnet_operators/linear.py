"""Matrix products, FullyConnected and Embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator

Tensor = torch.Tensor


def fully_connected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W' + b``, all dimensions of ``x`` behind the first taken as one."""
    return F.linear(x.reshape(x.shape[0], -1), weight, bias)


def embedding(index: Tensor, weight: Tensor) -> Tensor:
    """Rows of ``weight``; positions outside count as the nearest one within."""
    return F.embedding(index.long().clamp(0, weight.shape[0] - 1), weight)


def dot(x: Tensor, y: Tensor, trans_x: bool, trans_y: bool) -> Tensor:
    """The sum of products over the last dimension of ``x`` and the first of ``y``.

    Transposed: over the first of ``x``, the last of ``y``. Of vectors a tensor of shape (1,).
    """
    result = torch.tensordot(x, y, ([0 if trans_x else -1], [-1 if trans_y else 0]))
    return result.reshape(1) if result.dim() == 0 else result


def batch_dot(x: Tensor, y: Tensor, trans_x: bool, trans_y: bool, alpha: float) -> Tensor:
    """Products of the matrices in the last two dimensions."""
    x = x.transpose(-1, -2) if trans_x else x
    y = y.transpose(-1, -2) if trans_y else y
    result = torch.matmul(x, y)
    return result if alpha == 1 else result * alpha


def general_product(
    x: Tensor, y: Tensor, z: Tensor, trans_x: bool, trans_y: bool, alpha: float, beta: float
) -> Tensor:
    """``alpha X Y + beta Z`` of the matrices in the last two dimensions."""
    return batch_dot(x, y, trans_x, trans_y, alpha) + beta * z


@operator("FullyConnected")
def connected(site: Site) -> Call:
    bias = None if site.attributes.flag("no_bias") else site.value(2)
    flatten = site.attributes.flag("flatten", True) and site.rank() != 2
    function = fully_connected if flatten else F.linear
    return Call(function, (site.value(), site.value(1), bias))


@operator("Embedding", "_contrib_SparseEmbedding")
def rows(site: Site) -> Call:
    return Call(embedding, (site.value(), site.value(1)))


@operator("dot")
def product(site: Site) -> Call:
    return Call(dot, (site.value(), site.value(1), *_transposed(site)))


@operator("batch_dot", "_linalg_gemm2", "linalg_gemm2")
def products(site: Site) -> Call:
    alpha = site.attributes.number("alpha", 1.0)
    return Call(batch_dot, (site.value(), site.value(1), *_transposed(site), alpha))


@operator("_linalg_gemm", "linalg_gemm")
def general(site: Site) -> Call:
    alpha, beta = site.attributes.number("alpha", 1.0), site.attributes.number("beta", 1.0)
    values = (site.value(), site.value(1), site.value(2))
    return Call(general_product, (*values, *_transposed(site), alpha, beta))


def _transposed(site: Site) -> tuple[bool, bool]:
    return site.attributes.flag("transpose_a"), site.attributes.flag("transpose_b")
