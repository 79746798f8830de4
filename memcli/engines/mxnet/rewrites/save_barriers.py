"""Save barriers: a plan keeps a tensor behind an identity while its operator is recomputed.

A marked operator is recomputed with everything that it reads. Where the plan wants an operator
recomputed for its own gradient and its output kept for others, an identity behind it that is not
marked keeps the output, in the operator's own memory.

Exact: see :class:`memcli.engines.mxnet.rewrites.base.IdentityRewrite`. The search has counted the
barriers in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memcli.engines.mxnet.memory.pool import BARRIER
from memcli.engines.mxnet.rewrites.base import IdentityRewrite
from memcli.engines.mxnet.rewrites.positions import positions_of
from memcli.formats.symbol.edits import Raw

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis
    from memcli.graph.training import Flags, Plan, TrainingGraph

# How a save barrier is called: as what it keeps, and this.
BARRIER_SUFFIX = "_kept"


class SaveBarriers(IdentityRewrite):
    """Identities behind the nodes that a plan marks so; see the module's text."""

    name = "save barriers"
    suffix = BARRIER_SUFFIX

    def find_for_plan(self, raw: Raw, analysis: Analysis, plan: Plan) -> list[int] | None:
        """See :func:`barrier_positions`."""
        return barrier_positions(analysis.graph, plan.recompute) or None

    def describe(self, found: list[int]) -> str:
        """See :meth:`memcli.engines.mxnet.rewrites.base.Rewrite.describe`."""
        return f"{len(found)} save barriers"


def barrier_positions(graph: TrainingGraph, flags: Flags) -> list[int]:
    """Positions in the file of the nodes that get a save barrier.

    Args:
        graph: the training graph.
        flags: over forward nodes, the plan's marks.
    """
    return sorted(positions_of(graph, np.where(flags == BARRIER, 1, 0)))
