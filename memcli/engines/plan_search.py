"""The search for one plan of a recorded step, whatever engine recorded it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from memcli.engine import Network
from memcli.engines.runtime import NOTHING, Reserve
from memcli.errors import AnswerIsNo
from memcli.graph.cost import Cost
from memcli.request import Progress
from memcli.results.planned import Planned, recorded_recomputation
from memcli.results.step_total import Breakdown, StepTotal
from memcli.search import none
from memcli.search.base import Settings
from memcli.units import distinct_sizes, parse_size


@dataclass(frozen=True)
class WholeStep:
    """What is said of all that a training step takes, beside activations.

    Args:
        optimizer: one of ``OPTIMIZERS``.
        reserve: what the engine and its libraries take for themselves.
        on_card: a card trains it, and not the CPU.
        memory: what there is, bytes: a budget for the whole step; None where nobody said.
        card: the kind of card that ``memory`` is of, as its maker calls it; '' where not named.
    """

    optimizer: str = "sgd"
    reserve: Reserve = NOTHING
    on_card: bool = False
    memory: int | None = None
    card: str = ""


def plan_network(
    network: Network,
    strategy: str,
    settings: Settings,
    *,
    budget: str | None,
    whole: WholeStep,
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
        whole: what else a step takes, and what it may take in place of ``budget``.
        engine: the name of the one that recorded it.
        started: when the work began, of ``time.monotonic``.
        on_progress: told what is being done.

    Raises:
        AnswerIsNo: no plan fits the budget, or the limit on recomputation.
    """
    baseline = network.baseline()
    if budget is not None:
        settings.budget = parse_size(budget, whole=baseline.pool_bytes)
    parts = network.breakdown(baseline.pool_bytes, whole.optimizer)
    if whole.memory is not None:
        settings.budget = pool_budget(parts, whole.memory, whole.reserve)
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
    planned.step_total = StepTotal(
        optimizer=whole.optimizer,
        baseline=parts,
        planned=network.breakdown(planned.cost.pool_bytes, whole.optimizer),
        reserve=whole.reserve.bytes,
        reserve_assumed=whole.reserve.assumed,
        on_card=whole.on_card,
        memory=whole.memory,
        card=whole.card,
        baseline_slack=planned.on_card.baseline_slack if planned.on_card else 0,
        planned_slack=planned.on_card.slack if planned.on_card else 0,
    )
    refuse_misses(planned.cost, planned.lower_bound, settings)
    network.prove_recomputation(planned, settings)
    return planned


def pool_budget(parts: Breakdown, memory: int, kept: Reserve) -> int:
    """What activations may take where a whole step may take ``memory`` bytes.

    Raises:
        AnswerIsNo: the rest alone takes more.
    """
    least = parts.beside_pool + parts.update + kept.bytes
    room = memory - parts.beside_pool - kept.bytes
    if room > 0 and least <= memory:
        return room
    have, needed, runtime = distinct_sizes(memory, least, kept.bytes)
    assumed = f" ({kept.assumed}, assumed)" if kept.assumed else ""
    raise AnswerIsNo(
        f"no plan fits {have}: parameters, their gradients, the optimizer and the engine itself "
        f"take {needed} before any activation",
        f"{runtime} of it are the engine's{assumed}; --reserve SIZE says otherwise, and an "
        "optimizer that keeps less (--optimizer sgd) or --frozen takes less",
        {"memory": {"beside_activations_bytes": least}},
    )


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
