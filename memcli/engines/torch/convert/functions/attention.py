"""Attention, rotary embeddings and gated units as operators of ONNX."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from memcli.engines.torch.rules import recomputed_with_gradients

Tensor = torch.Tensor


@recomputed_with_gradients
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    heads: tuple[int, int] | None,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
) -> Tensor:
    """Scaled dot-product attention by PyTorch's own fused function.

    Args:
        q, k, v: (batch, heads, steps, features), or (batch, steps, heads * features) with
            ``heads`` the counts of query and of key heads.
        mask: added to the scores, or booleans that say where to look; may end early.
        lengths: (batch,), how many keys count.
        window: how many keys to look at before and after; -1 for all.
    """
    joined = q.dim() == 3
    q, k, v = _by_heads(q, k, v, heads)
    k, v = _with_past(k, past_key), _with_past(v, past_value)
    before = 0 if past_key is None else past_key.shape[2]
    plain = mask is None and lengths is None and before == 0 and window == (-1, -1)
    if not plain:
        mask = _bias(q, k, mask, lengths, before, causal, window)
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal and plain, scale=scale, enable_gqa=grouped
    )
    return y.transpose(1, 2).flatten(2) if joined else y


def attention_in_steps(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    heads: tuple[int, int] | None,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
    precision: torch.dtype | None,
    shown: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention by products and softmax: the result, keys, values, and the scores.

    ``softcap`` bounds the scores by ``softcap tanh(s / softcap)``; ``precision`` is the softmax's;
    ``shown`` says which scores: 0 raw, 1 bounded, 2 with the mask, 3 after the softmax.
    """
    joined = q.dim() == 3
    q, k, v = _by_heads(q, k, v, heads)
    k, v = _with_past(k, past_key), _with_past(v, past_value)
    before = 0 if past_key is None else past_key.shape[2]
    bias = _bias(q, k, mask, lengths, before, causal, window)
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    repeat = q.shape[1] // k.shape[1]
    scores = (q * root) @ (k.repeat_interleave(repeat, 1) * root).transpose(2, 3)
    found = scores
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
        found = scores if shown == 1 else found
    if bias is not None:
        scores = scores + bias
    found = scores if shown == 2 else found
    weights = torch.softmax(scores, -1, dtype=precision)
    if bias is not None:
        hidden = torch.isneginf(bias.amax(-1, keepdim=True))
        weights = torch.where(hidden, 0.0, weights)
    weights = weights.to(q.dtype)
    found = weights if shown == 3 else found
    y = weights @ v.repeat_interleave(repeat, 1)
    return (y.transpose(1, 2).flatten(2) if joined else y), k, v, found


def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None,
    heads: int,
    rotated: int,
    interleaved: bool,
) -> Tensor:
    """``x`` with pairs of its first ``rotated`` features turned by the angle of the position.

    ``x`` is (batch, heads, steps, features) or (batch, steps, heads * features); the tables are
    (positions, rotated / 2), or (batch, steps, rotated / 2) without ``positions``.
    """
    shape = x.shape
    x = x.transpose(1, 2) if x.dim() == 4 else x.unflatten(2, (heads, -1))
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cosines, sines = cosines.unsqueeze(2), sines.unsqueeze(2)
    rotated = rotated or x.shape[3]
    turning, rest = x[..., :rotated], x[..., rotated:]
    if interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
    else:
        a, b = turning.chunk(2, -1)
    real, imaginary = cosines * a - sines * b, sines * a + cosines * b
    if interleaved:
        turned = torch.stack((real, imaginary), -1).flatten(-2)
    else:
        turned = torch.cat((real, imaginary), -1)
    y = torch.cat((turned, rest), -1)
    return y.flatten(2) if len(shape) == 3 else y.transpose(1, 2)


def swiglu(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """``a sigmoid(alpha a) b``."""
    return (F.silu(a) if alpha == 1.0 else a * torch.sigmoid(a * alpha)) * b


def _by_heads(
    q: Tensor, k: Tensor, v: Tensor, heads: tuple[int, int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    if q.dim() == 4 or heads is None:
        return q, k, v
    counts = (heads[0], heads[1], heads[1])
    q, k, v = (x.unflatten(2, (n, -1)) for x, n in zip((q, k, v), counts, strict=True))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _with_past(x: Tensor, past: Tensor | None) -> Tensor:
    return x if past is None else torch.cat((past, x), 2)


def _bias(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    before: int,
    causal: bool,
    window: tuple[int, int],
) -> Tensor | None:
    """What is added to the scores, minus infinity where a query may not look; None for nothing."""
    bias: Tensor | None = None
    if mask is not None:
        missing = k.shape[2] - mask.shape[-1]
        if mask.dtype is torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
        bias = F.pad(mask, (0, missing), value=-math.inf) if missing > 0 else mask
    keys = torch.arange(k.shape[2], device=q.device)
    places = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + before
    if lengths is not None:
        # The keys that count end where the queries do.
        places = places + (lengths.reshape(-1, 1, 1, 1) - q.shape[2])
    banned: list[Tensor] = []
    if causal:
        banned.append(keys > places)
    if window[0] >= 0:
        banned.append(keys < places - window[0])
    if window[1] >= 0:
        banned.append(keys > places + window[1])
    if lengths is not None:
        banned.append(keys >= lengths.reshape(-1, 1, 1, 1))
    for ban in banned:
        part = torch.zeros(ban.shape, dtype=q.dtype, device=q.device).masked_fill(ban, -math.inf)
        bias = part if bias is None else bias + part
    return bias
