"""The compiled search: moves are taken back whole, and what it reports is what the pool takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.mxnet.search_space import MXNetSpace
from memcli.search import annealing
from memcli.search.base import Search, Settings
from memcli.search.local import _Annealer
from tests.unit.test_pool import random_graph


def generator(seed: int) -> np.ndarray:
    return np.array([0x9E3779B97F4A7C15 ^ (seed + 1)], np.uint64)


def prepared(seed: int, **options: float) -> tuple[Search, _Annealer]:
    graph = random_graph(seed, 16)
    search = Search(MXNetSpace(graph, MXNetModel(graph)), Settings(**options))  # type: ignore[arg-type]
    search.consider("none", search.space.none(), [])
    return search, _Annealer(search)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_refused_move_leaves_nothing_behind(seed: int) -> None:
    search, annealer = prepared(seed)
    if not len(annealer.nodes):
        return
    n = search.graph.n_forward
    rng = generator(seed)
    chance = np.random.default_rng(seed)
    fits = search.graph.can_recompute * (1 + search.third_mark)
    state = (chance.integers(0, 3, n) % (1 + fits)).astype(np.uint8)
    others = (chance.integers(0, 3, (4, n)) % (1 + fits)).astype(np.uint8)
    undo_node, undo_mark = np.zeros(64, np.int64), np.zeros(64, np.uint8)
    for _ in range(200):
        before = state.copy()
        count = annealing.propose(
            rng,
            state,
            annealer.nodes,
            annealer.weights,
            search.third_mark,
            *annealer.groups,
            *search.kept_instead,
            0.2,
            0.2,
            others,
            undo_node,
            undo_mark,
        )
        assert (state <= fits).all()
        after = state.copy()
        for k in range(count - 1, -1, -1):
            state[undo_node[k]] = undo_mark[k]
        assert (state == before).all()
        state = after


def test_stretches_come_from_another_plan() -> None:
    state = np.zeros(50, np.uint8)
    nodes = np.arange(5, 45)
    others = np.ones((1, 50), np.uint8)
    others[0, ::2] = 2
    undo_node, undo_mark = np.zeros(64, np.int64), np.zeros(64, np.uint8)
    lengths = set()
    for seed in range(200):
        state[:] = 0
        count = annealing.cross(generator(seed), state, nodes, others, undo_node, undo_mark)
        changed = np.flatnonzero(state)
        assert count == len(changed) >= 1
        assert (changed == np.arange(changed[0], changed[0] + count)).all()
        assert (state[changed] == others[0, changed]).all()
        assert changed[0] >= 5 and changed[-1] < 45
        lengths.add(count)
    assert min(lengths) <= 3 and max(lengths) >= 20


@settings(max_examples=200, deadline=None)
@given(
    st.floats(1e-12, 1e-6),
    st.floats(0, 1e-4),
    st.just(0.0) | st.floats(1e-9, 1e-5),
    st.floats(1, 1e9),
    st.floats(0, 1e3),
    st.floats(0, 1),
)
def test_the_ceiling_is_the_pool_of_an_energy(
    memory: float, over: float, first: float, budget: float, energy: float, hard: float
) -> None:
    p = np.zeros(annealing.N_PARAMETERS)
    p[annealing.MEMORY], p[annealing.OVER], p[annealing.BUDGET] = memory, over, budget
    p[annealing.OVER_FIRST], p[annealing.LIMIT] = min(first, over), np.inf
    ceiling = annealing.ceiling_of(p, energy, hard)
    reached = annealing.energy_of(p, ceiling, 0.0, 0.0, hard)
    rounding = 4 * np.finfo(np.float64).eps * over * budget  # of the bytes over the budget
    assert reached == pytest.approx(energy, rel=1e-9, abs=1e-12 + rounding)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["memory", "budget", "limit"]))
def test_the_lowest_energy_is_that_of_the_best_plan(seed: int, kind: str) -> None:
    """Evaluations that stop early are never taken for plans."""
    unplanned, _ = prepared(seed)
    most = unplanned.tried[0].cost.pool_bytes
    options = {"memory": {}, "budget": {"budget": int(0.8 * most)}, "limit": {"max_recompute": 0.4}}
    search, annealer = prepared(seed, **options[kind])
    if not len(annealer.nodes):
        return
    state, best = search.space.none(), search.space.none()
    # half of the time plans may reserve blocks, too
    places, sizes = np.zeros(seed % 2 * 3, np.int64), np.unique(search.graph.elements)
    reserved = places.copy()
    reserving = (4, places, reserved, sizes[sizes > 0])
    lowest = search.annealing(portable=False)(
        state,
        best,
        annealer.nodes,
        annealer.weights,
        search.third_mark,
        *annealer.groups,
        *search.kept_instead,
        0.1,
        0.1,
        np.zeros((0, len(state)), np.uint8),
        annealer.params,
        reserving,
        generator(seed),
        400,
        0.05,
        0.0005,
        0,
        400,
        np.inf,
    )
    cost = search.space.evaluate(best, (4,), reserved)
    flops, work = cost.recompute_flops, cost.recompute_seconds
    energy = annealing.energy_of(annealer.params, float(cost.pool_bytes), flops, work, 1.0)
    assert lowest == pytest.approx(energy, rel=1e-12)
    start = search.space.evaluate(search.space.as_run(search.space.none()), (4,))
    assert lowest <= annealing.energy_of(annealer.params, float(start.pool_bytes), 0.0, 0.0, 1.0)
