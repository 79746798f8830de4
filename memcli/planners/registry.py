"""Strategies by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from memcli.graph.training import TrainingGraph
from memcli.memory.mxnet_model import Cost, MXNetModel
from memcli.planners import (
    auto,
    caffe_dense,
    cheap,
    dp,
    local,
    memonger,
    milp,
    none,
    optmemory,
    recompute_grad,
    sqrt,
)
from memcli.planners.base import Found, Search, Settings
from memcli.planners.reserved import without_needless
from memcli.time_limit import seconds_left

# For any graph; what is compared where nothing is asked for.
GENERAL: dict[str, Callable[[Search], None]] = {
    auto.NAME: auto.run,
    memonger.NAME: memonger.run,
    local.NAME: local.run,
    sqrt.NAME: sqrt.run,
    cheap.NAME: cheap.run,
    dp.NAME: dp.run,
    milp.NAME: milp.run,
    none.NAME: none.run,
}
# And what hand-made systems do to their networks.
STRATEGIES: dict[str, Callable[[Search], None]] = {
    **GENERAL,
    **optmemory.RUNS,
    recompute_grad.NAME: recompute_grad.run,
    **caffe_dense.RUNS,
}
# Plans of these are as they were published: of the graph as saved, nothing is put into it.
AS_PUBLISHED = STRATEGIES.keys() - GENERAL.keys() | {memonger.NAME}
DESCRIPTIONS = {
    auto.NAME: "the best plan of all strategies",
    memonger.NAME: "the classic search over thresholds, on stage marks or on cuts found",
    local.NAME: "local search on the exact pool, from the classic search's best",
    sqrt.NAME: "stages around the square root of the work, by a budget (Chen et al.)",
    cheap.NAME: "run again only what costs next to nothing, no convolutions",
    dp.NAME: "dynamic programming over lower sets (Kusumoto et al.)",
    milp.NAME: "mixed-integer program: small graphs to the end, with a proof",
    none.NAME: "recompute nothing",
    **optmemory.DESCRIPTIONS,
    recompute_grad.NAME: "TensorFlow's efficient DenseNet: dense layers run again as a whole",
    **caffe_dense.DESCRIPTIONS,
}


# Of several graphs those whose best plan so far has at most this much more memory are glanced at,
# with this part of the work. The best one after that is searched in depth, and the second if it
# has little more: memory, or recomputation where there is a budget.
_CLOSE = 1.15
_GLANCE = 0.05
_NEAR = 1.01
# Part of the time left, where there is a limit, that looking around on all graphs may take.
_EXPLORE = 0.5
_NEAR_WITHIN = 1.1

# Strategies that look around on every graph first, and go into depth on the most promising one.
_IN_TWO_STEPS = {
    auto.NAME: (auto.explore, local.refine),
    local.NAME: (local.explore, local.refine),
}


def search_plan(
    graph: TrainingGraph, model: MXNetModel, strategy: str, settings: Settings
) -> tuple[Found, Search]:
    """Run a strategy on one graph; the best plan, and the search with all it tried."""
    search = Search(graph, model, settings)
    STRATEGIES[strategy](search)
    return without_needless(search, search.answer()), search


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


def _explored(
    graphs: Sequence[tuple[TrainingGraph, MXNetModel]], strategy: str, settings: Settings
) -> tuple[list[Search], list[Search]]:
    """Searches on several graphs of one network; all, and those that it may pay to go on with.

    Strategies that go into depth have glanced at these.
    """
    if strategy in AS_PUBLISHED:
        graphs = graphs[:1]
    searches = [Search(graph, model, settings) for graph, model in graphs]
    explore, refine = _IN_TWO_STEPS.get(strategy, (STRATEGIES[strategy], None))
    for search in searches[:-1]:
        search.superseded = True
    end = settings.ends()
    for number, search in enumerate(searches):
        _give_time(search, end, _EXPLORE if refine else 1.0, len(searches) - number)
        # with no time at all there is still a plan, of the graph as saved
        if search is searches[0] or search.seconds_left > 0:
            explore(search)
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
            refine(search, _GLANCE)
        close = _near(close)
    for search in searches:
        search.until = end
    return searches, close


def _give_time(search: Search, end: float | None, part: float, number: int) -> None:
    """Let a search have its share of a part of the time that is left; it is the first of some."""
    if end is not None:
        search.until = min(end, time.monotonic() + part * seconds_left(end) / number)


def most_promising(
    graphs: Sequence[tuple[TrainingGraph, MXNetModel]], strategy: str, settings: Settings
) -> int:
    """The index of the graph of one network that a strategy gets furthest on at a glance."""
    settings = replace(settings, deadline=settings.ends())
    searches, _ = _explored(graphs, strategy, settings)
    best = _best_first(searches)[0][1]
    return next(k for k, (graph, _) in enumerate(graphs) if graph is best.graph)


def search_variants(
    graphs: Sequence[tuple[TrainingGraph, MXNetModel]], strategy: str, settings: Settings
) -> tuple[Found, int, int]:
    """Run a strategy on several graphs of one network, the first one as saved.

    Returns:
        The best plan, the index of the graph that it is for, and the number of plans evaluated.
    """
    settings = replace(settings, deadline=settings.ends())
    searches, close = _explored(graphs, strategy, settings)
    for number, search in enumerate(close):
        _give_time(search, settings.deadline, 1.0, len(close) - number)
        _IN_TWO_STEPS[strategy][1](search)
    answers = [without_needless(search, search.answer()) for search in searches]
    best = min(range(len(answers)), key=lambda k: searches[k].key(answers[k].cost))
    chosen = next(k for k, (graph, _) in enumerate(graphs) if graph is searches[best].graph)
    return answers[best], chosen, sum(search.evaluated for search in searches)
