"""``auto``: the best of everything that is known, never worse than the graph as it is."""

from __future__ import annotations

from memcli.search import cheap, dp, none, sqrt
from memcli.search.base import Search
from memcli.search.initial_plans import consider_initial_plans
from memcli.search.published import memonger

NAME = "auto"
# Larger graphs get their initial plans by cuts alone, which takes a fraction of the time.
_MOST_NODES = 8000


def explore(search: Search) -> None:
    """Consider the plans of strategies that take little time, and many initial plans.

    Of tiny graphs all plans. Large graphs, and forms that a better one has superseded, get initial
    plans by cuts alone.
    """
    if search.graph.stage_at:
        memonger.search_marks(search, "memonger")
    none.run(search)
    if search.out_of_time or (search.superseded and search.graph.n_nodes > _MOST_NODES):
        return
    memonger.search_cuts(search, "memonger")
    least = None if search.out_of_time else search.best_of_all()
    if least is not None:
        search.consider("all plans", least, [])
    consider_initial_plans(search, "cuts")
    if search.graph.n_nodes > _MOST_NODES:
        return
    for strategy in (sqrt, dp, cheap):
        if not search.out_of_time:
            strategy.run(search)
