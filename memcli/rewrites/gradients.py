"""Which inputs a graph cannot be trained for.

MXNet binds these gradients without complaint and then refuses to run: Embedding has none for its
indices, softmax_cross_entropy none for its label.
"""

from __future__ import annotations

from typing import Any

# Operator -> slots whose gradient it refuses to make.
_REFUSED = {
    "Embedding": (0,),
    "_contrib_SparseEmbedding": (0,),
    "softmax_cross_entropy": (1,),
}


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
        pending.extend(source[0] for source in nodes[position]["inputs"])
    return found
