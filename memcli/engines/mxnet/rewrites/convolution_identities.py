"""Identity nodes that consume otherwise unused recomputed convolutions.

A plan may recompute a convolution whose recomputed output nothing needs: MXNet runs it all the
same, since the convolution's gradient waits for it, with the request to write nothing. oneDNN takes
as long as for any other (profiled) and writes to a block of its own; MXNet's own kernel refuses. An
identity behind the convolution that is recomputed as well consumes the output, in its place and in
its memory; what is kept is kept behind the identity, by a save barrier.

Rules:

1. The operator is Convolution.
2. Before a search: its output is consumed, directly or through identities, by an operator that
   moves, adds up or drops values. The gradient of such an operator does not read them, and Dropout
   is never recomputed.
3. For a published technique's plan: the plan recomputes it and nothing consumes the result.

Exact: see :class:`memcli.engines.mxnet.rewrites.base.IdentityRewrite`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcli.engines.mxnet.rewrites.base import IdentityRewrite, RewriteConditions
from memcli.engines.mxnet.rewrites.positions import with_merged
from memcli.formats.symbol.edits import IDENTITY, Raw

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis
    from memcli.graph.training import Plan

# Operators whose gradients do not read what they read.
_ONLY_FORWARD = frozenset(
    {
        "Concat",
        "concat",
        "Dropout",
        "elemwise_add",
        "_plus",
        "_Plus",
        "broadcast_add",
        "add_n",
    }
)


class ConvolutionIdentities(IdentityRewrite):
    """Identities behind convolutions; see the module's text."""

    name = "convolution identities"

    def find(
        self, raw: Raw, analysis: Analysis | None, conditions: RewriteConditions
    ) -> list[int] | None:
        """By rule 2, where MXNet's own kernels must run the plan."""
        return unread_convolutions(raw) or None if conditions.kernels == "plain" else None

    def find_for_plan(self, raw: Raw, analysis: Analysis, plan: Plan) -> list[int] | None:
        """By rule 3; with the nodes that MXNet merges into them."""
        graph = analysis.graph
        unread = unused_convolutions(analysis, plan)
        if not unread or any(not 0 <= p < len(graph.file_names) for p in unread):
            return None
        return sorted(with_merged(graph, set(unread)))

    def describe(self, found: list[int]) -> str:
        """See :meth:`memcli.engines.mxnet.rewrites.base.Rewrite.describe`."""
        return f"{len(found)} identities behind convolutions"


def unused_convolutions(analysis: Analysis, plan: Plan) -> dict[int, int]:
    """{position: forward node} of the convolutions that a plan recomputes for nothing to read."""
    graph = analysis.graph
    unread = analysis.model.unread_copies(plan.recompute)
    return {int(graph.position[v]): v for v in unread if graph.op(v) == "Convolution"}


def unread_convolutions(raw: dict[str, Any]) -> list[int]:
    """Positions of the convolutions whose recomputed outputs may be unused, by rule 2."""
    nodes: list[dict[str, Any]] = raw["nodes"]
    found = set()
    for node in nodes:
        if node["op"] not in _ONLY_FORWARD:
            continue
        for source in node["inputs"]:
            position = source[0]
            while nodes[position]["op"] == IDENTITY:
                position = nodes[position]["inputs"][0][0]
            if nodes[position]["op"] == "Convolution":
                found.add(position)
    return sorted(found)
