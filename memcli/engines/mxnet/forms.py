"""The forms of a network that a plan may be made on: the graph as it came, and rewritten.

What rewrites there are, and where each applies, is theirs to know
(:mod:`memcli.engines.mxnet.rewrites`). Here they are combined: which forms are analyzed, each once,
and which of them are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import TypeVar

import numpy as np

from memcli.engines.mxnet.record import SUM_CAP, Analysis, analyze
from memcli.engines.mxnet.rewrites import registry
from memcli.engines.mxnet.rewrites.base import RewriteConditions
from memcli.engines.mxnet.rewrites.changes import Changes, find_changes, other_changes
from memcli.engines.mxnet.rewrites.exactness import LEAST_CHAIN, adds_early_exactly
from memcli.engines.mxnet.rewrites.positions import positions_of
from memcli.engines.mxnet.rewrites.save_barriers import barrier_positions
from memcli.engines.mxnet.time_shares import UNLIMITED, TimeShares
from memcli.errors import BadInput
from memcli.formats.symbol.file import SymbolFile
from memcli.graph.training import Flags, Plan
from memcli.request import Progress, ShapeRequest

T = TypeVar("T")

# Graphs of so many nodes are analyzed with guessed rewrites at the same time as without any.
_LARGE = 20_000
# Rewrites that turn out not to be exact are given up, and the rest analyzed again, so often.
_ATTEMPTS = 3


@dataclass
class Form:
    """A form of a network to plan: what marks and save barriers go into, and how MXNet trains it.

    Args:
        source: its symbol.
        analysis: MXNet's of that symbol.
        rewrites: what was done to the graph as it came, for people.
        without_variables: the same graph without the variables of ``analysis.environment``; None
            where it names none.
    """

    source: SymbolFile
    analysis: Analysis
    rewrites: list[str] = field(default_factory=list)
    without_variables: Analysis | None = None


def changes_for(
    source: SymbolFile, analysis: Analysis, environment: str, kernels: str = "plain"
) -> Changes:
    """The rewrites that a symbol profits from.

    Args:
        source: the symbol without a plan.
        analysis: MXNet's of that symbol.
        environment: ``best`` or ``default``, see :class:`memcli.search.base.Settings`.
        kernels: ``plain`` or ``any``, see there.
    """
    conditions = RewriteConditions(environment, kernels)
    return find_changes(source.raw, analysis, conditions, registry.REWRITES)


def with_one_more(source: SymbolFile, analysis: Analysis, changes: Changes) -> list[Changes]:
    """The changes with one rewrite more, of those that only a search shows to pay."""
    rewrites = registry.REWRITES
    missing = [rewrite for rewrite in rewrites if changes.found_by(rewrite) is None]
    return other_changes(
        source.raw, analysis, RewriteConditions(), changes, rewrites, among=missing
    )


def exact_parts(
    changes: Changes, source: SymbolFile, changed: SymbolFile, before: Analysis, after: Analysis
) -> Changes:
    """The rewrites that leave every sum of gradients as it was.

    Args:
        changes: what makes ``changed`` of ``source``.
        source: the symbol without them.
        changed: the symbol with all of them.
        before: analysis of ``source``.
        after: analysis of ``changed``.
    """
    return changes.exact(source.raw, changed.raw, before, after)


def analyze_forms(
    source: SymbolFile,
    request: ShapeRequest,
    *,
    rewrite: bool,
    environment: str = "default",
    kernels: str = "plain",
    original: Analysis | None = None,
    shares: TimeShares = UNLIMITED,
    on_progress: Progress | None = None,
) -> list[Form]:
    """The forms of a network to search on, each analyzed by MXNet once; the first is as it came.

    Args:
        source: the symbol without a plan.
        request: shapes and types.
        rewrite: whether there may be other forms than the first.
        environment: ``best`` where plans may name a variable to train with, else ``default``.
        kernels: ``plain`` where MXNet's own kernels must run every plan, else ``any``.
        original: the analysis of the symbol itself, where there is one already.
        shares: forms that there is no time for are left out.
        on_progress: told what is being done.

    Raises:
        BadInput: MXNet refuses the graph or its shapes.
        EngineFailed: MXNet is missing or crashed.
    """
    conditions = RewriteConditions(environment, kernels)
    found = _rewritten_variants(source, request, rewrite, conditions, original, shares, on_progress)
    if environment == "best":
        first, *rewritten = found
        early = _side_by_side(partial(_adding_early, shares), rewritten or found, on_progress)
        if rewritten:
            rewritten = [e or form for e, form in zip(early, rewritten, strict=True)]
        else:
            rewritten = list(filter(None, early))
        found = [first, *rewritten]
    for form in found:
        for analysis in filter(None, (form.analysis, form.without_variables)):
            analysis.model.portable = kernels == "plain"
    return found


def _adding_early(shares: TimeShares, form: Form, on_progress: Progress | None) -> Form | None:
    """The form with sums of gradients added one by one.

    None where that changes nothing, or would change bits.
    """
    before = form.analysis
    if not adds_early_exactly(before.graph) or not shares.for_form():
        return None
    now = before.request()
    try:
        early = analyze(
            form.source.raw,
            now,
            environment={SUM_CAP: str(LEAST_CHAIN)},
            on_progress=on_progress,
        )
    except BadInput:
        return None
    # what the user was told of the shapes holds for this analysis, too
    early.assumed = list(before.assumed)
    return Form(form.source, early, form.rewrites, without_variables=before)


def _rewritten_variants(
    source: SymbolFile,
    request: ShapeRequest,
    rewrite: bool,
    conditions: RewriteConditions,
    original: Analysis | None,
    shares: TimeShares,
    on_progress: Progress | None,
) -> list[Form]:
    """The forms under MXNet's default variables.

    A large graph is analyzed with what rewrites guess at the same time as without, unless it was
    analyzed before.
    """
    rewrites = registry.REWRITES
    guessed = Changes()
    if original is None and rewrite and source.node_count >= _LARGE:
        guessed = find_changes(source.raw, None, conditions, rewrites)
    if not any(part.rewrite.guesses for part in guessed.parts):
        analysis = original or analyze(source.raw, request, on_progress=on_progress)
        if not rewrite:
            return [Form(source, analysis)]
        return _forms(source, analysis, conditions, shares, on_progress)
    changed = source.with_content(guessed.applied(source.raw))
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(analyze, changed.raw, request)
        analysis = analyze(source.raw, request, on_progress=on_progress)
        try:
            after: Analysis | None = beside.result()
        except BadInput:
            after = None
    found = [Form(source, analysis)]
    if after is None or not find_changes(source.raw, analysis, conditions, rewrites):
        return found
    if exact_parts(guessed, source, changed, analysis, after) == guessed:
        return [*found, Form(changed, after, guessed.names)]
    return _forms(source, analysis, conditions, UNLIMITED, on_progress)


def _forms(
    source: SymbolFile,
    analysis: Analysis,
    conditions: RewriteConditions,
    shares: TimeShares,
    on_progress: Progress | None,
) -> list[Form]:
    """The graph as it came, with all rewrites, and with each made in its other ways.

    Which takes the least memory, only the search shows.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    found = [Form(source, analysis)]
    if not shares.for_form():
        return found
    rewrites = registry.REWRITES
    changes = find_changes(source.raw, analysis, conditions, rewrites)
    wanted = [changes, *other_changes(source.raw, analysis, conditions, changes, rewrites)]
    wanted = [form for k, form in enumerate(wanted) if form not in wanted[:k]]
    exact_form = _ExactForms(source, analysis, shares).find
    for form in _side_by_side(exact_form, wanted, on_progress):
        if form is not None and all(form.source.raw != other.source.raw for other in found):
            found.append(form)
    return found


class _ExactForms:
    """Exact forms of one graph; each form is analyzed once, whoever asks for it."""

    def __init__(self, source: SymbolFile, analysis: Analysis, shares: TimeShares) -> None:
        self._source = source
        self._analysis = analysis
        self._shares = shares
        self._asked: list[tuple[Changes, Future[Form | None]]] = []
        self._lock = Lock()

    def find(self, changes: Changes, on_progress: Progress | None) -> Form | None:
        """The graph with those of the rewrites that are exact; None without any, or without time.

        Raises:
            EngineFailed: MXNet is missing or crashed.
        """
        for _ in range(_ATTEMPTS):
            if not changes or not self._shares.for_form():
                break
            form = self._analyzed(changes, on_progress)
            if form is None:
                break
            exact = exact_parts(changes, self._source, form.source, self._analysis, form.analysis)
            if exact == changes:
                return form
            changes = exact
        return None

    def _analyzed(self, changes: Changes, on_progress: Progress | None) -> Form | None:
        """The graph with all of the rewrites; None where MXNet refuses it."""
        mine: Future[Form | None] = Future()
        with self._lock:
            others = (answer for asked, answer in self._asked if asked == changes)
            answer = next(others, mine)
            if answer is mine:
                self._asked.append((changes, mine))
        if answer is mine:
            try:
                mine.set_result(self._analyze(changes, on_progress))
            except BaseException as error:
                mine.set_exception(error)
                raise
        return answer.result()

    def _analyze(self, changes: Changes, on_progress: Progress | None) -> Form | None:
        changed = self._source.with_content(changes.applied(self._source.raw))
        request = self._analysis.request()
        try:
            after = analyze(changed.raw, request, on_progress=on_progress)
        except BadInput:
            # MXNet refuses what it takes as it came (a shape that only the old edges told)
            return None
        return Form(changed, after, changes.names)


def _side_by_side(
    job: Callable[[T, Progress | None], Form | None],
    given: Sequence[T],
    on_progress: Progress | None,
) -> list[Form | None]:
    """The job for each, at the same time: MXNet's processes take most of it.

    Progress is the first one's.
    """
    first, *others = given
    with ThreadPoolExecutor(2) as pool:
        beside = [pool.submit(job, one, None) for one in others]
        return [job(first, on_progress), *(future.result() for future in beside)]


def carried_over(before: Analysis, after: Analysis, moved: Mapping[int, int], plan: Plan) -> Plan:
    """A plan of one form of a network for another that has all of its nodes, and more.

    Args:
        before: the form that the plan is for.
        after: the other form; takes over what operators cost, what was assumed and which plans are
            made.
        moved: the new position of each old one.
        plan: the plan.
    """
    now, old = after.graph.node_of_position(), before.graph.node_of_position()
    n_file = len(before.graph.file_names)
    to = {v: now[moved[p]] for p, v in old.items() if p < n_file and moved[p] in now}
    marks = np.zeros(after.graph.n_forward, np.uint8)
    seconds = np.zeros(after.graph.n_forward)
    for v, w in to.items():
        marks[w], seconds[w] = plan.recompute[v], before.model.seconds[v]
    after.model.set_seconds(seconds)
    after.model.portable = before.model.portable
    after.assumed = list(before.assumed)
    cuts = [[to[v] for v in cut if v in to] for cut in plan.cuts]
    return replace(plan, recompute=marks, cuts=[cut for cut in cuts if cut])


def with_barriers(form: Form, flags: Flags) -> tuple[SymbolFile, dict[int, int]]:
    """The form's file with a plan's save barriers, and the new position of each old one."""
    positions = barrier_positions(form.analysis.graph, flags)
    if not positions:
        return form.source, {p: p for p in range(form.source.node_count)}
    raw, moved = registry.SAVE_BARRIERS.apply(form.source.raw, positions)
    return form.source.with_content(raw), moved


def marked_positions(analysis: Analysis, flags: Flags) -> set[int]:
    """Places in the file of the nodes to mark; merged nodes alike, so that they merge again."""
    return positions_of(analysis.graph, flags)


# What fitting calls the above.
