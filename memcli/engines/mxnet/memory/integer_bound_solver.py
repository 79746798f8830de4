"""Solves the program of :mod:`~memcli.engines.mxnet.memory.integer_bound` by HiGHS, for proofs.

Whole, or relaxed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memcli import milp_solver
from memcli.engines.mxnet.memory.integer_bound import Floats, PoolProgram, Rows
from memcli.graph.training import Flags
from memcli.marks import AGAIN, BARRIER

_SAFE = 1e-5  # relative: the solver's tolerances on a program scaled to about 1


@dataclass
class Outcome:
    """What the solver proved. ``bound_bytes`` holds for every plan; ``flags`` is its plan."""

    bound_bytes: int
    flags: Flags | None
    finished: bool
    seconds: float


def rounded(program: PoolProgram, value: float) -> int:
    """Bytes of a bound in the program's units, up to the next size that a peak can have."""
    size = value * program.unit
    return int(np.ceil(size / program.grain)) * program.grain


def _linear(rows: Rows, cost: Floats) -> Any:
    """The rows as HiGHS takes them, with ``cost`` over columns to be minimized."""
    import highspy

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(rows.upper), len(rows.low)
    lp.col_cost_, lp.col_lower_ = cost, np.zeros(len(cost))
    lp.col_upper_ = np.array(rows.upper)
    lp.row_lower_ = np.array(rows.low)
    lp.row_upper_ = np.full(len(rows.low), highspy.kHighsInf)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.array(rows.start, np.int32)
    lp.a_matrix_.index_ = np.array(rows.index, np.int32)
    lp.a_matrix_.value_ = np.array(rows.value)
    return lp


def _kinds(rows: Rows) -> list[Any]:
    """Which columns are whole numbers, as HiGHS takes it."""
    import highspy

    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    return [kinds[int(w)] for w in rows.whole]


def _proven(rows: Rows, cost: Floats, multipliers: Sequence[float]) -> float:
    """A bound of the relaxed program from a solver's multipliers, 0 where it has none.

    For any multipliers ``y >= 0`` of rows ``A x >= b``, ``y b + sum_j min(0, d_j u_j)`` with
    ``d = c - A^T y`` is a bound (all columns lie between 0 and ``u``), whatever the solver's
    tolerances, and wherever it stopped.
    """
    if len(multipliers) != len(rows.low):
        return 0.0
    duals = np.maximum(np.array(multipliers), 0.0)
    row = np.repeat(np.arange(len(rows.low)), np.diff(rows.start))
    used = duals[row] * np.array(rows.value)
    reduced = cost - np.bincount(np.array(rows.index, np.int64), used, len(cost))
    return float(duals @ np.array(rows.low) + np.minimum(0.0, reduced * rows.upper).sum())


def least_recomputation(
    program: PoolProgram, work: Floats, *, time_limit: float, relaxed: bool
) -> float:
    """What every plan under the program's ceiling recomputes at least, by HiGHS.

    Args:
        program: the program.
        work: over forward nodes, what running one costs, in any unit.
        time_limit: seconds.
        relaxed: whether marks may be any real numbers, which is quicker and proves less.

    Returns:
        In the unit of ``work``.
    """
    rows = program.rows
    scale = max(1e-300, float(work.sum()))
    cost = np.zeros(len(rows.upper))
    for node, column in program.ran.items():
        cost[column] = work[node] / scale
    lp = _linear(rows, cost)
    # the proof of the relaxed program needs no basis
    options = {"solver": "ipm", "run_crossover": "off"} if relaxed else {"mip_rel_gap": 1e-6}
    if not relaxed:
        lp.integrality_ = _kinds(rows)
    solver = milp_solver.silent_solver(time_limit=float(time_limit), **options)
    solver.passModel(lp)
    milp_solver.run(solver)
    if relaxed:
        best = _proven(rows, cost, solver.getSolution().row_dual)
    else:
        best = float(solver.getInfo().mip_dual_bound)
    return max(0.0, best - _SAFE) * scale if np.isfinite(best) else 0.0


def solve(program: PoolProgram, n_forward: int, *, time_limit: float, relaxed: bool) -> Outcome:
    """Solve the program by HiGHS.

    Args:
        program: the program.
        n_forward: forward nodes of its graph.
        time_limit: seconds.
        relaxed: whether marks may be any real numbers, which is quicker and proves less.
    """
    import highspy

    started = time.monotonic()
    rows = program.rows
    cost = np.zeros(len(rows.upper))
    cost[program.peaks] = 1.0
    lp = _linear(rows, cost)
    if not relaxed:
        lp.integrality_ = _kinds(rows)
    solver = milp_solver.silent_solver(time_limit=float(time_limit), mip_rel_gap=1e-6)
    solver.passModel(lp)
    milp_solver.run(solver)
    status = solver.getModelStatus()
    finished = status == highspy.HighsModelStatus.kOptimal
    solution = solver.getSolution()
    info = solver.getInfo()
    flags: Flags | None = None
    if solution.value_valid:
        at = np.array(solution.col_value)
        flags = np.zeros(n_forward, np.uint8)
        for mark, columns in ((AGAIN, program.recomputed), (BARRIER, program.barrier)):
            for node, column in columns.items():
                if at[column] > 0.5:
                    flags[node] = mark
    bound = 0
    if relaxed:
        best = _proven(rows, cost, solution.row_dual)
        bound = rounded(program, best - 1e-9 * abs(best))
    elif status == highspy.HighsModelStatus.kInfeasible:
        # no plan is under the ceiling, which is a plan's
        bound = rounded(program, program.ceiling * (1 - _SAFE))
        finished = True
    elif np.isfinite(info.mip_dual_bound):
        bound = rounded(program, float(info.mip_dual_bound) * (1 - _SAFE))
    return Outcome(max(0, bound), flags, finished, time.monotonic() - started)
