"""Attention and what comes with it, as single operators (operator set 23 and later)."""

from __future__ import annotations

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import attention as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported, torch_type


@operator("Attention")
def attention(site: Site) -> Result:
    """PyTorch's fused function where it can say all of it."""
    q, k, v = (site.value(i) for i in range(3))
    counts = site.get("q_num_heads", 0), site.get("kv_num_heads", 0)
    heads = counts if all(counts) else None
    if len(q.shape) == 3 and heads is None:
        raise Unsupported("its input has no dimension of heads and it says no number of them")
    if len(q.shape) not in (3, 4):
        raise Unsupported(f"its input has {len(q.shape)} dimensions")
    window = site.get("left_window_size", -1), site.get("right_window_size", -1)
    scale = site.attributes.get("scale")
    args = (
        q,
        k,
        v,
        site.optional(3),
        site.optional(6),
        site.optional(4),
        site.optional(5),
        heads,
        None if scale is None else float(scale),
        bool(site.get("is_causal", 0)),
        window,
    )
    softcap, precision = site.get("softcap", 0.0), site.get("softmax_precision", 0)
    used = [i for i in range(1, 4) if site.is_used(i)]
    same = not precision or torch_type(precision) == q.dtype
    if not used and not softcap and same:
        return Call(functions.attention, args)
    kind = torch_type(precision) if precision else None
    shown = site.get("qk_matmul_output_mode", 0)
    return Call(functions.attention_in_steps, (*args, softcap, kind, shown), many=True)


@operator("RotaryEmbedding")
def rotary_embedding(site: Site) -> Result:
    if site.rank() == 3 and not site.get("num_heads", 0):
        raise Unsupported("its input has no dimension of heads and it says no number of them")
    args = (site.value(0), site.value(1), site.value(2), site.optional(3))
    sizes = site.get("num_heads", 0), site.get("rotary_embedding_dim", 0)
    flag = bool(site.get("interleaved", 0))
    return Call(functions.rotary_embedding, (*args, *sizes, flag))


@operator("SwiGLU")
def swiglu(site: Site) -> Result:
    args = (site.value(0), site.value(1), site.get("alpha", 1.0))
    return Call(functions.swiglu, args)
