"""Searches over several forms of one network: the graph as given, and rewritten ones.

All forms are explored. Those whose best plan so far is close to the best are searched briefly, and
the best one after that is searched in depth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from memcli.graph.cost import Cost, Found
from memcli.search.base import Search, Settings
from memcli.search.registry import STRATEGIES
from memcli.search.space import SearchSpace
from memcli.time_limit import seconds_left

# Forms whose best plan so far has at most this much more memory are searched briefly, with this
# part of the work. The best one after that is searched in depth, and the second if it has little
# more: memory, or recomputation where there is a budget.
_CLOSE = 1.15
_BRIEF = 0.05
_NEAR = 1.01
_NEAR_WITHIN = 1.1
# Part of the time left, where there is a limit, that exploring all forms may take.
_EXPLORE = 0.5


def search_plan(space: SearchSpace, strategy: str, settings: Settings) -> tuple[Found, Search]:
    """Run a strategy on one graph.

    Args:
        space: the step that is planned.
        strategy: its name, of ``STRATEGIES``.
        settings: what the user asks for.

    Returns:
        The best plan, and the search with all it tried.

    Raises:
        BadInput: hints that name no node, or a strategy that has no plan for the graph.
    """
    search = Search(space, settings)
    STRATEGIES[strategy].run(search)
    return search.answer(), search


def search_spaces(
    spaces: Sequence[SearchSpace], strategy: str, settings: Settings
) -> tuple[Found, int, int]:
    """Run a strategy on several forms of one network.

    Args:
        spaces: of each form, the graph as given first.
        strategy: its name.
        settings: what the user asks for; the time limit is for all forms together.

    Returns:
        The best plan, the index of the form that it is for, and the number of plans evaluated.
    """
    settings = replace(settings, deadline=settings.ends())
    searches, close = _explored(spaces, strategy, settings)
    for number, search in enumerate(close):
        _give_time(search, settings.deadline, 1.0, len(close) - number)
        STRATEGIES[strategy].run_refine(search, 1.0)
    answers = [search.answer() for search in searches]
    best = min(range(len(answers)), key=lambda k: searches[k].key(answers[k].cost))
    chosen = _index(spaces, searches[best])
    return answers[best], chosen, sum(search.evaluated for search in searches)


def most_promising(spaces: Sequence[SearchSpace], strategy: str, settings: Settings) -> int:
    """The form on which a strategy gets furthest in a brief search.

    Args:
        spaces: of each form of one network.
        strategy: its name, of ``STRATEGIES``.
        settings: what the user asks for.

    Returns:
        The index of the form.
    """
    settings = replace(settings, deadline=settings.ends())
    searches, _ = _explored(spaces, strategy, settings)
    return _index(spaces, _best_first(searches)[0][1])


def _index(spaces: Sequence[SearchSpace], search: Search) -> int:
    """Which form a search is on."""
    return next(k for k, space in enumerate(spaces) if space is search.space)


def _explored(
    spaces: Sequence[SearchSpace], strategy: str, settings: Settings
) -> tuple[list[Search], list[Search]]:
    """Searches on the forms; all, and those that it may pay to go on with.

    None of the latter where the strategy has no second step.
    """
    chosen = STRATEGIES[strategy]
    if chosen.as_published:
        spaces = spaces[:1]
    searches = [Search(space, settings) for space in spaces]
    refine = chosen.refine
    for search in searches[:-1]:
        search.superseded = True
    end = settings.ends()
    for number, search in enumerate(searches):
        _give_time(search, end, _EXPLORE if refine else 1.0, len(searches) - number)
        # with no time at all there is still a plan, of the graph as given
        if search is searches[0] or search.seconds_left > 0:
            chosen.run_explore(search)
    searches = [search for search in searches if search.tried]
    for search in searches:
        search.until = end
    if refine is None:
        return searches, []
    ranked = _best_first(searches)
    most = _CLOSE * ranked[0][0].pool_bytes
    close = [s for k, (cost, s) in enumerate(ranked) if k == 0 or cost.pool_bytes <= most]
    if len(close) > 1:
        for number, search in enumerate(close):
            _give_time(search, end, _EXPLORE, len(close) - number)
            chosen.run_refine(search, _BRIEF)
        close = _near(close)
    for search in searches:
        search.until = end
    return searches, close


def _best_first(searches: Sequence[Search]) -> list[tuple[Cost, Search]]:
    """Searches with the cost of the best plan that each has tried."""
    pairs = [(min((f.cost for f in s.tried), key=s.key), s) for s in searches]
    return sorted(pairs, key=lambda pair: pair[1].key(pair[0]))


def _near(searches: Sequence[Search]) -> list[Search]:
    """The search with the best plan, and the next one if more work may bring it before that."""
    (best, first), *others = _best_first(searches)
    budget = first.settings.budget
    if budget is None or best.pool_bytes > budget:
        others = [(c, s) for c, s in others if c.pool_bytes <= _NEAR * best.pool_bytes]
    else:
        most = _NEAR_WITHIN * best.recompute_seconds
        others = [
            (c, s) for c, s in others if c.pool_bytes <= budget and c.recompute_seconds <= most
        ]
    return [first, *(search for _, search in others[:1])]


def _give_time(search: Search, end: float | None, part: float, number: int) -> None:
    """Let a search have its share of a part of the time that is left; it is the first of some."""
    if end is not None:
        search.until = min(end, time.monotonic() + part * seconds_left(end) / number)
