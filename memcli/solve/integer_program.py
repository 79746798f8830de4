"""An integer program whose optimum no schedule gets under: proofs, not plans.

Notation. Stage ``j`` of a schedule is what runs after the first computation of ``j - 1`` up to
and with that of ``j``. For any schedule whatever (any order, any number of recomputations within
a stage) let

* ``K[j, v] = 1`` where ``v < j`` is live at the step that first computes ``j``,
* ``R[j, v] = 1`` where ``v < j`` is recomputed at least once in stage ``j``,
* ``T[j, v] = 1`` where ``v`` is live from the first computation of ``j - 1`` to that of ``j``
  without being computed between.

Then all of this holds, which is the program:

1. ``K[j, u] = 1`` for what ``j`` reads.
2. ``K[j, v] <= K[j-1, v] + R[j, v]``: what is live was live or was computed (``K[j-1, j-1] = 1``).
3. ``R[j, v] <= K[j-1, u] + R[j, u]`` for each ``u`` that ``v`` reads.
4. ``T[j, v] >= K[j-1, v] + K[j, v] - 1 - R[j, v]``.
5. At the first computation of ``j``: ``sum K[j, v] size[v] + size[j] <= budget``.
6. When ``v`` is recomputed in stage ``j``, it and what it reads are live, and so is all that
   lives through the stage: ``S[j] + sum over u of v and its inputs of size[u] (R[j, v] - T[j, u])
   <= budget`` with ``S[j] = sum T[j, u] size[u]``. (``S[j] <= budget`` in any case.)

All of it also holds of longer stages, which end with the first computations of some chosen ``j``
only and begin after the one chosen before: a value that is first computed within a stage is there
without ``R``, and what it reads then has to be. Large graphs get such a program of fewer stages,
with a weaker bound.

The time above the plain order's is at least ``sum R[j, v] seconds[v]``. So the minimum is a lower
bound for every schedule there is, and where the program has no solution there is no schedule.
The converse does not hold: a solution leaves out the order within a stage. Where its sets, each
stage in ascending order, make a schedule that fits, that schedule is optimal.

The variables are those of Jain et al., "Checkmate" (MLSys 2020), section 4; the stages there
compute each value at most once in a fixed order, which would not be a bound for all schedules.
Constraints 4 and 6 stand in for their memory accounting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.graph.cost_graph import CostGraph
from memcli.milp_solver import silent_solver


@dataclass
class ScheduleBound:
    """What the program showed."""

    infeasible: bool = False
    extra: float = 0.0  # no schedule's time above the plain order's is less than this
    stages: list[list[int]] | None = None  # the best solution's recomputations by stage
    finished: bool = False


def reaches(graph: CostGraph) -> NDArray[np.int64]:
    """For each value the last one that needs it, directly or through others; itself if none."""
    last = np.arange(graph.n)
    for v in range(graph.n - 1, -1, -1):
        inputs = graph.inputs(v)
        last[inputs] = np.maximum(last[inputs], last[v])
    return last


def grain(seconds: NDArray[np.float64]) -> float:
    """The largest time of which every time is a whole multiple; 0 where they are not whole."""
    if len(seconds) == 0 or not np.all(seconds == np.floor(seconds)):
        return 0.0
    return float(np.gcd.reduce(seconds.astype(np.int64)))


class ScheduleProgram:
    """The program of one graph and budget.

    ``most_extra`` is the time above the plain order's of a schedule at hand (infinity where there
    is none): variables that alone would cost more are left out. ``steps`` (ascending) are the
    stages' ends; without, every value's first computation.
    """

    def __init__(
        self, graph: CostGraph, budget: int, most_extra: float, steps: list[int] | None = None
    ) -> None:
        self.graph, self.budget, self.most_extra = graph, budget, most_extra
        self.steps = list(range(graph.n)) if steps is None else steps
        # The largest time that may be spent; HiGHS's tolerances are parts of it.
        spendable = graph.seconds[graph.seconds <= most_extra * (1 + 1e-9)]
        self.scale = max(float(spendable.max(initial=0.0)), 1e-300)
        self.grain = grain(graph.seconds)
        self.rows: list[tuple[float, float, list[int], list[float]]] = []
        self.cost: list[float] = []
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.integer: list[bool] = []
        self.keep: dict[tuple[int, int], int] = {}
        self.recomputed: dict[tuple[int, int], int] = {}
        self._build(most_extra)

    def _variable(self, lower: float, upper: float, cost: float, integer: bool) -> int:
        self.lower.append(lower)
        self.upper.append(upper)
        self.cost.append(cost)
        self.integer.append(integer)
        return len(self.cost) - 1

    def _row(self, low: float, high: float, terms: dict[int, float]) -> None:
        self.rows.append((low, high, list(terms), list(terms.values())))

    def _build(self, most_extra: float) -> None:
        graph, steps = self.graph, self.steps
        n, last = graph.n, reaches(graph)
        inputs = [[int(u) for u in graph.inputs(v)] for v in range(n)]
        sizes = graph.sizes / self.budget
        seconds = graph.seconds / self.scale
        allowed = graph.seconds <= most_extra * (1 + 1e-9)
        infinity = float("inf")
        for k, j in enumerate(steps):
            for v in range(j):
                if last[v] >= j:
                    self.keep[k, v] = self._variable(float(v in inputs[j]), 1, 0, True)
                    if allowed[v]:
                        self.recomputed[k, v] = self._variable(0, 1, float(seconds[v]), True)
        for k, j in enumerate(steps):
            before = steps[k - 1] if k else -1
            total = {self.keep[k, v]: float(sizes[v]) for v in range(j) if (k, v) in self.keep}
            self._row(-infinity, 1 - float(sizes[j]), total)
            through: dict[int, int] = {}
            for v in range(min(j, before + 1)):
                if (k, v) not in self.keep:
                    continue
                kept = {} if v == before else {self.keep[k - 1, v]: 1.0}
                recomputed = {self.recomputed[k, v]: 1.0} if (k, v) in self.recomputed else {}
                if v < before:
                    minus = dict.fromkeys((*kept, *recomputed), -1.0)
                    self._row(-infinity, 0, {self.keep[k, v]: 1.0, **minus})
                # 4, with K[before, before] = 1
                through[v] = self._variable(0, 1, 0, False)
                minus = dict.fromkeys((*kept, self.keep[k, v]), -1.0)
                self._row(-float(len(kept)), infinity, {through[v]: 1.0, **minus, **recomputed})
            for v in range(before + 1, j):
                # first computed within the stage: what it reads is there by then
                for u in inputs[v]:
                    if u < before:
                        terms = {self.keep[k - 1, u]: 1.0}
                        if (k, u) in self.recomputed:
                            terms[self.recomputed[k, u]] = 1.0
                        self._row(1, infinity, terms)
            for v in range(j):
                if (k, v) not in self.recomputed:
                    continue
                for u in inputs[v]:
                    if u >= before:
                        continue
                    terms = {self.recomputed[k, v]: 1.0, self.keep[k - 1, u]: -1.0}
                    if (k, u) in self.recomputed:
                        terms[self.recomputed[k, u]] = -1.0
                    self._row(-infinity, 0, terms)
            self._stage_memory(k, j, inputs, sizes, through)

    def _stage_memory(
        self, k: int, j: int, inputs: list[list[int]], sizes: NDArray[Any], through: dict[int, int]
    ) -> None:
        recomputed = [v for v in range(j) if (k, v) in self.recomputed]
        if not recomputed:
            return
        held = self._variable(0, 1, 0, False)
        terms = {x: -float(sizes[v]) for v, x in through.items()}
        terms[held] = 1.0
        self._row(0, 0, terms)
        for v in recomputed:
            own = [v, *inputs[v]]
            terms = {held: 1.0, self.recomputed[k, v]: float(sum(sizes[u] for u in own))}
            for u in own:
                if u in through:
                    terms[through[u]] = terms.get(through[u], 0.0) - float(sizes[u])
            self._row(-float("inf"), 1, terms)

    def solve(
        self, time_limit: float, on_bound: Callable[[float], None] | None = None
    ) -> ScheduleBound:
        """Run HiGHS with one thread.

        Args:
            time_limit: seconds, about.
            on_bound: told of the bound on the way, in the graph's unit of time.
        """
        import highspy

        gap = 0.9 * self.grain / self.scale
        solver = silent_solver(
            time_limit=max(0.01, time_limit), mip_rel_gap=0.0, mip_abs_gap=max(1e-9, gap)
        )
        known = np.isfinite(self.most_extra)
        if known:
            # Only what is no worse than the schedule at hand is of interest.
            self._row(
                -float("inf"),
                self.most_extra / self.scale * (1 + 1e-9),
                {x: self.cost[x] for x in self.recomputed.values()},
            )
        solver.passModel(self._model(highspy))

        def look(event: Any) -> None:
            bound = event.data_out.mip_dual_bound
            if on_bound is not None and np.isfinite(bound):
                on_bound(self._rounded(bound))

        solver.cbMipInterrupt.subscribe(look)
        solver.run()
        status = solver.getModelStatus()
        kind = highspy.HighsModelStatus
        if status == kind.kInfeasible:
            if known:
                return ScheduleBound(extra=self.most_extra, finished=True)
            return ScheduleBound(infeasible=True, finished=True)
        info = solver.getInfo()
        bound = ScheduleBound(finished=status == kind.kOptimal)
        if np.isfinite(info.mip_dual_bound):
            bound.extra = self._rounded(info.mip_dual_bound)
        if info.primal_solution_status == 2:
            value = solver.getSolution().col_value
            bound.stages = [
                [
                    v
                    for v in range(j)
                    if (k, v) in self.recomputed and value[self.recomputed[k, v]] > 0.5
                ]
                for k, j in enumerate(self.steps)
            ]
        return bound

    def _rounded(self, bound: float) -> float:
        """A bound of HiGHS in the graph's unit: its tolerance off, then up to the next grain."""
        extra = (bound - 1e-6) * self.scale
        if self.grain > 0:
            extra = self.grain * np.ceil(extra / self.grain)
        return min(self.most_extra, max(0.0, float(extra)))

    def _model(self, highspy: Any) -> Any:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.cost), len(self.rows)
        lp.col_cost_ = np.array(self.cost)
        lp.col_lower_, lp.col_upper_ = np.array(self.lower), np.array(self.upper)
        lp.row_lower_ = np.array([row[0] for row in self.rows])
        lp.row_upper_ = np.array([row[1] for row in self.rows])
        starts = np.zeros(len(self.rows) + 1, np.int32)
        np.cumsum([len(row[2]) for row in self.rows], out=starts[1:])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = starts
        lp.a_matrix_.index_ = np.array([x for row in self.rows for x in row[2]], np.int32)
        lp.a_matrix_.value_ = np.array([c for row in self.rows for c in row[3]])
        types = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [types[flag] for flag in self.integer]
        return lp
