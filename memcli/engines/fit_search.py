"""The search for the largest batch under plans, whatever engine trains the model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from memcli.engines.batch_series import A, BatchSeries
from memcli.engines.costs import Costs
from memcli.engines.largest_batch import largest
from memcli.errors import AnswerIsNo
from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost
from memcli.graph.training import Plan
from memcli.results.fitted import Fitted, Side
from memcli.results.planned import Source, Step
from memcli.results.step_total import Breakdown
from memcli.search.base import Settings
from memcli.units import distinct_sizes, format_size

# With this part of the pool or more to spare, a plan with less recomputation is searched for.
_SPARE = 0.02


@dataclass
class Evaluated:
    """A plan at a batch."""

    plan: Plan
    cost: Cost
    breakdown: Breakdown


@dataclass
class Candidate(Generic[A]):
    """A plan, and what it was searched for on."""

    plan: Plan
    analysis: A


@dataclass
class FitAnswer(Generic[A]):
    """Both sides, and the plan at its batch."""

    baseline: Side
    planned: Side
    plan: Plan
    analysis: A


@dataclass
class Finished:
    """The plan of an answer, as it is written. Sizes in bytes.

    ``analysis``: of the baseline at that batch. ``form``: of the network, that the plan is for.
    """

    plan: Plan
    cost: Cost
    breakdown: Breakdown
    analysis: Step
    operator_count: int
    form: Any
    environment: dict[str, str]
    notes: list[str]


class FitSearch(ABC, Generic[A]):
    """The search itself.

    ``batches``: the model as given. ``rewritten``: the graph that plans are made for, where that
    is another one. ``available``: bytes that a step may take.
    ``costs``: of recomputing operators, given to every batch that plans are looked at.
    """

    source: Source
    original: tuple[str, str]  # name and SHA-256 of the file without any plan
    device: str = ""  # that figures are of, where they differ by device
    restored: list[str]
    notes: list[str]

    # How often a plan is searched for again at the first batch that did not fit.
    rounds = 6
    # As long as that makes the batch larger by this part of it.
    least_gain = 0.0

    def __init__(
        self,
        batches: BatchSeries[A],
        rewritten: BatchSeries[A],
        settings: Settings,
        available: int,
        costs: Costs,
    ) -> None:
        self.costs = costs
        self.batches = batches
        self.rewritten = rewritten
        self.settings = settings
        self.available = available
        self.candidates: list[Candidate[A]] = []
        self.restored = []
        self.notes = []

    @property
    def looked_at(self) -> int:
        """How many batches the engine was asked about."""
        return len(self.batches.analyses) + len(self.batches.refused)

    @abstractmethod
    def finished(self, answer: FitAnswer[A]) -> Finished:
        """The plan of an answer with what the engine puts into its file.

        Raises:
            AnswerIsNo: the plan changes bits on kernels that may run it.
        """

    @abstractmethod
    def write(self, fitted: Fitted, out: str, force: bool) -> None:
        """Writes the model with its plan at the batch that was found, whole or not at all.

        Raises:
            BadInput: the file cannot be written, or exists and ``force`` is false.
        """

    @property
    def searches(self) -> int:
        """How many plans were searched for."""
        return len(self.candidates)

    @abstractmethod
    def breakdown(self, analysis: A, pool_bytes: int) -> Breakdown:
        """What a step takes with feature maps of that many bytes."""

    @abstractmethod
    def found(self, analysis: A, settings: Settings) -> Plan:
        """Search for a plan."""

    @abstractmethod
    def transferred(self, candidate: Candidate[A], analysis: A) -> Plan:
        """The plan at another batch."""

    def match_ranges(self) -> list[tuple[int, ...]]:
        """Choices of MXNet's match ranges to evaluate a plan under."""
        return [(DEFAULT_MATCH_RANGE,)]

    def baseline_at(self, batch: int) -> Evaluated | None:
        """The baseline at a batch; None where the engine refuses it."""
        analysis = self.batches.at(batch)
        if analysis is None:
            return None
        return self._evaluated(
            analysis, Plan("none", analysis.model.none()), (DEFAULT_MATCH_RANGE,)
        )

    def _evaluated(self, analysis: A, plan: Plan, ranges: tuple[int, ...]) -> Evaluated:
        if len(plan.reserved):
            ranges = (DEFAULT_MATCH_RANGE,)
        cost = analysis.model.evaluate(plan.recompute, ranges, plan.reserved)
        plan = dataclasses.replace(plan, match_range=cost.match_range)
        return Evaluated(plan, cost, self.breakdown(analysis, cost.pool_bytes))

    def all_at(self, batch: int) -> list[Evaluated]:
        """Every plan found so far, and the baseline, at a batch; [] where it is refused."""
        analysis = self.rewritten.at(batch)
        if analysis is None:
            return []
        if self.candidates:
            self.costs.give(analysis)
        nothing = Plan("none", analysis.model.none())
        found = [self._evaluated(analysis, nothing, (DEFAULT_MATCH_RANGE,))]
        limit = self.settings.max_recompute
        for candidate in self.candidates:
            plan = self.transferred(candidate, analysis)
            for ranges in self.match_ranges():
                one = self._evaluated(analysis, plan, ranges)
                if limit is None or one.cost.recompute_fraction <= limit + 1e-12:
                    found.append(one)
        return found

    def need_baseline(self, batch: int) -> int | None:
        """Bytes of a batch of the baseline; None where the engine refuses it."""
        one = self.baseline_at(batch)
        return None if one is None else one.breakdown.total

    def need_planned(self, batch: int) -> int | None:
        """Bytes of a batch under the plan that needs the least there."""
        return min((one.breakdown.total for one in self.all_at(batch)), default=None)

    def best_at(self, batch: int) -> Evaluated:
        """What fits with the least recomputation, without a variable where that is the same."""

        def key(one: Evaluated) -> tuple[float, ...]:
            over = max(0, one.breakdown.total - self.available)
            set_variable = one.plan.match_range != DEFAULT_MATCH_RANGE
            return (over, one.cost.recompute_flops, set_variable, one.breakdown.total)

        return min(self.all_at(batch), key=key)

    def search_at(self, batch: int, budget: int | None = None) -> None:
        """Search for a plan at a batch; ``budget`` in bytes of its pool."""
        analysis = self.rewritten.at(batch)
        assert analysis is not None
        self.costs.give(analysis)
        settings = dataclasses.replace(self.settings, budget=budget)
        report = self.settings.on_progress
        if report:
            settings.on_progress = lambda text, part=None: report(f"plan at batch {batch:,}", part)
        self.candidates.append(Candidate(self.found(analysis, settings), analysis))

    def plan(self, baseline_batch: int) -> int:
        """The largest batch under plans that are searched for where the answer may be.

        First at the largest batch of the baseline. Then, as long as that helps, at the first batch
        that did not fit. Last, where there is memory to spare, for less recomputation.
        """
        start = max(baseline_batch, 1)
        self.search_at(start)
        need, fixed = self.need_planned(start) or 0, self.fixed(start)
        guess = int(start * (self.available - fixed) / max(1, need - fixed))
        answer = self.largest_planned(guess)
        for _ in range(self.rounds):
            if self.rewritten.at(answer + 1) is None:
                break
            self.search_at(answer + 1)
            further = self.largest_planned()
            gain, answer = further - answer, max(further, answer)
            if gain <= self.least_gain * answer:
                break
        if answer:
            best = self.best_at(answer)
            spare = self.available - best.breakdown.total
            if spare > _SPARE * best.cost.pool_bytes and best.cost.recompute_flops:
                self.search_at(answer, budget=best.cost.pool_bytes + spare)
        return answer

    def largest_planned(self, guess: int | None = None) -> int:
        """The largest batch under the plans found so far."""
        seen = self.batches.cheap()
        return largest(self.need_planned, self.available, seen=seen, guess=guess)

    def fixed(self, batch: int) -> int:
        """Bytes that no batch changes."""
        analysis = self.batches.at(batch)
        assert analysis is not None
        one = self.breakdown(analysis, 0)
        return one.beside_pool - one.inputs - one.input_gradients

    def side(self, batch: int, one: Evaluated, need: Callable[[int], int | None]) -> Side:
        """The figures of an answer, and what one more would need.

        Args:
            batch: the answer; 0 where nothing fits.
            one: what was evaluated there.
            need: bytes of a batch.
        """
        more = need(batch + 1)
        problem = "" if more is not None else self.batches.refused.get(batch + 1, "")
        return Side(batch, one.breakdown, one.cost, more, problem)

    def answer(self) -> FitAnswer[A]:
        """Both sides.

        Raises:
            AnswerIsNo: not even batch 1 fits.
            EngineFailed: the engine is missing or crashed.
        """
        available, batches = self.available, self.batches
        bare = largest(self.need_baseline, available, seen=batches.cheap())
        if not bare and batches.at(1) is None:
            raise AnswerIsNo(
                f"no batch fits {format_size(available)}, and {batches.engine} refuses batch 1: "
                f"{batches.refused[1]}"
            )
        answer = self.plan(bare)
        best = self.best_at(max(answer, 1))
        before = self.baseline_at(max(bare, 1))
        assert before is not None
        if not answer:
            parts = best.breakdown
            most, planned, saved, rest, maps = distinct_sizes(
                available, parts.total, before.breakdown.total, parts.beside_pool, parts.pool
            )
            raise AnswerIsNo(
                f"not even batch 1 fits {most}: it needs {planned} planned, {saved} baseline",
                f"of the planned, {rest} are parameters, gradients, optimizer, states and inputs, "
                f"and {maps} feature maps",
                {
                    "unplanned": {"batch": 1, "bytes": before.breakdown.total},
                    "planned": {"batch": 1, "bytes": parts.total},
                },
            )
        analysis = self.rewritten.at(answer)
        assert analysis is not None
        return FitAnswer(
            baseline=self.side(bare, before, self.need_baseline),
            planned=self.side(answer, best, self.need_planned),
            plan=best.plan,
            analysis=analysis,
        )
