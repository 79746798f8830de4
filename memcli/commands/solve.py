"""``memcli solve``: a graph of costs in, a schedule out."""

from __future__ import annotations

import json
import time

import numpy as np

from memcli.errors import AnswerIsNo
from memcli.formats.cost_graphs.chainer_text import parse_chainer_text
from memcli.formats.cost_graphs.node_link import parse_node_link
from memcli.formats.detect import read_model_bytes
from memcli.formats.output import check_output, write_output
from memcli.graph.cost_graph import CostGraph
from memcli.quoting import shown_path
from memcli.request import Progress
from memcli.results.solved import Solved
from memcli.solve.base import BestSchedule, ScheduleSettings
from memcli.solve.least_peak import least_peak
from memcli.solve.search import nothing, prepare, solve
from memcli.solve.simulator import plain_schedule, simulate, working_set_bound
from memcli.units import distinct_sizes, parse_size

# Without a budget: this part of the time for the least peak, the rest for its overhead.
_PEAK_SHARE = 0.6


def read_cost_graph(path: str) -> CostGraph:
    """The graph in a file; Chainer's text format is told from JSON by its first character.

    A forward-only graph is given its backward pass (``ForwardGraph.joint``).

    Raises:
        BadInput: the file is missing, or not as its format has it.
    """
    return parse_cost_graph(read_model_bytes(path)[0], shown_path(path))


def parse_cost_graph(data: bytes, name: str) -> CostGraph:
    """As :func:`read_cost_graph` on bytes at hand; ``name`` (of the file) begins each message.

    Raises:
        BadInput: not as its format has it.
    """
    if data.lstrip()[:1].isdigit():
        return parse_chainer_text(data, name).joint()
    return parse_node_link(data, name)


def solve_file(
    path: str,
    settings: ScheduleSettings,
    *,
    budget: str | None = None,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress = nothing,
) -> Solved:
    """Find a schedule for a graph of costs.

    Args:
        path: of the graph's file.
        settings: seed and time limit.
        budget: as the user gives it; None: the least peak is searched.
        out: path of the schedule's file; None: it is not written.
        force: whether a file that is there is replaced.
        on_progress: told what is going on.

    Raises:
        BadInput: a bad file, budget or output.
        AnswerIsNo: no schedule meets the budget, or none was found.
    """
    check_output(path, out, force)
    if budget is not None and not budget.strip().endswith("%"):
        parse_size(budget)
    graph = read_cost_graph(path)
    plain = simulate(graph, plain_schedule(graph))
    limit = None if budget is None else parse_size(budget, whole=plain.peak)
    on_progress("compiling the search (first run only)", None)
    prepare()
    started = time.monotonic()
    if limit is None:
        lowest = least_peak(graph, settings, _PEAK_SHARE * settings.time_limit, on_progress)
        found = _cheapest(graph, lowest, settings, on_progress)
    else:
        found = solve(graph, limit, settings, on_progress)
    bound = working_set_bound(graph)
    if not found.fits:
        assert limit is not None
        raise _no(found, limit, bound, settings, on_progress)
    schedule = np.where(found.sequence < 0, ~found.sequence, found.sequence)
    result = simulate(graph, schedule)
    return Solved(
        path=path,
        graph=graph,
        budget=limit,
        schedule=schedule,
        memory=result.memory,
        peak=result.peak,
        plain_peak=plain.peak,
        peak_bound=bound,
        extra=found.extra,
        lower_extra=found.lower_extra,
        proven=found.proven and (limit is not None or result.peak == bound),
        found_by=found.found_by,
        found_after=found.found_after,
        seconds=time.monotonic() - started,
    )


def _cheapest(
    graph: CostGraph, lowest: BestSchedule, settings: ScheduleSettings, progress: Progress
) -> BestSchedule:
    """The least time at the least peak; the peak's own schedule is one to begin with."""
    left = ScheduleSettings(
        **{**vars(settings), "time_limit": settings.time_limit - lowest.elapsed}
    )
    return solve(graph, lowest.least_peak, left, progress, start=lowest.least)


def _no(
    found: BestSchedule, limit: int, bound: int, settings: ScheduleSettings, progress: Progress
) -> AnswerIsNo:
    """Why not, and the nearest budget that is met."""
    if found.infeasible and found.least_peak > bound:
        # Proven at once, so there is time to say what would do.
        seconds = min(5.0, max(0.0, settings.time_limit - found.elapsed))
        nearest = least_peak(found.graph, settings, seconds, progress).least_peak
        found.least_peak = min(found.least_peak, nearest)
    budget, least, lowest = distinct_sizes(limit, found.least_peak, bound)
    if found.infeasible:
        why = f"no schedule fits {budget}, proven"
    else:
        why = f"no schedule found fits {budget}"
    return AnswerIsNo(
        f"{why}: the least peak found is {least}",
        f"nothing can get under {lowest}, the largest node with all that it reads",
        {"peak": found.least_peak, "peak_lower_bound": bound},
    )


def write_solution(result: dict[str, object], out: str, force: bool) -> None:
    """Write the JSON object, whole or not at all."""
    write_output(out, (json.dumps(result) + "\n").encode(), overwrite=force)
