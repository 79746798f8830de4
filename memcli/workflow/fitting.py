"""The largest batch that trains in a given memory, without a plan and with one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memcli.engines.analysis import Analysis, ShapeRequest
from memcli.errors import AnswerIsNo
from memcli.formats.mxnet_symbol import SymbolFile
from memcli.graph.training import Plan, TrainingGraph
from memcli.memory.bounds import plan_bound
from memcli.memory.mxnet_model import DEFAULT_MATCH_RANGE, Cost
from memcli.memory.stages import stages
from memcli.planners.base import MATCH_RANGES, Settings
from memcli.planners.registry import search_plan
from memcli.units import format_size
from memcli.workflow.batches import Batches, transferred
from memcli.workflow.planning import (
    Planned,
    check_output,
    environment_of,
    read_symbol,
    shape_notes,
    unplanned,
    write_plan,
)
from memcli.workflow.variants import Edits, Variant, edits_of, exact_parts

Progress = Callable[[str, float | None], None]

# Copies of the parameters, in float32, that an optimizer keeps beside parameters and gradients.
OPTIMIZERS = {"sgd": 0, "momentum": 1, "adam": 2}

_LARGEST_BATCH = 1 << 31
# How often a plan is searched for again at the first batch that did not fit.
_ROUNDS = 6
# With this part of the pool or more to spare, a plan with less recomputation is searched for.
_SPARE = 0.02


@dataclass
class Breakdown:
    """Where the memory of a training step goes. Bytes."""

    parameters: int
    gradients: int  # of the parameters
    optimizer: int
    states: int  # auxiliary states: moving statistics and the like
    inputs: int  # labels included
    input_gradients: int
    pool: int  # feature maps and their gradients

    @property
    def total(self) -> int:
        """The sum of all."""
        return sum(dataclasses.astuple(self))


@dataclass
class Side:
    """The largest batch, with or without a plan.

    Where not even batch 1 fits, ``batch`` is 0 and the figures are those of batch 1.
    """

    batch: int
    breakdown: Breakdown
    cost: Cost
    next_bytes: int | None  # what one more needs; None where MXNet refuses it
    next_problem: str  # and why

    @property
    def fits(self) -> bool:
        """Whether there is such a batch."""
        return self.batch > 0


@dataclass
class Fitted:
    """The answer. Sizes in bytes, ``seconds`` for everything."""

    source: SymbolFile
    sha256: str  # of the graph without any plan
    memory: int  # as given
    reserve: int
    optimizer: str
    strategy: str  # as asked for
    unplanned: Side
    planned: Side
    analysis: Analysis  # at the planned batch
    variant: Variant  # what the plan is for, at that batch
    plan: Plan
    environment: dict[str, str]
    notes: list[str]
    searches: int  # plans searched for
    batches: int  # batches that MXNet was asked about
    seconds: float
    output: str | None = None

    @property
    def available(self) -> int:
        """What the step may take."""
        return self.memory - self.reserve

    @property
    def ratio(self) -> float | None:
        """Planned batch over unplanned batch; None where nothing fits unplanned."""
        return self.planned.batch / self.unplanned.batch if self.unplanned.batch else None


def breakdown(analysis: Analysis, pool_bytes: int, optimizer: str) -> Breakdown:
    """What a training step takes beside its pool, as the engine binds it.

    Every argument has a gradient, the inputs included. The optimizer's copies are in float32
    whatever the parameters are.
    """
    parameters = [a for a in analysis.arguments if a["role"] == "parameter"]
    elements = 0
    for argument in parameters:
        size = 1
        for d in argument["shape"]:
            size *= d
        elements += size
    inputs = sum(a["bytes"] for a in analysis.arguments if a["role"] != "parameter")
    return Breakdown(
        parameters=analysis.parameter_bytes,
        gradients=analysis.parameter_bytes,
        optimizer=OPTIMIZERS[optimizer] * 4 * elements,
        states=analysis.state_bytes,
        inputs=inputs,
        input_gradients=inputs,
        pool=pool_bytes,
    )


def largest(
    need: Callable[[int], int | None],
    available: int,
    *,
    seen: Iterable[int] = (),
    guess: int | None = None,
) -> int:
    """A batch that fits with the next one that does not; 0 where batch 1 does not fit.

    ``need``: bytes of a batch, None where it cannot be had. ``seen``: batches that cost little to
    look at. ``guess``: where to begin beyond them, by default where they point to.

    The steps double, or go where the line through what is known points to, then halve the rest.
    The returned batch was seen to fit and the next one seen not to, so the answer does not rest
    on memory growing with the batch. Where it does not grow (a greedy pool may need less for a
    larger batch), a still larger batch that fits is not ruled out.
    """
    known: dict[int, int | None] = {}

    def fits(batch: int) -> bool:
        if batch not in known:
            known[batch] = need(batch)
        size = known[batch]
        return size is not None and size <= available

    low = max((batch for batch in seen if fits(batch)), default=0)
    high = min((batch for batch in known if batch > low), default=_LARGEST_BATCH + 1)
    turn = 0
    while high - low > 1:
        trial = _next_trial(known, low, high, available, turn)
        if turn == 0 and guess is not None:
            trial = guess
        trial = min(max(trial, low + 1), high - 1)
        if fits(trial):
            low = trial
        else:
            high = trial
        turn += 1
    return low


def _next_trial(
    known: dict[int, int | None], low: int, high: int, available: int, turn: int
) -> int:
    """Where the line through what is known meets the memory; the middle where that is no help."""
    bounded = high <= _LARGEST_BATCH
    middle = (low + high) // 2 if bounded else max(2 * low, 1)
    sized = {batch: size for batch, size in known.items() if size is not None}
    if len(sized) < 2 or (turn > 5 and turn % 2):
        # on a curve the line alone may close in from one side, a step at a time
        return middle
    near = min(sized, key=lambda batch: abs(sized[batch] - available))
    # of two neighbours the rounding of blocks would tell more than the batch
    apart = [batch for batch in sized if abs(batch - near) > near // 8]
    other = min(
        apart or [batch for batch in sized if batch != near],
        key=lambda batch: abs(sized[batch] - available),
    )
    slope = (sized[other] - sized[near]) / (other - near)
    if slope <= 0:
        return middle
    target = int(near + (available - sized[near]) / slope)
    if bounded and target >= high and high not in sized:
        # the line says nothing of where batches begin to be refused: is it here, or where?
        return middle if turn % 2 else high - 1
    return target if bounded else min(target, 64 * max(low, 1))


@dataclass
class _Candidate:
    """A plan, and the graph that it was searched for on."""

    plan: Plan
    graph: TrainingGraph


@dataclass
class _Evaluated:
    """A plan at a batch."""

    plan: Plan
    cost: Cost
    breakdown: Breakdown


class _Fit:
    """The search itself."""

    def __init__(
        self,
        batches: Batches,
        rewritten: Batches,
        strategy: str,
        settings: Settings,
        optimizer: str,
        available: int,
    ) -> None:
        self.batches = batches
        self.rewritten = rewritten  # the graph that plans are made for
        self.portable = False  # see MXNetModel.portable
        self.strategy = strategy
        self.settings = settings
        self.optimizer = optimizer
        self.available = available
        self.candidates: list[_Candidate] = []
        self.searches = 0

    def unplanned_at(self, batch: int) -> _Evaluated | None:
        """A batch as saved."""
        analysis = self.batches.at(batch)
        if analysis is None:
            return None
        flags = analysis.model.none()
        return self._evaluated(analysis, Plan("none", flags), (DEFAULT_MATCH_RANGE,))

    def _evaluated(self, analysis: Analysis, plan: Plan, ranges: tuple[int, ...]) -> _Evaluated:
        cost = analysis.model.evaluate(plan.recompute, ranges)
        plan = dataclasses.replace(plan, match_range=cost.match_range)
        return _Evaluated(plan, cost, breakdown(analysis, cost.pool_bytes, self.optimizer))

    def all_at(self, batch: int) -> list[_Evaluated]:
        """Every plan found so far, and the graph as saved, at a batch; [] where it is refused."""
        analysis = self.rewritten.at(batch)
        if analysis is None:
            return []
        nothing = Plan("none", analysis.model.none())
        found = [self._evaluated(analysis, nothing, (DEFAULT_MATCH_RANGE,))]
        limit = self.settings.max_recompute
        for candidate in self.candidates:
            plan = transferred(candidate.plan, candidate.graph, analysis.graph, analysis.model)
            choices: list[tuple[int, ...]] = [(DEFAULT_MATCH_RANGE,)]
            if self.settings.environment != "default":
                choices.append(MATCH_RANGES)
            for ranges in choices:
                one = self._evaluated(analysis, plan, ranges)
                if limit is None or one.cost.recompute_fraction <= limit + 1e-12:
                    found.append(one)
        return found

    def need_unplanned(self, batch: int) -> int | None:
        """Bytes of a batch as saved."""
        one = self.unplanned_at(batch)
        return None if one is None else one.breakdown.total

    def need_planned(self, batch: int) -> int | None:
        """Bytes of a batch under the plan that needs the least there."""
        return min((one.breakdown.total for one in self.all_at(batch)), default=None)

    def best_at(self, batch: int) -> _Evaluated:
        """What fits with the least recomputation, without a variable where that is the same."""

        def key(one: _Evaluated) -> tuple[float, ...]:
            over = max(0, one.breakdown.total - self.available)
            set_variable = one.plan.match_range != DEFAULT_MATCH_RANGE
            return (over, one.cost.recompute_flops, set_variable, one.breakdown.total)

        return min(self.all_at(batch), key=key)

    def search_at(self, batch: int, budget: int | None = None) -> None:
        """Search for a plan at a batch; ``budget`` in bytes of its pool."""
        analysis = self.rewritten.at(batch)
        assert analysis is not None
        analysis.model.portable = self.portable
        settings = dataclasses.replace(self.settings, budget=budget)
        report = self.settings.on_progress
        if report:
            settings.on_progress = lambda text, part=None: report(f"plan at batch {batch:,}", part)
        found, _ = search_plan(analysis.graph, analysis.model, self.strategy, settings)
        self.searches += 1
        self.candidates.append(_Candidate(found.plan, analysis.graph))

    def plan(self, unplanned_batch: int) -> int:
        """The largest batch under plans that are searched for where the answer may be.

        First at the largest batch as saved. Then, as long as that helps, at the first batch that
        did not fit. Last, where there is memory to spare, for less recomputation.
        """
        start = max(unplanned_batch, 1)
        self.search_at(start)
        need, fixed = self.need_planned(start) or 0, self.fixed(start)
        guess = int(start * (self.available - fixed) / max(1, need - fixed))
        answer = self.largest_planned(guess)
        for _ in range(_ROUNDS):
            if self.rewritten.at(answer + 1) is None:
                break
            self.search_at(answer + 1)
            further = self.largest_planned()
            if further <= answer:
                break
            answer = further
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
        one = breakdown(analysis, 0, self.optimizer)
        return one.total - one.inputs - one.input_gradients

    def side(self, batch: int, one: _Evaluated, need: Callable[[int], int | None]) -> Side:
        """The figures of an answer, and what one more would need."""
        more = need(batch + 1)
        problem = "" if more is not None else self.batches.refused.get(batch + 1, "")
        return Side(batch, one.breakdown, one.cost, more, problem)


def fit(
    model: str,
    request: ShapeRequest,
    memory: int,
    settings: Settings,
    *,
    strategy: str = "auto",
    optimizer: str = "sgd",
    reserve: int = 0,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Fitted:
    """The largest batch that trains in ``memory`` bytes, and with ``out`` its planned graph.

    Counted are parameters, their gradients, the optimizer's copies, auxiliary states, inputs and
    their gradients, and the pool; not what the engine and its libraries take for themselves
    (context, workspaces, rounding of blocks), for which ``reserve`` bytes are left free. The time
    limit of ``settings`` is of each search for a plan.

    Each batch that is looked at is bound by MXNet itself. The unplanned answer was seen to fit and
    the next batch seen not to. The planned answer was seen to fit under the plan that is returned,
    and the next batch seen not to fit under any plan that was found, one that was searched for at
    that very batch among them (unless ``_ROUNDS`` such searches in a row went further). That no
    plan at all, or no larger batch, fits is not proven: pools are allocated greedily.

    Raises:
        BadInput: bad file, shapes or output, or a graph whose batch cannot be changed.
        AnswerIsNo: not even batch 1 fits.
        EngineFailed: MXNet is missing or crashed.
    """
    check_output(model, out, force)
    started = time.monotonic()
    notes: list[str] = []
    given = read_symbol(model)
    earlier = given.plan()
    original = (
        (earlier.original_name, earlier.original_sha256) if earlier else (given.name, given.sha256)
    )
    source = unplanned(given, notes)
    batches = Batches(source, request, on_progress)
    notes += shape_notes(batches.first)
    available = memory - reserve
    settings = dataclasses.replace(settings, on_progress=on_progress)
    edits = edits_of(source, batches.first) if settings.rewrite else Edits()
    rewritten = batches
    if edits:
        changed = source.with_content(edits.applied(source.raw))
        other = Batches(changed, request, on_progress)
        if exact_parts(edits, source, batches.first, other.first) == edits:
            rewritten = other
    search = _Fit(batches, rewritten, strategy, settings, optimizer, available)
    search.portable = rewritten is not batches and bool(edits.concats)

    bare = largest(search.need_unplanned, available, seen=batches.cheap())
    if not bare and batches.at(1) is None:
        raise AnswerIsNo(
            f"no batch fits {format_size(available)}, and MXNet refuses batch 1: "
            f"{batches.refused[1]}"
        )
    answer = search.plan(bare)
    best = search.best_at(max(answer, 1))
    before = search.unplanned_at(max(bare, 1))
    assert before is not None
    if not answer:
        rest = best.breakdown.total - best.breakdown.pool
        raise AnswerIsNo(
            f"not even batch 1 fits {format_size(available)}: it needs "
            f"{format_size(best.breakdown.total)} planned, {format_size(before.breakdown.total)} "
            "as saved",
            f"of the planned, {format_size(rest)} are parameters, gradients, optimizer, states "
            f"and inputs, and {format_size(best.breakdown.pool)} feature maps",
        )
    analysis = rewritten.at(answer)
    assert analysis is not None
    fitted = Fitted(
        source=source,
        sha256=original[1],
        memory=memory,
        reserve=reserve,
        optimizer=optimizer,
        strategy=strategy,
        unplanned=search.side(bare, before, search.need_unplanned),
        planned=search.side(answer, best, search.need_planned),
        analysis=analysis,
        variant=Variant(rewritten.source, analysis, edits.names if edits else []),
        plan=best.plan,
        environment=environment_of(best.plan, analysis),
        notes=notes,
        searches=search.searches,
        batches=len(batches.analyses) + len(batches.refused),
        seconds=time.monotonic() - started,
    )
    if out is not None:
        write_plan(_as_planned(fitted, original), out, force)
        fitted.output = out
    fitted.seconds = time.monotonic() - started
    return fitted


def _as_planned(fitted: Fitted, original: tuple[str, str]) -> Planned:
    """The plan at the batch that was found, as ``plan`` would have made it."""
    analysis = fitted.analysis
    model = analysis.model
    baseline = model.evaluate(model.none())
    listed, timeline, _ = stages(model, fitted.plan)
    bare = model.timeline(model.none())
    return Planned(
        source=fitted.source,
        original=original,
        analysis=analysis,
        variant=fitted.variant,
        strategy=fitted.strategy,
        cost_of="flops",
        plan=fitted.plan,
        baseline=baseline,
        cost=fitted.planned.cost,
        lower_bound=plan_bound(analysis.graph, model, fitted.planned.cost),
        baseline_allocated=int(bare.touched_bytes[-1]),
        allocated=int(timeline.touched_bytes[-1]),
        stages=listed,
        environment=fitted.environment,
        notes=fitted.notes,
        evaluated=fitted.searches,
        seconds=fitted.seconds,
    )
