"""Strategies by name."""

from __future__ import annotations

from collections.abc import Callable

from memcli.graph.training import TrainingGraph
from memcli.memory.mxnet_model import MXNetModel
from memcli.planners import auto, cheap, dp, local, memonger, milp, none, sqrt
from memcli.planners.base import Found, Search, Settings

STRATEGIES: dict[str, Callable[[Search], None]] = {
    auto.NAME: auto.run,
    memonger.NAME: memonger.run,
    local.NAME: local.run,
    sqrt.NAME: sqrt.run,
    cheap.NAME: cheap.run,
    dp.NAME: dp.run,
    milp.NAME: milp.run,
    none.NAME: none.run,
}
DESCRIPTIONS = {
    auto.NAME: "the best plan of all strategies",
    memonger.NAME: "the classic search over thresholds, on stage marks or on cuts found",
    local.NAME: "local search on the exact pool, from the classic search's best",
    sqrt.NAME: "stages around the square root of the work, by a budget (Chen et al.)",
    cheap.NAME: "run again only what costs next to nothing, no convolutions",
    dp.NAME: "dynamic programming over lower sets (Kusumoto et al.)",
    milp.NAME: "mixed-integer program: small graphs to the end, with a proof",
    none.NAME: "recompute nothing",
}


def search_plan(
    graph: TrainingGraph, model: MXNetModel, strategy: str, settings: Settings
) -> tuple[Found, Search]:
    """Run a strategy; the best plan that it found, and the search with all it tried."""
    search = Search(graph, model, settings)
    STRATEGIES[strategy](search)
    return search.answer(), search
