"""``auto``: the best of everything that is known, never worse than the graph as it is."""

from __future__ import annotations

from memcli.planners import local, memonger, none
from memcli.planners.base import Search
from memcli.planners.starts import consider_starts

NAME = "auto"


def explore(search: Search) -> None:
    """The classic search, the empty plan, and many plans to start from."""
    if search.graph.stage_at:
        memonger.search_marks(search, "memonger")
    memonger.search_cuts(search, "memonger")
    none.run(search)
    consider_starts(search, "cuts")


def run(search: Search) -> None:
    """Explore, then anneal from the best."""
    explore(search)
    local.refine(search)
