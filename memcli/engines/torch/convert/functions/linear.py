"""Matrix products of ONNX that PyTorch spells differently."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, trans_a: bool, trans_b: bool
) -> Tensor:
    """``alpha A' B' + beta C``, a prime where the matrix is transposed."""
    a = a.t() if trans_a else a
    b = b.t() if trans_b else b
    if c is not None:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    product = torch.mm(a, b)
    return product if alpha == 1 else product * alpha
