"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import linear as functions
from memcli.engines.torch.convert.registry import Result, Site, operator


@operator("MatMul")
def matmul(site: Site) -> Result:
    return Call(torch.matmul, (site.value(0), site.value(1)))


@operator("Gemm")
def gemm(site: Site) -> Result:
    alpha, beta = site.get("alpha", 1.0), site.get("beta", 1.0)
    trans_a, trans_b = bool(site.get("transA", 0)), bool(site.get("transB", 0))
    a, b, c = site.value(0), site.value(1), site.optional(2)
    plain = alpha == 1 and (beta == 1 or c is None) and not trans_a and site.is_float()
    if plain and trans_b and (c is None or len(c.shape) == 1):
        return Call(F.linear, (a, b, c))
    if plain and not trans_b:
        return Call(torch.mm, (a, b)) if c is None else Call(torch.addmm, (c, a, b))
    if not site.is_float():
        alpha, beta = int(alpha), int(beta)
    return Call(functions.gemm, (a, b, c, alpha, beta, trans_a, trans_b))


@operator("Einsum")
def einsum(site: Site) -> Result:
    return Call(torch.einsum, (site.get("equation", ""), *site.values()))


@operator("Det")
def determinant(site: Site) -> Result:
    return Call(torch.det, (site.value(0),))
