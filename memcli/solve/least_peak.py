"""The least memory: search after search, each for a smaller budget."""

from __future__ import annotations

from memcli.graph.cost_graph import CostGraph
from memcli.request import Progress
from memcli.solve.base import BestSchedule, ScheduleSettings, as_sequence
from memcli.solve.greedy import relieve
from memcli.solve.rounds import Rounds, capacity
from memcli.solve.simulator import working_set_bound

# The budget falls by this part of what is left above the bound, by less where that fails.
_STEPS = (0.5, 0.2, 0.07, 0.02, 0.005, 0.001)


def least_peak(
    graph: CostGraph, settings: ScheduleSettings, time_limit: float, progress: Progress
) -> BestSchedule:
    """The schedule of the least peak found; of equal peaks that of less time.

    Ends at the working-set bound, when no smaller budget is met, or after the time limit.

    Args:
        graph: of costs.
        settings: seed and the like.
        time_limit: seconds.
        progress: told what is going on.

    Returns:
        ``budget`` of the result is its peak, bytes.
    """
    bound = working_set_bound(graph)
    overall = BestSchedule(graph, bound)
    effort, step = 0.1, 0
    number = 0
    while overall.least_peak > bound and overall.elapsed < time_limit:
        gap = overall.least_peak - bound
        budget = overall.least_peak - max(1, int(gap * _STEPS[step]))
        attempt = BestSchedule(graph, budget)
        # Not from the plain order: what met the last budget is nearly there.
        start = overall.least
        if settings.strategy == "greedy" or step == 0:
            sequence, _, _ = relieve(
                as_sequence(overall.least),
                graph.sizes,
                graph.seconds,
                graph.read_ptr,
                graph.reads,
                budget,
                capacity(graph),
            )
            attempt.offer(sequence, "greedy")
        if not attempt.fits and settings.strategy != "greedy":
            rounds = Rounds(graph, attempt, settings.seed + 31 * number, length=effort)
            rounds.start = as_sequence(start)
            for _ in range(2):
                rounds.run(max(0.0, time_limit - overall.elapsed), progress)
                if attempt.fits or overall.elapsed > time_limit:
                    break
        number += 1
        before = overall.least_peak
        overall.offer(as_sequence(attempt.least), "least peak")
        if overall.least_peak >= before:
            step += 1
            if step == len(_STEPS):
                # Once more over the small steps with more effort, as long as the time allows.
                effort *= 4
                step = 2
                if settings.strategy == "greedy" or effort > 0.15 * time_limit:
                    break
        progress(f"peak at {100 * overall.least_peak / bound:.1f}% of the bound", None)
    return overall
