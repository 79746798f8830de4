"""The largest batch that trains in a given memory, without a plan and with one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from memcli.engines.analysis import Analysis, ShapeRequest, analyze
from memcli.engines.torch_analysis import TorchAnalysis
from memcli.errors import AnswerIsNo, BadInput
from memcli.formats.detect import Model
from memcli.formats.mxnet_symbol import SymbolFile
from memcli.formats.onnx_file import OnnxFile
from memcli.formats.output import check_output
from memcli.graph.training import Plan
from memcli.memory.bounds import plan_bound
from memcli.memory.mxnet_model import MATCH_RANGES, MXNetModel
from memcli.memory.runtime import Reserve, reserve_or_default
from memcli.memory.stages import stages
from memcli.planners.base import Found, Settings
from memcli.planners.over_forms import most_promising, search_plan
from memcli.planners.registry import AS_PUBLISHED
from memcli.units import distinct_sizes
from memcli.workflow.batches import Batches, transferred
from memcli.workflow.bit_check import may_change_layouts
from memcli.workflow.costs import Costs
from memcli.workflow.fit_search import OPTIMIZERS, Breakdown, Candidate, FitSearch, Side
from memcli.workflow.planning import (
    Planned,
    environment_of,
    kernels_of,
    onednn_problem,
    read_symbol,
    shape_notes,
    unplanned,
    write_plan,
)
from memcli.workflow.reserving import allow_reservation, with_reserved_blocks
from memcli.workflow.variants import Edits, Variant, edits_of, exact_parts, with_splits

Progress = Callable[[str, float | None], None]


@dataclass
class Fitted:
    """The answer. Sizes in bytes, ``seconds`` for everything."""

    source: SymbolFile | OnnxFile
    sha256: str  # of the graph without any plan
    memory: int  # as given
    reserve: int
    optimizer: str
    strategy: str  # as asked for
    unplanned: Side
    planned: Side
    analysis: Analysis | TorchAnalysis  # at the planned batch
    variant: Variant | None  # what the plan is for, at that batch; of an ONNX file the file itself
    plan: Plan
    kernels: str  # that run the plan; see Planned.kernels. '' for PyTorch
    environment: dict[str, str]
    notes: list[str]
    searches: int  # plans searched for
    batches: int  # batches that the engine was asked about
    seconds: float
    output: str | None = None
    device: str = ""  # that PyTorch's figures are of: cpu or cuda
    restored: list[str] = field(default_factory=list)  # what --as-training did
    cost_of: str = "roofline"  # what stands for the cost of an operator: see Settings.cost
    reserve_assumed: str = ""  # what the reserve is for, where it was not given

    @property
    def available(self) -> int:
        """What the step may take."""
        return self.memory - self.reserve

    @property
    def ratio(self) -> float | None:
        """Planned batch over unplanned batch; None where nothing fits unplanned."""
        return self.planned.batch / self.unplanned.batch if self.unplanned.batch else None


def room(memory: int, kept: Reserve) -> int:
    """Bytes that a step may take.

    Raises:
        AnswerIsNo: the engine alone is assumed to take everything.
    """
    if kept.bytes < memory:
        return memory - kept.bytes
    have, most = distinct_sizes(memory, kept.bytes)
    raise AnswerIsNo(
        f"nothing fits {have}: {most} are assumed to be taken before training ({kept.assumed})",
        "--reserve SIZE says what is; --reserve 0 counts none of it",
    )


def breakdown(analysis: Analysis, pool_bytes: int, optimizer: str) -> Breakdown:
    """What a training step takes beside its pool, as the engine binds it.

    Every argument has a gradient, the inputs included, but where parameters are frozen: these and
    the inputs then have none. The optimizer's copies are in float32 whatever the parameters are.
    """
    trained = [
        a for a in analysis.arguments
        if a["role"] == "parameter" and (not analysis.frozen or a["gradient"])
    ]  # fmt: skip
    elements = 0
    for argument in trained:
        size = 1
        for d in argument["shape"]:
            size *= d
        elements += size
    inputs = sum(a["bytes"] for a in analysis.arguments if a["role"] != "parameter")
    return Breakdown(
        parameters=analysis.parameter_bytes,
        gradients=analysis.parameter_gradient_bytes,
        optimizer=OPTIMIZERS[optimizer] * 4 * elements,
        states=analysis.state_bytes,
        inputs=inputs,
        input_gradients=0 if analysis.frozen else inputs,
        pool=pool_bytes,
    )


class _Fit(FitSearch[Analysis]):
    """The search on MXNet's pool."""

    def __init__(
        self,
        batches: Batches,
        rewritten: Batches,
        settings: Settings,
        available: int,
        *,
        strategy: str,
        optimizer: str,
        costs: Costs,
    ) -> None:
        super().__init__(batches, rewritten, settings, available, costs)
        self.strategy = strategy
        self.optimizer = optimizer

    def breakdown(self, analysis: Analysis, pool_bytes: int) -> Breakdown:
        """See :func:`breakdown`."""
        return breakdown(analysis, pool_bytes, self.optimizer)

    def match_ranges(self) -> list[tuple[int, ...]]:
        """The default one, and all that there are where the plan may name one."""
        own = super().match_ranges()
        return own if self.settings.environment == "default" else [*own, MATCH_RANGES]

    def transferred(self, candidate: Candidate[Analysis], analysis: Analysis) -> Plan:
        """By node; see :func:`memcli.workflow.batches.transferred`."""
        if len(candidate.plan.reserved):
            allow_reservation(analysis)
        return transferred(candidate.plan, candidate.analysis.graph, analysis.graph, analysis.model)

    def found(self, analysis: Analysis, settings: Settings) -> Plan:
        """A plan of the strategy that was asked for."""
        analysis.model.portable = self.settings.kernels == "plain"
        allow_reservation(analysis)
        return search_plan(analysis.search_space(), self.strategy, settings)[0].plan


def fit(
    model: Model,
    request: ShapeRequest,
    memory: int,
    settings: Settings,
    *,
    strategy: str = "auto",
    optimizer: str = "sgd",
    reserve: int | None = None,
    cpu: bool = False,
    device: str = "cpu",
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Fitted:
    """The largest batch that trains in ``memory`` bytes, and with ``out`` its planned graph.

    Counted are parameters, their gradients, the optimizer's copies, auxiliary states, inputs and
    their gradients, and the pool; not what the engine and its libraries take for themselves
    (context, workspaces, rounding of blocks), for which ``reserve`` bytes are left free, by default
    what :mod:`memcli.memory.runtime` assumes (``cpu``: of the CPU, else of a card). The time limit
    of ``settings`` is of each search for a plan. ``device``: ``cpu`` or ``gpu:N``, where
    operators are timed if ``settings.cost`` says so: at the first batch that a plan is searched for
    at (:class:`memcli.workflow.costs.Costs`).

    Each batch that is looked at is bound by MXNet itself. The unplanned answer was seen to fit and
    the next batch seen not to. The planned answer was seen to fit under the plan that is returned,
    and the next batch seen not to fit under any plan that was found, one that was searched for at
    that very batch among them (unless ``rounds`` such searches in a row went further). That no
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
    kept = reserve_or_default(reserve, "mxnet", cpu=cpu, memory=memory)
    available = room(memory, kept)
    settings = dataclasses.replace(settings, on_progress=on_progress)
    rewrite = settings.rewrite and strategy not in AS_PUBLISHED
    edits = _edits(source, batches.first, strategy, settings) if rewrite else Edits()
    rewritten = batches
    if edits:
        changed = source.with_content(edits.applied(source.raw))
        other = Batches(changed, request, on_progress)
        if exact_parts(edits, source, changed, batches.first, other.first) == edits:
            rewritten = other
    costs = Costs(settings.cost, device, on_progress)
    search = _Fit(
        batches, rewritten, settings, available, strategy=strategy, optimizer=optimizer,
        costs=costs,
    )
    found = search.answer()
    notes += costs.notes
    names = edits.names if rewritten is not batches else []
    variant = Variant(rewritten.source, found.analysis, names)
    if rewrite:
        variant, made = with_reserved_blocks(variant, Found(found.plan, found.planned.cost))
        found.plan = made.plan
        found.planned.cost = made.cost
        found.planned.breakdown = search.breakdown(variant.analysis, made.cost.pool_bytes)
    saved = batches.at(found.planned.batch) or found.analysis
    kernels = kernels_of(found.plan, variant.analysis)
    if may_change_layouts(variant.analysis, settings.environment, kernels) and (
        problem := onednn_problem(source, saved, variant, found.plan, on_progress)
    ):
        raise AnswerIsNo(
            f"with oneDNN, MXNet's default on CPUs, the plan changes bits: {problem}",
            "plan for MXNet's plain kernels: --environment best --kernels plain",
        )
    fitted = Fitted(
        source=source,
        sha256=original[1],
        memory=memory,
        reserve=kept.bytes,
        reserve_assumed=kept.assumed,
        optimizer=optimizer,
        strategy=strategy,
        unplanned=found.unplanned,
        planned=found.planned,
        analysis=saved,
        variant=variant,
        plan=found.plan,
        kernels=kernels,
        environment=environment_of(found.plan, variant.analysis, settings.environment, kernels),
        notes=notes,
        searches=search.searches,
        batches=len(batches.analyses) + len(batches.refused),
        seconds=time.monotonic() - started,
        cost_of=settings.cost,
    )
    if out is not None:
        write_plan(_as_planned(fitted, original), out, force)
        fitted.output = out
    fitted.seconds = time.monotonic() - started
    return fitted


def _edits(source: SymbolFile, first: Analysis, strategy: str, settings: Settings) -> Edits:
    """The rewrites to plan under at all batches: of several, those that promise most at the first.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    edits = edits_of(source, first, settings.environment, settings.kernels)
    forms, analyses = [edits], [first]
    for form in with_splits(source, first, edits):
        changed = source.with_content(form.applied(source.raw))
        try:
            after = analyze(changed.raw, first.request())
        except BadInput:
            continue
        if exact_parts(form, source, changed, first, after) == form:
            forms.append(form)
            analyses.append(after)
    if len(forms) == 1:
        return edits
    if edits:
        analyses[0] = analyze(edits.applied(source.raw), first.request())
    for analysis in analyses:
        allow_reservation(analysis)
    spaces = [analysis.search_space() for analysis in analyses]
    return forms[most_promising(spaces, strategy, settings)]


def _as_planned(fitted: Fitted, original: tuple[str, str]) -> Planned:
    """The plan at the batch that was found, as ``plan`` would have made it."""
    assert fitted.variant is not None and isinstance(fitted.source, SymbolFile)
    assert isinstance(fitted.analysis, Analysis)
    saved, model = fitted.analysis.model, fitted.variant.analysis.model
    listed, timeline, _ = stages(model, fitted.plan)
    bare = saved.timeline(saved.none())
    ground = model.graph.without_reserved_blocks()
    return Planned(
        source=fitted.source,
        original=original,
        analysis=fitted.analysis,
        variant=fitted.variant,
        strategy=fitted.strategy,
        cost_of=fitted.cost_of,
        plan=fitted.plan,
        baseline=saved.evaluate(saved.none()),
        cost=fitted.planned.cost,
        lower_bound=plan_bound(ground, MXNetModel(ground), fitted.planned.cost),
        baseline_allocated=int(bare.touched_bytes[-1]),
        allocated=int(timeline.touched_bytes[-1]),
        stages=listed,
        kernels=fitted.kernels,
        environment=fitted.environment,
        notes=fitted.notes,
        evaluated=fitted.searches,
        seconds=fitted.seconds,
    )
