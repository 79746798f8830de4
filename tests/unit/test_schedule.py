"""Schedules of cost graphs: the simulator, the searches, the proofs, the lower sets."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.graph.cost_graph import CostGraph
from memcli.graph.forward_graph import ForwardGraph
from memcli.solve.base import BestSchedule, ScheduleSettings, as_sequence
from memcli.solve.integer_program import ScheduleProgram, grain
from memcli.solve.least_peak import least_peak
from memcli.solve.lower_sets import LowerSets
from memcli.solve.proof import Proof
from memcli.solve.search import greedy, nothing, solve
from memcli.solve.sequence import evaluate
from memcli.solve.simulator import (
    check_schedule,
    plain_schedule,
    simulate,
    working_set_bound,
)
from tests.unit.small_graphs import optimum, random_graph


def naive_memory(graph: CostGraph, schedule: list[int]) -> list[int]:
    """The rules of the simulator, word by word: intervals from computation to last use."""
    intervals = []
    for p, v in enumerate(schedule):
        end = p
        for q in range(p + 1, len(schedule)):
            if v in graph.inputs(schedule[q]):
                end = q
            if schedule[q] == v:
                break
        intervals.append((v, p, end))
    return [
        sum(int(graph.sizes[v]) for v, begin, end in intervals if begin <= p <= end)
        for p in range(len(schedule))
    ]


@st.composite
def scheduled(draw: st.DrawFn) -> tuple[CostGraph, list[int]]:
    """A random graph, and a schedule with recomputations anywhere."""
    graph = random_graph(random.Random(draw(st.integers(0, 10**6))))
    schedule = []
    for v in range(graph.n):
        if v:
            schedule += draw(st.lists(st.integers(0, v - 1), max_size=3))
        schedule.append(v)
    return graph, schedule


@given(scheduled())
@settings(max_examples=300, deadline=None)
def test_the_simulator_is_its_definition(case: tuple[CostGraph, list[int]]) -> None:
    graph, schedule = case
    result = simulate(graph, np.array(schedule))
    assert result.memory.tolist() == naive_memory(graph, schedule)
    assert result.peak == max(result.memory)
    assert result.seconds == pytest.approx(sum(graph.seconds[v] for v in schedule))


@given(scheduled(), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_evaluation_leaves_out_what_nobody_reads_and_agrees(
    case: tuple[CostGraph, list[int]], budget: int
) -> None:
    graph, schedule = case
    sequence = as_sequence(np.array(schedule))
    out = np.zeros(len(schedule) + 5, np.int64)
    memory = np.zeros(len(schedule) + 5, np.int64)
    begin, time, over = evaluate(
        sequence,
        len(sequence),
        graph.sizes,
        graph.seconds,
        graph.read_ptr,
        graph.reads,
        budget,
        np.inf,
        1.0,
        np.zeros(graph.n, np.uint8),
        out,
        memory,
    )
    pruned = np.where(out[begin:] < 0, ~out[begin:], out[begin:])
    result = simulate(graph, pruned)
    assert result.memory.tolist() == memory[begin:].tolist()
    assert result.seconds == pytest.approx(time)
    assert over == np.maximum(result.memory - budget, 0).sum()
    assert result.peak <= simulate(graph, np.array(schedule)).peak


def chain(n: int) -> CostGraph:
    return CostGraph.build(
        list(range(n)), [1.0] * n, [1] * n, [[v - 1] if v else [] for v in range(n)]
    )


@pytest.mark.parametrize(
    ("schedule", "why"),
    [([0, 2, 1], "before value 1"), ([0, 1], "value 2"), ([0, -1, 1, 2], "-1"), ([1, 0, 2], "1")],
)
def test_what_is_no_schedule_is_refused(schedule: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_schedule(chain(3), np.array(schedule))


def test_the_solver_against_exhaustive_search() -> None:
    """Never better than the optimum, a bound never above it, and a proof never wrong."""
    chance = random.Random(5)
    cases = found = optimal = proven = impossible = shown = 0
    while cases < 300:
        graph = random_graph(chance)
        peak = simulate(graph, plain_schedule(graph)).peak
        if peak == 0:
            continue
        cases += 1
        budget = chance.randint(max(1, working_set_bound(graph) - 1), peak)
        best = optimum(graph, budget)
        result = solve(graph, budget, ScheduleSettings(time_limit=3))
        if best is None:
            impossible += 1
            assert not result.fits
            shown += result.infeasible
            continue
        assert not result.infeasible
        assert result.lower_extra <= best + 1e-6
        assert result.fits
        found += 1
        schedule = np.where(result.sequence < 0, ~result.sequence, result.sequence)
        judged = simulate(graph, schedule)
        assert judged.peak <= budget
        assert judged.seconds - graph.plain_seconds == pytest.approx(result.extra, abs=1e-9)
        assert result.extra >= best - 1e-6
        optimal += result.extra <= best + 1e-6
        assert result.extra <= best + 0.01 * graph.plain_seconds + 1e-6
        if result.proven:
            proven += 1
            assert result.extra <= best + 1e-4
    assert impossible > 20
    assert shown > 0.9 * impossible
    assert optimal == found
    assert proven > 0.95 * found


def test_a_program_of_fewer_stages_still_bounds() -> None:
    chance = random.Random(11)
    bounded = 0
    for _ in range(60):
        graph = random_graph(chance, 8)
        peak = simulate(graph, plain_schedule(graph)).peak
        budget = max(working_set_bound(graph), int(0.8 * peak), 1)
        best = optimum(graph, budget)
        steps = sorted({*chance.sample(range(graph.n), max(1, graph.n // 2)), graph.n - 1})
        bound = ScheduleProgram(graph, budget, float("inf"), steps).solve(5)
        if best is None:
            continue
        assert not bound.infeasible
        assert bound.extra <= best + 1e-6
        bounded += bound.extra > 0
    assert bounded > 3


def test_the_least_peak_is_that_of_exhaustive_search() -> None:
    chance = random.Random(3)
    for _ in range(40):
        graph = random_graph(chance, 7)
        if simulate(graph, plain_schedule(graph)).peak == 0:
            continue
        result = least_peak(graph, ScheduleSettings(time_limit=2), 2, nothing)
        least = max(1, working_set_bound(graph))
        while optimum(graph, least) is None:
            least += 1
        assert result.least_peak <= least
        assert simulate(graph, result.least).peak == result.least_peak


def test_a_proof_in_a_process_of_its_own() -> None:
    """The process says what the program says, and ends with the context."""
    n = 30
    reads = [[v - 1] if v else [] for v in range(2 * n)]
    for v in range(n - 1):
        reads[2 * n - 1 - v] += [v]
    graph = CostGraph.build(list(range(2 * n)), [1.0] * (2 * n), [1] * (2 * n), reads)
    best = BestSchedule(graph, n - 4)
    greedy(best)
    assert best.fits
    steps = list(range(0, 2 * n, 2))
    with Proof(best, steps, 30) as proof:
        proof.wait(30)
    bound = ScheduleProgram(graph, n - 4, best.extra, steps).solve(30)
    assert best.lower_extra == bound.extra > 0
    with Proof(best, steps, 30):
        pass


def test_same_seed_same_schedule() -> None:
    chance = random.Random(2)
    n = 60
    reads = [[chance.randrange(v), chance.randrange(v), v - 1] if v else [] for v in range(n)]
    graph = CostGraph.build(
        list(range(n)),
        [chance.randint(1, 99) for _ in range(n)],
        [chance.randint(1, 99) for _ in range(n)],
        reads,
    )
    budget = int(0.8 * simulate(graph, plain_schedule(graph)).peak)
    runs = [
        solve(graph, budget, ScheduleSettings(time_limit=100, seed=7, strategy="annealing"))
        for _ in range(2)
    ]
    assert runs[0].fits
    assert runs[0].sequence.tolist() == runs[1].sequence.tolist()


def test_a_plain_order_that_fits_is_proven_at_once() -> None:
    result = solve(chain(50), 2, ScheduleSettings())
    assert result.proven
    assert result.extra == 0
    assert result.sequence.tolist() == list(range(50))


def test_the_grain_of_times() -> None:
    assert grain(np.array([10.0, 25.0, 0.0])) == 5
    assert grain(np.array([0.5, 1.0])) == 0
    assert grain(np.array([])) == 0


def forward_chain(n: int) -> ForwardGraph:
    return ForwardGraph(
        ids=list(range(n)),
        seconds=[1.0] * n,
        sizes=[1] * n,
        reads=[[v - 1] if v else [] for v in range(n)],
        backward_reads=[[v - 1] if v else [] for v in range(n)],
        backward_into=[[v - 1] if v else [] for v in range(n)],
    )


def test_the_joint_graph_of_a_chain() -> None:
    graph = forward_chain(3).joint()
    assert graph.ids == [0, 1, 2, "grad 2", "grad 1", "grad 0"]
    assert [graph.inputs(v).tolist() for v in range(6)] == [[], [0], [1], [2], [1, 3], [0, 4]]


def test_lower_sets_of_a_chain() -> None:
    """In a chain all lower sets are beginnings, so that the three families are one."""
    graph = forward_chain(16)
    families = [LowerSets(graph, f) for f in ("approximate", "prefixes", "exact")]
    assert families[0].sets == families[1].sets == families[2].sets
    least = families[0].least_budget()
    plan = families[0].chain(least)
    assert plan is not None
    assert plan.peak == least
    assert families[0].chain(least - 1) is None
    # 16 tensors and their gradients take 32; about 2 sqrt(2 n) is enough
    assert least <= 13


@pytest.mark.parametrize("seed", range(25))
def test_lower_sets_of_random_graphs(seed: int) -> None:
    """The exact family is never worse, no chain is over its budget, and all are schedules."""
    chance = random.Random(seed)
    cost = random_graph(chance, 9)
    n = cost.n
    # one output, so that the whole graph is what its last tensor depends on
    reads = [cost.inputs(v).tolist() or ([v - 1] if v else []) for v in range(n)]
    forward = ForwardGraph(
        list(range(n)), cost.seconds.tolist(), cost.sizes.tolist(), reads, reads, reads
    )
    budgets = [LowerSets(forward, f).least_budget() for f in ("approximate", "prefixes", "exact")]
    assert budgets[0] >= budgets[1] >= budgets[2]
    graph = forward.joint()
    family = LowerSets(forward, "exact")
    spent = []
    for budget in (budgets[2], 2 * budgets[2], 2 * sum(forward.sizes) + 1):
        plan = family.chain(budget)
        assert plan is not None
        assert plan.peak <= budget
        spent.append(plan.recompute_seconds)
        sequence = family.schedule(plan)
        schedule = np.where(sequence < 0, ~sequence, sequence)
        check_schedule(graph, schedule)
    assert all(a >= b - 1e-9 for a, b in pairwise(spent))


def test_more_lower_sets_than_allowed() -> None:
    wide = ForwardGraph(list(range(20)), [1.0] * 20, [1] * 20, [[]] * 20, [[]] * 20, [[]] * 20)
    with pytest.raises(ValueError, match="more than 100"):
        LowerSets(wide, "exact", most=100)
    with pytest.raises(ValueError, match="no family"):
        LowerSets(wide, "other")
