"""The search for one plan of a recorded step, whatever engine recorded it."""

from __future__ import annotations

import time

from memcli.engine import Network
from memcli.errors import AnswerIsNo
from memcli.graph.cost import Cost
from memcli.request import Progress
from memcli.results.planned import Planned, recorded_recomputation
from memcli.search import none
from memcli.search.base import Settings
from memcli.units import distinct_sizes, parse_size


def plan_network(
    network: Network,
    strategy: str,
    settings: Settings,
    *,
    budget: str | None,
    engine: str,
    started: float,
    on_progress: Progress | None = None,
) -> Planned:
    """Searches for a plan of a recorded step; nothing is written.

    Args:
        network: the step.
        strategy: the name of one of ``STRATEGIES``.
        settings: of the search; its budget is set here.
        budget: most memory, as ``6GiB`` or ``50%``. What fits as it is gets no plan.
        engine: the name of the one that recorded it.
        started: when the work began, of ``time.monotonic``.
        on_progress: told what is being done.

    Raises:
        AnswerIsNo: no plan fits the budget, or the limit on recomputation.
    """
    baseline = network.baseline()
    if budget is not None:
        settings.budget = parse_size(budget, whole=baseline.pool_bytes)
    fits = settings.met_by(baseline)
    # where nothing is searched for, no cost decides
    notes = network.set_costs("roofline" if fits else settings.cost, on_progress)
    if fits:
        notes.append(fits_note(baseline.pool_bytes, settings.budget))
    settings.on_progress = on_progress
    answer = network.search(none.NAME if fits else strategy, settings)
    planned = network.planned(
        answer,
        settings,
        source=network.source,
        original=network.original,
        engine=engine,
        analysis=network.analysis,
        operator_count=network.operator_count,
        strategy=strategy,
        cost_of=settings.cost,
        plan=answer.found.plan,
        baseline=baseline,
        cost=answer.found.cost,
        device=network.device,
        restored=network.restored,
        notes=[],
        evaluated=answer.evaluated,
        seconds=time.monotonic() - started,
    )
    planned.notes = [*network.notes, *notes, *planned.notes]
    refuse_misses(planned.cost, planned.lower_bound, settings)
    network.prove_recomputation(planned, settings)
    return planned


def fits_note(size: int, budget: int | None) -> str:
    """What the user is told where there is nothing to do."""
    have, most = distinct_sizes(size, budget or size)
    return f"fits as saved: {have} of the {most} of the budget; nothing is recomputed or rewritten"


def refuse_misses(cost: Cost, lower_bound: int, settings: Settings) -> None:
    """Raises AnswerIsNo where the best plan breaks a limit that the user set."""
    if settings.budget is not None and cost.pool_bytes > settings.budget:
        budget, least, bound = distinct_sizes(settings.budget, cost.pool_bytes, lower_bound)
        within = "" if settings.time_limit is None else " within the time limit"
        raise AnswerIsNo(
            f"no plan found{within} fits {budget}: the least is {least} with "
            f"{cost.recompute_fraction:.0%} of the forward pass recomputed",
            f"nothing can get under {bound} at these shapes; a smaller --batch needs less"
            if lower_bound
            else "a longer --time-limit or a smaller --batch may help",
            _nearest(cost, lower_bound),
        )
    limit = settings.max_recompute
    if limit is not None and cost.recompute_fraction > limit + 1e-12:
        raise AnswerIsNo(
            f"no plan found recomputes at most {limit:.1%} of the forward pass: the least is "
            f"{cost.recompute_fraction:.1%}",
            nearest=_nearest(cost, lower_bound),
        )


def _nearest(cost: Cost, lower_bound: int) -> dict[str, object]:
    """What ``plan --json`` says of the best plan where it breaks a limit."""
    memory = {"planned_bytes": cost.pool_bytes, "live_peak_bytes": cost.live_peak_bytes}
    if lower_bound:
        memory["lower_bound_bytes"] = lower_bound
    return {"memory": memory, "recompute": recorded_recomputation(cost)}
