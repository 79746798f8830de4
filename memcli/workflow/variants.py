"""The graphs that a plan may be made on: the symbol as saved, and rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from memcli.engines.analysis import SUM_CAP, Analysis, ShapeRequest, analyze
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
from memcli.rewrites.exactness import concats_keep_sums, joins_keep_sums
from memcli.rewrites.flatten_concats import flatten_concats, grouped_sums, unread_convolutions
from memcli.rewrites.gradient_joins import LARGE, gradient_joins, possible_joins
from memcli.rewrites.read_normalizations import unread_normalizations
from memcli.rewrites.split_activations import PARTS, split_activations

Progress = Callable[[str, float | None], None]
T = TypeVar("T")

# Sums of as many gradients and more are added from the left, whatever the cap.
_SAME_SUMS = 5
# Chains of so many Concats and more are flattened in groups, by environment. In MXNet's default
# one, pieces that more than four Concats read have all their gradients alive at one time.
_GROUPED = {"default": 5, "best": 9}
# Where groups of the longest chains end, in other variants: the last Concats are the largest.
_LONGEST = ((0.5,), (0.5, 0.875))


@dataclass
class Edits:
    """What rewrites change before a plan is searched for. Empty: nothing."""

    concats: list[Rewiring] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)  # identities behind the nodes at these places
    splits: list[Split] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.concats or self.joins or self.reads or self.splits)

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
        if self.concats:
            # Behind a save barrier on this identity a convolution's copy is read, so that MXNet's
            # plain kernels run the plan. They are what it is exact on: oneDNN lays flattened
            # Concats out otherwise, and rounds otherwise.
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


def edits_of(source: SymbolFile, analysis: Analysis, environment: str) -> Edits:
    """The rewrites that a symbol profits from; ``analysis`` is its own."""
    return Edits(
        flatten_concats(source.raw, _GROUPED[environment]),
        gradient_joins(source.raw, analysis.graph, analysis.model),
        unread_normalizations(source.raw),
    )


def with_splits(source: SymbolFile, analysis: Analysis, edits: Edits) -> list[Edits]:
    """The edits with the largest activations in pieces, for each number of pieces."""
    found = split_activations(source.raw, analysis.graph, PARTS)
    return [replace(edits, splits=splits) for splits in found if splits]


def exact_parts(edits: Edits, source: SymbolFile, before: Analysis, after: Analysis) -> Edits:
    """The edits that leave every sum of gradients as it was; ``after`` has all of them."""
    concats, joins = edits.concats, edits.joins
    if concats and not concats_keep_sums(after.graph, source.raw, concats):
        concats = []
    splits = edits.splits
    if (joins or splits) and not joins_keep_sums(before.graph, after.graph, source.raw, joins):
        joins, splits = [], []
    return Edits(concats, joins, edits.reads, splits)


def _rewritten(source: SymbolFile, analysis: Analysis, edits: Edits) -> Variant:
    """A variant that has all the edits."""
    analysis.model.portable = bool(edits.concats)
    return Variant(source, analysis, edits.names)


def analyze_variants(
    source: SymbolFile,
    request: ShapeRequest,
    *,
    rewrite: bool,
    environment: str = "default",
    on_progress: Progress | None = None,
) -> list[Variant]:
    """The symbol as saved, and rewritten where that applies, each analyzed by MXNet.

    ``environment``: ``best`` where plans may need a variable at run time, else ``default``.

    Raises:
        BadInput: MXNet refuses the graph or its shapes.
        EngineFailed: MXNet is missing or crashed.
    """
    found = _rewritten_variants(source, request, rewrite, environment, on_progress)
    if environment != "best":
        return found
    saved, *rewritten = found
    early = _side_by_side(_adding_early, rewritten or found, on_progress)
    if rewritten:
        return [saved, *(e or variant for e, variant in zip(early, rewritten, strict=True))]
    return [saved, *filter(None, early)]


def _adding_early(variant: Variant, on_progress: Progress | None) -> Variant | None:
    """The variant with sums of gradients added one by one; None where it changes nothing."""
    before = variant.analysis
    if not adds_late(before):
        return None
    now = before.request()
    try:
        early = analyze(
            variant.source.raw, now, environment={SUM_CAP: str(_SAME_SUMS)}, on_progress=on_progress
        )
    except BadInput:
        return None
    early.model.portable = before.model.portable
    # what the user was told of the shapes holds for this analysis, too
    early.assumed = list(before.assumed)
    return Variant(variant.source, early, variant.rewrites)


def adds_late(analysis: Analysis) -> bool:
    """Whether gradients of five to seven terms wait for one another: see :data:`SUM_CAP`."""
    graph = analysis.graph
    terms = np.diff(graph.in_ptr)[graph.n_forward :]
    sums = (graph.owner[graph.n_forward :] < 0) & (terms >= _SAME_SUMS)
    return bool(sums.any())


def _rewritten_variants(
    source: SymbolFile,
    request: ShapeRequest,
    rewrite: bool,
    environment: str,
    on_progress: Progress | None,
) -> list[Variant]:
    """As saved, and rewritten; a large graph that may profit from joins is analyzed with them at
    the same time."""
    joins = possible_joins(source.raw) if rewrite and source.node_count >= LARGE else []
    if not joins:
        analysis = analyze(source.raw, request, on_progress=on_progress)
        return variants(
            source, analysis, rewrite=rewrite, environment=environment, on_progress=on_progress
        )
    concats = flatten_concats(source.raw, _GROUPED[environment])
    edits = Edits(concats, joins, unread_normalizations(source.raw))
    changed = source.with_content(edits.applied(source.raw))
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(analyze, changed.raw, request)
        analysis = analyze(source.raw, request, on_progress=on_progress)
        try:
            after: Analysis | None = beside.result()
        except BadInput:
            after = None
    found = [Variant(source, analysis)]
    wanted = edits_of(source, analysis, environment)
    if after is None or not wanted:
        return found
    if exact_parts(edits, source, analysis, after) == edits:
        return [*found, _rewritten(changed, after, edits)]
    return variants(
        source, analysis, rewrite=rewrite, environment=environment, on_progress=on_progress
    )


def variants(
    source: SymbolFile,
    analysis: Analysis,
    *,
    rewrite: bool,
    environment: str,
    on_progress: Progress | None = None,
) -> list[Variant]:
    """The symbol as saved, and rewritten where that applies, with Concats flattened whole and in
    groups of several sizes, and activations in several numbers of pieces: which takes the least
    memory, only the search shows.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    found = [Variant(source, analysis)]
    if not rewrite:
        return found
    grouped = edits_of(source, analysis, environment)
    concats = [flatten_concats(source.raw), grouped.concats]
    if environment == "best":
        # the gradients of a piece add up early, so that many may read it
        concats += [
            flatten_concats(source.raw, _GROUPED[environment], longest=parts) for parts in _LONGEST
        ]
    concats = [c for k, c in enumerate(concats) if c not in concats[:k]]
    wanted = [Edits(c, grouped.joins, grouped.reads) for c in concats]
    wanted += with_splits(source, analysis, grouped)
    for changed in _side_by_side(partial(_exactly, source, analysis), wanted, on_progress):
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
    source: SymbolFile, analysis: Analysis, edits: Edits, on_progress: Progress | None
) -> Variant | None:
    """The symbol with those of the edits that are exact; None where there are none."""
    for _ in range(2):
        if not edits:
            break
        changed = source.with_content(edits.applied(source.raw))
        request = analysis.request()
        try:
            after = analyze(changed.raw, request, on_progress=on_progress)
        except BadInput:
            # MXNet refuses what it takes as saved (a shape that only the old edges told)
            break
        exact = exact_parts(edits, source, analysis, after)
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
