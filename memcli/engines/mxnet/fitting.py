"""The largest batch of a symbol that MXNet trains in a given memory."""

from __future__ import annotations

from memcli.choices import OPTIMIZERS
from memcli.engines.costs import Costs
from memcli.engines.fit_search import Candidate, Finished, FitAnswer, FitSearch
from memcli.engines.mxnet.batches import Batches, transferred
from memcli.engines.mxnet.bit_check import may_change_layouts
from memcli.engines.mxnet.forms import Form, changes_for, exact_parts, with_one_more
from memcli.engines.mxnet.memory.bounds import reported_bound
from memcli.engines.mxnet.memory.model import MATCH_RANGES, MXNetModel
from memcli.engines.mxnet.planning import (
    as_planned,
    environment_of,
    kernels_of,
    onednn_problem,
    original_of,
    shape_notes,
    without_earlier_plan,
    write_plan,
)
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.reserving import allow_reservation, with_reserved_blocks
from memcli.engines.mxnet.rewrites.changes import Changes
from memcli.errors import AnswerIsNo, BadInput
from memcli.formats.symbol.file import SymbolFile
from memcli.graph.cost import Found
from memcli.graph.training import Plan
from memcli.request import Progress, ShapeRequest
from memcli.results.fitted import Fitted
from memcli.results.step_total import Breakdown
from memcli.search.base import Settings
from memcli.search.over_forms import most_promising, search_plan
from memcli.search.registry import AS_PUBLISHED


def breakdown(analysis: Analysis, pool_bytes: int, optimizer: str) -> Breakdown:
    """What a training step takes beside its pool, as the engine binds it.

    Every argument has a gradient, the inputs included, but where parameters are frozen: these and
    the inputs then have none. The optimizer's copies are in float32 whatever the parameters are.
    """
    trained = [
        a
        for a in analysis.arguments
        if a["role"] == "parameter" and (not analysis.frozen or a["gradient"])
    ]
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


class MXNetFit(FitSearch[Analysis]):
    """The search on MXNet's pool; each batch is bound by MXNet itself."""

    def __init__(
        self,
        given: SymbolFile,
        request: ShapeRequest,
        settings: Settings,
        available: int,
        *,
        strategy: str,
        optimizer: str,
        device: str,
        on_progress: Progress | None,
    ) -> None:
        """Bind the graph as it comes and at another batch, with the rewrites that it profits from.

        ``device``: ``cpu`` or ``gpu:N``, where operators are timed if ``settings.cost`` says so.
        """
        notes: list[str] = []
        source = without_earlier_plan(given, notes)
        batches = Batches(source, request, on_progress)
        notes += shape_notes(batches.first)
        self.rewrite = settings.rewrite and strategy not in AS_PUBLISHED
        changes = _changes(source, batches.first, strategy, settings) if self.rewrite else Changes()
        rewritten = batches
        if changes:
            changed = source.with_content(changes.applied(source.raw))
            other = Batches(changed, request, on_progress)
            if exact_parts(changes, source, changed, batches.first, other.first) == changes:
                rewritten = other
        super().__init__(
            batches, rewritten, settings, available, Costs(settings.cost, device, on_progress)
        )
        self.names = changes.names if rewritten is not batches else []
        self.strategy = strategy
        self.optimizer = optimizer
        self.symbol = self.source = source
        self.form = rewritten.source
        self.original = original_of(given)
        self.notes = notes

    def breakdown(self, analysis: Analysis, pool_bytes: int) -> Breakdown:
        """See :func:`breakdown`."""
        return breakdown(analysis, pool_bytes, self.optimizer)

    def match_ranges(self) -> list[tuple[int, ...]]:
        """The default one, and all that there are where the plan may name one."""
        own = super().match_ranges()
        return own if self.settings.environment == "default" else [*own, MATCH_RANGES]

    def transferred(self, candidate: Candidate[Analysis], analysis: Analysis) -> Plan:
        """By node; see :func:`memcli.engines.mxnet.batches.transferred`."""
        if len(candidate.plan.reserved):
            allow_reservation(analysis)
        return transferred(candidate.plan, candidate.analysis.graph, analysis.graph, analysis.model)

    def found(self, analysis: Analysis, settings: Settings) -> Plan:
        """A plan of the strategy that was asked for."""
        analysis.model.portable = self.settings.kernels == "plain"
        allow_reservation(analysis)
        return search_plan(analysis.search_space(), self.strategy, settings)[0].plan

    def finished(self, answer: FitAnswer[Analysis]) -> Finished:
        """See :meth:`FitSearch.finished`."""
        form = Form(self.form, answer.analysis, self.names)
        found = Found(answer.plan, answer.planned.cost)
        parts = answer.planned.breakdown
        if self.rewrite:
            form, found = with_reserved_blocks(form, found)
            parts = self.breakdown(form.analysis, found.cost.pool_bytes)
        original = self.batches.at(answer.planned.batch) or answer.analysis
        kernels = kernels_of(found.plan, form.analysis)
        environment = self.settings.environment
        if may_change_layouts(form.analysis, environment, kernels) and (
            problem := onednn_problem(
                self.symbol, original, form, found.plan, self.settings.on_progress
            )
        ):
            raise AnswerIsNo(
                f"with oneDNN, MXNet's default on CPUs, the plan changes bits: {problem}",
                "plan for MXNet's plain kernels: --environment best --kernels plain",
            )
        return Finished(
            plan=found.plan,
            cost=found.cost,
            breakdown=parts,
            analysis=original,
            operator_count=self.symbol.operator_count,
            form=form,
            environment=environment_of(found.plan, form.analysis, environment, kernels),
            notes=self.costs.notes,
        )

    def write(self, fitted: Fitted, out: str, force: bool) -> None:
        """See :meth:`FitSearch.write`."""
        original, form = fitted.analysis, fitted.form
        unreserved = form.analysis.graph.without_reserved_blocks()
        cost = fitted.planned.cost
        planned = as_planned(
            form,
            reported_bound([(unreserved, MXNetModel(unreserved))], cost.pool_bytes),
            self.settings.environment,
            source=fitted.source,
            original=self.original,
            engine="mxnet",
            analysis=original,
            operator_count=fitted.operator_count,
            strategy=fitted.strategy,
            cost_of=fitted.cost_of,
            plan=fitted.plan,
            baseline=original.model.evaluate(original.model.none()),
            cost=cost,
            notes=fitted.notes,
            evaluated=fitted.searches,
            seconds=fitted.seconds,
        )
        write_plan(planned, out, force)


def _changes(source: SymbolFile, first: Analysis, strategy: str, settings: Settings) -> Changes:
    """The rewrites to plan under at all batches: of several, those that promise most at the first.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    changes = changes_for(source, first, settings.environment, settings.kernels)
    forms, analyses = [changes], [first]
    for form in with_one_more(source, first, changes):
        changed = source.with_content(form.applied(source.raw))
        try:
            after = analyze(changed.raw, first.request())
        except BadInput:
            continue
        if exact_parts(form, source, changed, first, after) == form:
            forms.append(form)
            analyses.append(after)
    if len(forms) == 1:
        return changes
    if changes:
        analyses[0] = analyze(changes.applied(source.raw), first.request())
    for analysis in analyses:
        allow_reservation(analysis)
    spaces = [analysis.search_space() for analysis in analyses]
    return forms[most_promising(spaces, strategy, settings)]
