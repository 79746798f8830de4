"""Several rewrites of one graph, made together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from memcli.engines.mxnet.rewrites.base import Rewrite, RewriteConditions
from memcli.engines.mxnet.rewrites.exactness import SumComparison, Term
from memcli.formats.symbol.edits import Raw

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis

F = TypeVar("F")


@dataclass(frozen=True)
class Change:
    """A rewrite and the places where it is made."""

    rewrite: Rewrite[Any]
    found: Any


@dataclass(frozen=True)
class Changes:
    """Rewrites to make together, in the order of the registry. Empty: the graph stays as it is."""

    parts: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def names(self) -> list[str]:
        """What each rewrite does, for people."""
        return [part.rewrite.describe(part.found) for part in self.parts]

    def applied(self, raw: Raw) -> Raw:
        """The content with the rewrites; what was found is by positions in ``raw``."""
        moved = {p: p for p in range(len(raw["nodes"]))}
        for part in self.parts:
            raw, places = part.rewrite.apply(raw, part.rewrite.relocated(part.found, moved))
            moved = {p: places[q] for p, q in moved.items()}
        return raw

    def found_by(self, rewrite: Rewrite[F]) -> F | None:
        """The places of one rewrite; None where it is not among these."""
        return next((part.found for part in self.parts if part.rewrite is rewrite), None)

    def exact(self, raw: Raw, changed: Raw, before: Analysis, after: Analysis) -> Changes:
        """The rewrites that leave every sum of gradients as it was, to the bit.

        Args:
            raw: the content without them.
            changed: the content with all of them.
            before: analysis of ``raw``.
            after: analysis of ``changed``.
        """
        stands_for: dict[Term, Term] = {}
        for part in self.parts:
            stands_for |= part.rewrite.stands_for(raw, part.found)
        sums = SumComparison(
            before.graph,
            after.graph,
            raw,
            changed,
            stands_for,
            reordering=any(part.rewrite.may_reorder_sums for part in self.parts),
        )
        return Changes(tuple(p for p in self.parts if p.rewrite.keeps_sums(sums, p.found)))

    def with_part(
        self, rewrite: Rewrite[Any], found: Any, rewrites: Sequence[Rewrite[Any]]
    ) -> Changes:
        """These with one rewrite made at other places, or made at all; ``rewrites``: the order."""
        places = {id(part.rewrite): part for part in self.parts}
        places[id(rewrite)] = Change(rewrite, found)
        return Changes(tuple(places[id(r)] for r in rewrites if id(r) in places))


def find_changes(
    raw: Raw,
    analysis: Analysis | None,
    conditions: RewriteConditions,
    rewrites: Sequence[Rewrite[Any]],
) -> Changes:
    """All rewrites that a graph profits from, before any search.

    Args:
        raw: the content, without a plan.
        analysis: MXNet's of that content; None where there is none yet: what needs one is guessed.
        conditions: how the planned graph may be trained.
        rewrites: which to look for, in the order in which they are made.
    """
    found = ((rewrite, rewrite.find(raw, analysis, conditions)) for rewrite in rewrites)
    return Changes(tuple(Change(rewrite, places) for rewrite, places in found if places))


def other_changes(
    raw: Raw,
    analysis: Analysis,
    conditions: RewriteConditions,
    changes: Changes,
    rewrites: Sequence[Rewrite[Any]],
    *,
    among: Sequence[Rewrite[Any]] | None = None,
) -> list[Changes]:
    """The changes with one rewrite at a time made another way.

    Which takes the least memory, only the search shows.

    Args:
        raw: the symbol file's content.
        analysis: of the graph.
        conditions: as for :func:`find_changes`.
        changes: the usual ones.
        rewrites: as for :func:`find_changes`.
        among: the rewrites to vary, by default all.
    """
    return [
        changes.with_part(rewrite, other, rewrites)
        for rewrite in (rewrites if among is None else among)
        for other in rewrite.alternatives(raw, analysis, conditions, changes.found_by(rewrite))
    ]
