"""The strategies put together: bounds that cost nothing, a greedy start, annealing, a proof."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memcli.graph.cost_graph import CostGraph
from memcli.request import Progress
from memcli.solve.base import BestSchedule, ScheduleSettings, as_sequence
from memcli.solve.greedy import relieve
from memcli.solve.integer_program import ScheduleProgram
from memcli.solve.proof import Proof
from memcli.solve.rounds import Rounds, capacity
from memcli.solve.simulator import plain_schedule, simulate, working_set_bound

# Stages times values of the program; beyond this HiGHS gets one of fewer stages.
_PROGRAM_SIZE = 20_000
# Up to this many values HiGHS needs less time than a process to start.
_PROGRAM_AT_ONCE = 48
# Larger graphs get no program.
_PROGRAM_VALUES = 600
# Annealing before the program begins, so that it has a good schedule to beat, in seconds for each
# value.
_BEFORE_PROGRAM = 0.002


def nothing(text: str, fraction: float | None = None) -> None:
    """Progress for nobody."""


def prepare() -> None:
    """Have what numba compiles at its first use ready, so that no search's time is spent on it."""
    tiny = CostGraph.build([0, 1, 2], [1, 1, 1], [1, 1, 1], [[], [0], [0, 1]])
    best = BestSchedule(tiny, 3)
    greedy(best)
    Rounds(tiny, best, 0).run(1.0, nothing)


def solve(
    graph: CostGraph,
    budget: int,
    settings: ScheduleSettings,
    progress: Progress = nothing,
    start: NDArray[np.int64] | None = None,
) -> BestSchedule:
    """The schedule of least time found whose peak fits a budget.

    Deterministic for a seed and a time limit, unless the clock cuts the search short.

    Args:
        graph: of costs.
        budget: bytes.
        settings: seed and time limit.
        progress: told what is going on.
        start: a schedule that may fit already.
    """
    best = BestSchedule(graph, budget)
    if best.proven:
        return best
    if budget < working_set_bound(graph):
        best.infeasible = True
        return best
    progress("greedy start", None)
    greedy(best)
    if start is not None:
        best.offer(as_sequence(start), "least peak")
    if settings.strategy == "greedy":
        return best
    if best.proven:
        return best
    rounds = Rounds(graph, best, settings.seed)
    if settings.strategy == "annealing" or not settings.prove or graph.n > _PROGRAM_VALUES:
        rounds.search(settings.time_limit, progress)
        return best
    before = _BEFORE_PROGRAM * graph.n
    while rounds.spent < before and best.elapsed < settings.time_limit:
        rounds.run(settings.time_limit, progress)
        rounds.length *= 2
    if best.elapsed >= settings.time_limit:
        return best
    if graph.n <= _PROGRAM_AT_ONCE:
        bound = ScheduleProgram(graph, budget, best.extra).solve(settings.time_limit - best.elapsed)
        best.lower_extra = max(best.lower_extra, bound.extra)
        best.infeasible |= bound.infeasible
        if bound.stages is not None:
            best.offer(_sequence(graph, bound.stages), "integer program")
        rounds.search(settings.time_limit, progress)
        return best
    steps = _steps(graph)
    with Proof(best, steps, settings.time_limit) as proof:
        rounds.search(settings.time_limit, progress)
        if not best.proven and not best.infeasible:
            progress("waiting for the proof", None)
            proof.wait(settings.time_limit - best.elapsed)
    if proof.stages is not None and len(steps) == graph.n:
        best.offer(_sequence(graph, proof.stages), "integer program")
    return best


def greedy(best: BestSchedule) -> None:
    """Offer what :func:`relieve` makes of the plain order."""
    graph = best.graph
    sequence, _, _ = relieve(
        plain_schedule(graph),
        graph.sizes,
        graph.seconds,
        graph.read_ptr,
        graph.reads,
        best.budget,
        capacity(graph),
    )
    best.offer(sequence, "greedy")


def _steps(graph: CostGraph) -> list[int]:
    """Where the program's stages end: everywhere, or at as many places as it can take."""
    wanted = max(2, _PROGRAM_SIZE // max(1, graph.n))
    if wanted >= graph.n:
        return list(range(graph.n))
    # Where the plain order is fullest, and evenly over the rest.
    memory = simulate(graph, plain_schedule(graph)).memory.astype(np.float64)
    weight = np.cumsum(memory / memory.sum())
    marks = (np.arange(wanted) + 0.5) / wanted
    chosen = set(np.searchsorted(weight, marks).tolist()) | {int(memory.argmax()), graph.n - 1}
    return sorted(c for c in chosen if c < graph.n)


def _sequence(graph: CostGraph, stages: list[list[int]]) -> np.ndarray:
    entries: list[int] = []
    for j, recomputed in enumerate(stages):
        entries += [~v for v in sorted(recomputed)]
        entries.append(j)
    return np.array(entries, np.int64)
