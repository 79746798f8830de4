"""The graphs that a plan may be made on: the symbol as saved, and rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from memcli.engines.analysis import SUM_CAP, Analysis, analyze
from memcli.errors import BadInput
from memcli.formats.mxnet_symbol import SymbolFile
from memcli.formats.symbol_edits import (
    Join,
    Rewiring,
    Split,
    insert_chains,
    insert_identities,
    insert_joins,
    insert_splits,
    rewire,
)
from memcli.graph.training import Flags, Plan
from memcli.memory.pool import BARRIER
from memcli.request import Progress, ShapeRequest
from memcli.rewrites.exactness import (
    LEAST_CHAIN,
    adds_early_exactly,
    concats_keep_sums,
    joins_keep_sums,
    keeps_in_place,
)
from memcli.rewrites.flatten_concats import flatten_concats, grouped_sums, unread_convolutions
from memcli.rewrites.gradient_joins import LARGE, gradient_joins, possible_joins
from memcli.rewrites.read_normalizations import unread_normalizations
from memcli.rewrites.split_activations import PARTS, split_activations
from memcli.workflow.time_shares import UNLIMITED, TimeShares

T = TypeVar("T")

# Chains of so many Concats and more are flattened in groups.
_SHORTEST_CHAIN = 9
# Where groups of the longest chains end, in other variants: the last Concats are the largest.
_LONGEST = ((0.5,), (0.5, 0.875))


@dataclass
class Edits:
    """What rewrites change before a plan is searched for. Empty: nothing."""

    concats: list[Rewiring] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)  # normalizations with an identity behind them
    convolutions: list[int] = field(default_factory=list)  # and convolutions
    splits: list[Split] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.concats or self.joins or self.reads or self.convolutions or self.splits
        )

    @property
    def names(self) -> list[str]:
        """Which rewrites these are, for people."""
        found = []
        if self.concats:
            found.append(f"{len(self.concats)} Concats flattened")
        if self.joins:
            found.append(f"{len(self.joins)} gradient joins")
        if self.reads:
            found.append(f"{len(self.reads)} identities behind normalizations")
        if self.convolutions:
            found.append(f"{len(self.convolutions)} identities behind convolutions")
        if self.splits:
            found.append(f"{len(self.splits)} activations in {self.splits[0].parts} pieces")
        return found

    def applied(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The content with the edits."""
        if self.concats:
            raw = rewire(raw, self.concats)
        moved = {p: p for p in range(len(raw["nodes"]))}
        if self.joins:
            raw, moved = insert_joins(raw, self.joins)
        if self.splits:
            splits = [replace(split, position=moved[split.position]) for split in self.splits]
            raw, places = insert_splits(raw, splits)
            moved = {p: places[q] for p, q in moved.items()}
        chains = grouped_sums(raw, {moved[change.position] for change in self.concats})
        if chains:
            raw = insert_chains(raw, chains)
        read = unread_normalizations(raw) if self.reads else []
        if self.convolutions:
            # Behind a save barrier on this identity a convolution's recomputed output is read, so
            # that MXNet's plain kernels run the plan.
            read += unread_convolutions(raw)
        if read:
            raw, _ = insert_identities(raw, read, suffix="_read")
        return raw


@dataclass
class Variant:
    """A symbol to plan: what marks and save barriers go into, and how MXNet trains it."""

    source: SymbolFile
    analysis: Analysis
    rewrites: list[str] = field(default_factory=list)
    # the same graph without the variables of ``analysis.environment``; None where it names none
    without_variables: Analysis | None = None


def edits_of(
    source: SymbolFile, analysis: Analysis, environment: str, kernels: str = "plain"
) -> Edits:
    """The rewrites that a symbol profits from; ``analysis`` is its own.

    Args:
        source: the symbol without a plan.
        analysis: MXNet's of that symbol.
        environment: ``best`` or ``default``, see :class:`memcli.planners.base.Settings`.
        kernels: ``plain`` or ``any``, see there.
    """
    return Edits(
        _flattened(source, environment, kernels),
        gradient_joins(source.raw, analysis.graph, analysis.model),
        unread_normalizations(source.raw),
        unread_convolutions(source.raw) if kernels == "plain" else [],
    )


def _flattened(source: SymbolFile, environment: str, kernels: str) -> list[Rewiring]:
    """How to flatten the symbol's Concats; not at all where oneDNN may run the plan.

    oneDNN chooses layouts by what a Concat reads, and rounds by the layout: flattened Concats are
    exact on plain kernels alone, so that the plan must be able to name the variable that selects
    them.
    """
    if kernels != "plain" or environment != "best":
        return []
    return flatten_concats(source.raw, _SHORTEST_CHAIN)


def with_splits(source: SymbolFile, analysis: Analysis, edits: Edits) -> list[Edits]:
    """The edits with the largest activations in pieces, for each number of pieces."""
    found = split_activations(source.raw, analysis.graph, PARTS)
    return [replace(edits, splits=splits) for splits in found if splits]


def exact_parts(
    edits: Edits, source: SymbolFile, changed: SymbolFile, before: Analysis, after: Analysis
) -> Edits:
    """The edits that leave every sum of gradients as it was.

    Args:
        edits: what makes ``changed`` of ``source``.
        source: the symbol without them.
        changed: the symbol with all of them.
        before: analysis of ``source``.
        after: analysis of ``changed``.
    """
    concats, joins, splits = edits.concats, edits.joins, edits.splits
    reads, convolutions = edits.reads, edits.convolutions
    if not keeps_in_place(before.graph, after.graph, source.raw, joins):
        return Edits(reads=reads, convolutions=convolutions)
    if concats and not concats_keep_sums(after.graph, source.raw, changed.raw, concats):
        concats = []
    if not joins_keep_sums(before.graph, after.graph, source.raw, changed.raw, joins):
        if not (joins or splits):
            reads, convolutions = [], []
        joins, splits = [], []
    return Edits(concats, joins, reads, convolutions, splits)


def _rewritten(source: SymbolFile, analysis: Analysis, edits: Edits) -> Variant:
    """A variant that has all the edits."""
    return Variant(source, analysis, edits.names)


def analyze_variants(
    source: SymbolFile,
    request: ShapeRequest,
    *,
    rewrite: bool,
    environment: str = "default",
    kernels: str = "plain",
    saved: Analysis | None = None,
    shares: TimeShares = UNLIMITED,
    on_progress: Progress | None = None,
) -> list[Variant]:
    """The symbol as saved, and rewritten where that applies, each analyzed by MXNet.

    ``environment``: ``best`` where plans may need a variable at run time, else ``default``.
    ``kernels``: ``plain`` where MXNet's own kernels must run every plan, else ``any``.
    ``saved``: the analysis of the symbol itself, where there is one already. ``shares``: forms that
    there is no time for are left out.

    Raises:
        BadInput: MXNet refuses the graph or its shapes.
        EngineFailed: MXNet is missing or crashed.
    """
    found = _rewritten_variants(
        source, request, rewrite, environment, kernels, saved, shares, on_progress
    )
    if environment == "best":
        first, *rewritten = found
        early = _side_by_side(partial(_adding_early, shares), rewritten or found, on_progress)
        if rewritten:
            rewritten = [e or variant for e, variant in zip(early, rewritten, strict=True)]
        else:
            rewritten = list(filter(None, early))
        found = [first, *rewritten]
    for variant in found:
        for analysis in filter(None, (variant.analysis, variant.without_variables)):
            analysis.model.portable = kernels == "plain"
    return found


def _adding_early(
    shares: TimeShares, variant: Variant, on_progress: Progress | None
) -> Variant | None:
    """The variant with sums of gradients added one by one; None where that changes nothing, or
    would change bits."""
    before = variant.analysis
    if not adds_early_exactly(before.graph) or not shares.for_form():
        return None
    now = before.request()
    try:
        early = analyze(
            variant.source.raw, now, environment={SUM_CAP: str(LEAST_CHAIN)},
            on_progress=on_progress,
        )  # fmt: skip
    except BadInput:
        return None
    # what the user was told of the shapes holds for this analysis, too
    early.assumed = list(before.assumed)
    return Variant(variant.source, early, variant.rewrites, without_variables=before)


def _rewritten_variants(
    source: SymbolFile,
    request: ShapeRequest,
    rewrite: bool,
    environment: str,
    kernels: str,
    saved: Analysis | None,
    shares: TimeShares,
    on_progress: Progress | None,
) -> list[Variant]:
    """As saved, and rewritten; a large graph that may profit from joins is analyzed with them at
    the same time, unless it was analyzed before."""
    may_join = saved is None and rewrite and source.node_count >= LARGE
    joins = possible_joins(source.raw) if may_join else []
    if not joins:
        analysis = saved or analyze(source.raw, request, on_progress=on_progress)
        return variants(
            source, analysis, rewrite=rewrite, environment=environment, kernels=kernels,
            shares=shares, on_progress=on_progress,
        )  # fmt: skip
    edits = Edits(
        _flattened(source, environment, kernels),
        joins,
        unread_normalizations(source.raw),
        unread_convolutions(source.raw) if kernels == "plain" else [],
    )
    changed = source.with_content(edits.applied(source.raw))
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(analyze, changed.raw, request)
        analysis = analyze(source.raw, request, on_progress=on_progress)
        try:
            after: Analysis | None = beside.result()
        except BadInput:
            after = None
    found = [Variant(source, analysis)]
    wanted = edits_of(source, analysis, environment, kernels)
    if after is None or not wanted:
        return found
    if exact_parts(edits, source, changed, analysis, after) == edits:
        return [*found, _rewritten(changed, after, edits)]
    return variants(
        source, analysis, rewrite=rewrite, environment=environment, kernels=kernels,
        on_progress=on_progress,
    )  # fmt: skip


def variants(
    source: SymbolFile,
    analysis: Analysis,
    *,
    rewrite: bool,
    environment: str,
    kernels: str = "plain",
    shares: TimeShares = UNLIMITED,
    on_progress: Progress | None = None,
) -> list[Variant]:
    """The symbol as saved, and rewritten where that applies, with Concats flattened whole and in
    groups of several sizes, and activations in several numbers of pieces: which takes the least
    memory, only the search shows.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    found = [Variant(source, analysis)]
    if not rewrite or not shares.for_form():
        return found
    grouped = edits_of(source, analysis, environment, kernels)
    concats = [grouped.concats]
    if grouped.concats:
        # the gradients of a piece add up early, so that many may read it
        concats += [
            flatten_concats(source.raw),
            *(flatten_concats(source.raw, _SHORTEST_CHAIN, longest=parts) for parts in _LONGEST),
        ]
    concats = [c for k, c in enumerate(concats) if c not in concats[:k]]
    wanted = [replace(grouped, concats=c) for c in concats]
    wanted += with_splits(source, analysis, grouped)
    exactly = partial(_exactly, source, analysis, shares)
    for changed in _side_by_side(exactly, wanted, on_progress):
        if changed is not None and all(changed.source.raw != other.source.raw for other in found):
            found.append(changed)
    return found


def _side_by_side(
    job: Callable[[T, Progress | None], Variant | None],
    given: Sequence[T],
    on_progress: Progress | None,
) -> list[Variant | None]:
    """The job for each, at the same time: MXNet's processes take most of it. Progress is the
    first one's."""
    first, *others = given
    with ThreadPoolExecutor(2) as pool:
        beside = [pool.submit(job, one, None) for one in others]
        return [job(first, on_progress), *(future.result() for future in beside)]


def _exactly(
    source: SymbolFile,
    analysis: Analysis,
    shares: TimeShares,
    edits: Edits,
    on_progress: Progress | None,
) -> Variant | None:
    """The symbol with those of the edits that are exact; None where there are none, or no time."""
    for _ in range(3):
        if not edits or not shares.for_form():
            break
        changed = source.with_content(edits.applied(source.raw))
        request = analysis.request()
        try:
            after = analyze(changed.raw, request, on_progress=on_progress)
        except BadInput:
            # MXNet refuses what it takes as saved (a shape that only the old edges told)
            break
        exact = exact_parts(edits, source, changed, analysis, after)
        if exact == edits:
            return _rewritten(changed, after, edits)
        edits = exact
    return None


def carried_over(before: Analysis, after: Analysis, moved: Mapping[int, int], plan: Plan) -> Plan:
    """A plan of one form of a network for another that has all of its nodes, and more.

    ``moved``: the new position of each old one. What operators cost, what was assumed and which
    plans are made is handed on to ``after``, too.
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


def with_barriers(variant: Variant, flags: Flags) -> tuple[SymbolFile, dict[int, int]]:
    """The variant's file with a plan's save barriers, and the new position of each old one."""
    positions = marked_positions(variant.analysis, np.where(flags == BARRIER, 1, 0))
    if not positions:
        return variant.source, {p: p for p in range(variant.source.node_count)}
    raw, moved = insert_identities(variant.source.raw, positions)
    return variant.source.with_content(raw), moved


def marked_positions(analysis: Analysis, flags: Flags) -> set[int]:
    """Places in the file of the nodes to mark; merged nodes alike, so that they merge again."""
    graph = analysis.graph
    n_file = len(graph.file_names)
    positions = {
        int(graph.position[v])
        for v in np.flatnonzero(flags)
        if 0 <= graph.position[v] < n_file and not graph.variable[v]
    }
    positions |= {p for p, stays in graph.alias.items() if stays in positions}
    return positions
