"""Which inputs a graph cannot be trained for.

MXNet binds these gradients without complaint and then refuses to run: Embedding has none for its
indices, softmax_cross_entropy none for its label. The gradient of softmax's lengths is zeros, and
MXNet writes them over the lengths before it has read them, where its memory plan has both in one
block: all gradients behind are then wrong, without any plan, too (seen in 1.9.1, BERT).
"""

from __future__ import annotations

from typing import Any

# Operator -> slots whose gradient it refuses to make.
_REFUSED = {
    "Embedding": (0,),
    "_contrib_SparseEmbedding": (0,),
    "softmax_cross_entropy": (1,),
    "softmax": (1,),  # lengths, where there is such an input
}
# Operators whose gradient is zero, so that none is asked for behind them.
_ZERO = frozenset(
    {
        "BlockGrad",
        "stop_gradient",
        "zeros_like",
        "ones_like",
        "_contrib_arange_like",
        "shape_array",
        "size_array",
        "argmax",
        "argmin",
        "argmax_channel",
        "argsort",
        "one_hot",
        "round",
        "rint",
        "ceil",
        "floor",
        "trunc",
        "fix",
        "sign",
    }
)


def without_gradient(raw: dict[str, Any]) -> set[int]:
    """Positions of variables that a refused slot reads, directly or through other operators."""
    nodes = raw["nodes"]
    found: set[int] = set()
    seen: set[int] = set()
    pending = [
        node["inputs"][slot][0]
        for node in nodes
        for slot in _REFUSED.get(node["op"], ())
        if slot < len(node["inputs"])
    ]
    while pending:
        position = pending.pop()
        if position in seen:
            continue
        seen.add(position)
        if nodes[position]["op"] == "null":
            found.add(position)
        elif nodes[position]["op"] not in _ZERO:
            pending.extend(source[0] for source in nodes[position]["inputs"])
    return found
