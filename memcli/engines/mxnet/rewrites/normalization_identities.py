"""Identity nodes that consume otherwise unused recomputed normalizations.

LayerNorm and GroupNorm make the statistics that their gradients read only where somebody reads
what they give out: MXNet 1.9.1 returns at once otherwise (``layer_norm-inl.h``,
``group_norm-inl.h``). Nobody reads the recomputed output where the first one is kept, so that the
operator could not be recomputed at all. An identity behind it that is recomputed, too, reads it in
place and costs nothing; what is kept is kept behind the identity.

Rules:

1. The operator is LayerNorm or GroupNorm, and somebody reads its output.
2. It is no output of the graph, which keep their names.

Exact: see :class:`memcli.engines.mxnet.rewrites.base.IdentityRewrite`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcli.engines.mxnet.rewrites.base import IdentityRewrite, RewriteConditions
from memcli.formats.symbol.edits import Raw

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis

_NORMALIZATIONS = frozenset({"LayerNorm", "GroupNorm"})


class NormalizationIdentities(IdentityRewrite):
    """Identities behind normalizations; see the module's text."""

    name = "normalization identities"

    def find(
        self, raw: Raw, analysis: Analysis | None, conditions: RewriteConditions
    ) -> list[int] | None:
        """All normalizations, by the rules."""
        return unread_normalizations(raw) or None

    def describe(self, found: list[int]) -> str:
        """See :meth:`memcli.engines.mxnet.rewrites.base.Rewrite.describe`."""
        return f"{len(found)} identities behind normalizations"


def unread_normalizations(raw: dict[str, Any]) -> list[int]:
    """Positions of the normalizations, in the order of the file."""
    heads = {head[0] for head in raw["heads"]}
    read = {source[0] for node in raw["nodes"] for source in node["inputs"]}
    return [
        position
        for position, node in enumerate(raw["nodes"])
        if node["op"] in _NORMALIZATIONS and position in read and position not in heads
    ]
