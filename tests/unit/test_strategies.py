"""Strategies on small graphs with known optimum, and on an example."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from memcli.engines.mxnet.memory.exhaustive import all_plans
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.search_space import MXNetSpace
from memcli.graph.lifetimes import lifetimes
from memcli.graph.training import TrainingGraph
from memcli.request import ShapeRequest
from memcli.search import cheap, dp, milp, sqrt
from memcli.search.base import Search, Settings
from memcli.search.cutpoints import last_forward_use
from memcli.search.initial_plans import consider_initial_plans
from memcli.search.knapsack import consider_knapsack_plans
from memcli.search.over_forms import search_plan
from memcli.search.registry import DESCRIPTIONS, STRATEGIES
from tests.conftest import EXAMPLES, needs_mxnet
from tests.unit.chains import chain_graph, plain_chain
from tests.unit.test_pool import random_graph

NEW = {"sqrt": sqrt.run, "cheap": cheap.run, "dp": dp.run, "milp": milp.run}


def searched(graph: TrainingGraph, run: Callable[[Search], None], **settings: float) -> Search:
    search = Search(MXNetSpace(graph, MXNetModel(graph)), Settings(**settings))  # type: ignore[arg-type]
    run(search)
    return search


def test_every_strategy_is_described() -> None:
    assert set(STRATEGIES) == set(DESCRIPTIONS)
    assert set(NEW) <= set(STRATEGIES)


@pytest.mark.parametrize("name", NEW)
def test_plans_are_admissible_and_never_under_the_optimum(name: str) -> None:
    for seed in range(40):
        graph = chain_graph(seed, 6) if seed % 2 else random_graph(seed, 7)
        if not graph.can_recompute.any():
            continue
        search = searched(graph, NEW[name])
        found = all_plans(graph, MXNetModel(graph))
        assert found is not None
        for tried in search.tried:
            flags = tried.plan.recompute
            assert (search.admissible(flags) == flags).all()
            assert tried.cost.live_peak_bytes >= found.live_peak_bytes
            assert tried.cost.pool_bytes >= found.pool_bytes or tried.cost.match_range != 16
        assert (
            search.answer().cost.pool_bytes <= search.space.evaluate(search.space.none()).pool_bytes
            or name == "sqrt"
        )


def test_milp_finds_the_least_pool_of_tiny_graphs() -> None:
    for seed in range(15):
        graph = chain_graph(seed, 6)
        graph.can_barrier[:] = 0
        graph.fails_unread[:] = 0
        search = searched(graph, milp.run)
        found = all_plans(graph, MXNetModel(graph))
        assert found is not None
        assert min(f.cost.pool_bytes for f in search.tried) == found.pool_bytes
        if lifetimes(graph).sound:
            bounds = {f.plan.notes["lower_bound_bytes"] for f in search.tried}
            assert bounds == {found.needed_bytes}


def test_auto_finds_the_best_plan_of_small_graphs_within_a_limit() -> None:
    for seed in range(12):
        graph = chain_graph(seed, 7) if seed % 2 else random_graph(seed, 8)
        nodes = np.flatnonzero(graph.can_recompute)
        if not nodes.size:
            continue
        chance = random.Random(seed)
        graph.flops[nodes] = [chance.randint(1, 100) for _ in nodes]
        model = MXNetModel(graph)
        every = Search(MXNetSpace(graph, model), Settings(environment="default"))
        costs = []
        for marks in itertools.product(*(range(3 if graph.can_barrier[v] else 2) for v in nodes)):
            flags = model.none()
            flags[nodes] = marks
            if (every.admissible(flags) == flags).all():
                costs.append(model.evaluate(flags))

        pools = sorted({cost.pool_bytes for cost in costs})
        budget = pools[len(pools) // 4]
        within = Settings(budget=budget, environment="default")
        found = search_plan(MXNetSpace(graph, model), "auto", within)[0].cost
        least = min(cost.recompute_flops for cost in costs if cost.pool_bytes <= budget)
        assert found.pool_bytes <= budget and found.recompute_flops == least

        limit = 0.2 * model.forward_flops
        limited = Settings(max_recompute=0.2, environment="default")
        found = search_plan(MXNetSpace(graph, model), "auto", limited)[0].cost
        smallest = min(cost.pool_bytes for cost in costs if cost.recompute_flops <= limit)
        assert found.recompute_flops <= limit and found.pool_bytes == smallest


def test_the_square_root_law() -> None:
    """On a chain of equal tensors memory grows with the square root of the length."""
    sizes = []
    for length in (64, 256):
        graph = plain_chain(length)
        found = searched(graph, sqrt.run).answer()
        sizes.append(found.cost.pool_bytes)
        assert found.cost.recompute_fraction <= 1.0
        assert found.cost.pool_bytes < 4 * np.sqrt(length) * 400
    assert sizes[1] < 2.6 * sizes[0]


def test_dp_takes_the_least_recomputation_that_a_budget_allows() -> None:
    graph = plain_chain(60)
    search = searched(graph, dp.run)
    whole = search.space.evaluate(search.space.none())
    fractions = {}
    for part in (0.9, 0.6, 0.4):
        budget = int(part * whole.pool_bytes)
        found, _ = search_plan(search.space, "dp", Settings(budget=budget))
        assert found.cost.pool_bytes <= budget
        fractions[part] = found.cost.recompute_fraction
    assert fractions[0.9] < fractions[0.6] < fractions[0.4]
    assert fractions[0.9] < 0.3


def test_lower_sets_are_all_of_them() -> None:
    for seed in range(20):
        graph = random_graph(seed, 7)
        family = dp.all_lower_sets(graph)
        assert family is not None
        operators = [v for v in range(graph.n_forward) if not graph.variable[v]]
        count = 0
        for chosen in range(1 << len(operators)):
            members = {v for k, v in enumerate(operators) if chosen >> k & 1}
            sources = {
                int(u)
                for v in members
                for u in graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]
                if not graph.variable[u]
            }
            count += sources <= members
        assert len(family.inside) == count
        last = last_forward_use(graph)
        for inside, boundary in zip(family.inside, family.boundary, strict=True):
            for v in np.flatnonzero(boundary):
                assert inside[v] and last[v] > v


@needs_mxnet
@pytest.mark.parametrize("name", NEW)
def test_a_network(name: str) -> None:
    analysis = network()
    model = analysis.model
    settings = Settings(time_limit=4.0)
    found, search = search_plan(analysis.search_space(), name, settings)
    before = model.evaluate(model.none())
    assert found.cost == model.plan_cost(found.plan)
    assert (search.admissible(found.plan.recompute) == found.plan.recompute).all()
    if name == "cheap":
        by_density = cheap.costly_by_density(analysis.graph)
        by_name = cheap.costly_by_name(analysis.graph)
        for tried in search.tried:
            again = tried.plan.recompute > 0
            assert not (again & by_density).any() or not (again & by_name).any()
        assert found.cost.recompute_fraction < 0.15
        assert found.cost.pool_bytes < before.pool_bytes
    else:
        assert found.cost.pool_bytes < 0.6 * before.pool_bytes
    if name == "milp":
        bounds = {f.plan.notes.get("lower_bound_bytes", 0) for f in search.tried}
        assert max(bounds) <= min(f.cost.pool_bytes for f in search.tried)


@lru_cache(maxsize=1)
def network() -> Analysis:
    """MobileNetV2 for a small batch."""
    path = EXAMPLES / "mobilenet-v2-symbol.json"
    return analyze(read_symbol(str(path)).raw, ShapeRequest(batch=8))


@needs_mxnet
@pytest.mark.parametrize("limit", [{"budget": 350 << 20}, {"max_recompute": 0.3}])
def test_costly_operators_are_kept_as_far_as_there_is_room(limit: dict[str, float]) -> None:
    analysis = network()
    search = Search(analysis.search_space(), Settings(**limit))  # type: ignore[arg-type]
    consider_initial_plans(search, "cuts")
    before = min(search.tried, key=lambda found: search.key(found.cost))
    count = len(search.tried)
    consider_knapsack_plans(search, "knapsack")
    filled = search.tried[count:]
    assert filled
    assert all(search.key(found.cost)[:2] == (0.0, 0.0) for found in filled)
    best = min(filled, key=lambda found: search.key(found.cost))
    assert search.key(best.cost) < search.key(before.cost)


@needs_mxnet
def test_any_kernels_are_taken_where_that_recomputes_less_within_a_budget() -> None:
    """With --kernels any, a plan that only oneDNN and cuDNN run stays the answer then."""
    analysis = network()
    analysis.model.portable = False  # --kernels any
    settings = Settings(budget=600 << 20, environment="default", kernels="any")
    search = Search(analysis.search_space(), settings)
    consider_initial_plans(search, "cuts")
    fitting = [f for f in search.tried if f.cost.pool_bytes <= 600 << 20]
    one_sided = min(
        (f for f in fitting if not search.is_portable(f)), key=lambda f: search.key(f.cost)
    )
    worse = [
        f
        for f in fitting
        if search.is_portable(f)
        and f.cost.pool_bytes <= one_sided.cost.pool_bytes
        and f.cost.recompute_seconds > 1.01 * one_sided.cost.recompute_seconds
    ]
    assert worse
    search.tried = [one_sided, *worse]
    assert search.answer() is one_sided
