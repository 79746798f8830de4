"""``auto``: the best of everything that is known, never worse than the graph as it is."""

from __future__ import annotations

from memcli.planners import local, memonger, none
from memcli.planners.base import Search

NAME = "auto"


def run(search: Search) -> None:
    """The classic search on marks and on found cuts, the empty plan, then local search."""
    if search.graph.stage_at:
        memonger.search_marks(search, "memonger")
    memonger.search_cuts(search, "memonger")
    none.run(search)
    local.refine(search)
