"""Identities behind normalizations whose copy nobody might read.

LayerNorm and GroupNorm make the statistics that their gradients read only where somebody reads
what they give out: MXNet 1.9.1 returns at once otherwise (``layer_norm-inl.h``,
``group_norm-inl.h``). A copy of one is not read where its output is kept, so that it could not run
again at all. An identity behind it that runs again, too, reads it in place and costs nothing; what
is kept is kept behind the identity.

Rules:

1. The operator is LayerNorm or GroupNorm, and somebody reads its output.
2. It is no output of the graph, which keep their names.

Exact: an identity hands on what it reads, and so does its gradient; the gradients of all readers
are added behind it in the order they had.
"""

from __future__ import annotations

from typing import Any

_NORMALIZATIONS = frozenset({"LayerNorm", "GroupNorm"})


def unread_normalizations(raw: dict[str, Any]) -> list[int]:
    """Positions of the normalizations, in the order of the file."""
    heads = {head[0] for head in raw["heads"]}
    read = {source[0] for node in raw["nodes"] for source in node["inputs"]}
    return [
        position
        for position, node in enumerate(raw["nodes"])
        if node["op"] in _NORMALIZATIONS and position in read and position not in heads
    ]
