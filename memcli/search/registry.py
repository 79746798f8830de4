"""All strategies. A new one is a module of its own, and a line in ``ALL``."""

from __future__ import annotations

from memcli.search import auto, cheap, dp, local, milp, none, sqrt
from memcli.search.published import caffe_dense, memonger, optmemory, recompute_grad
from memcli.search.strategy import Strategy

# In the order in which users see them.
ALL: tuple[Strategy, ...] = (
    auto.STRATEGY,
    memonger.STRATEGY,
    local.STRATEGY,
    sqrt.STRATEGY,
    cheap.STRATEGY,
    dp.STRATEGY,
    milp.STRATEGY,
    none.STRATEGY,
    *optmemory.STRATEGIES,
    recompute_grad.STRATEGY,
    *caffe_dense.STRATEGIES,
)
STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in ALL}
# For any graph; what is compared where nothing is asked for.
GENERAL = {name: strategy for name, strategy in STRATEGIES.items() if strategy.for_any_graph}
# Plans of these are as they were published: of the graph as saved, nothing is put into it.
AS_PUBLISHED = frozenset(strategy.name for strategy in ALL if strategy.as_published)
DESCRIPTIONS = {strategy.name: strategy.help for strategy in ALL}
