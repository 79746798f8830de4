"""What a rewrite is: a change to a symbol's graph that leaves what it computes as it was.

A rewrite is one class in one file, and one entry in
:data:`memcli.engines.mxnet.rewrites.registry.REWRITES`. It finds places in a graph, changes them,
tells its own inserted nodes when a plan is taken off, says whether the sums of gradients stayed
exact, and describes itself. What it finds, ``F``, is data that compares equal where the places are
the same; positions in it are of the content that it was found in.

Most rewrites are made before the search (:meth:`Rewrite.find`). Some are made for one plan, after
the search (:meth:`Rewrite.find_for_plan`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from memcli.formats.symbol.edits import Raw, insert_identities

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis
    from memcli.engines.mxnet.rewrites.exactness import SumComparison, Term
    from memcli.graph.training import Plan

F = TypeVar("F")


@dataclass(frozen=True)
class RewriteConditions:
    """How the planned graph may be trained; see :class:`memcli.search.base.Settings`.

    Args:
        environment: ``best`` where a plan may name variables to train with, else ``default``.
        kernels: ``plain`` where MXNet's own kernels must run the plan, else ``any``.
    """

    environment: str = "default"
    kernels: str = "plain"


class Rewrite(ABC, Generic[F]):
    """One kind of change to a graph."""

    name: ClassVar[str]
    #: Whether :meth:`find` gives a guess where there is no analysis yet. A large graph is then
    #: analyzed with the guess at the same time as without it.
    guesses: ClassVar[bool] = False
    #: Whether the inserted nodes make tensors of their own. Those that do not leave the memory of
    #: the graph without its marks as it was.
    makes_tensors: ClassVar[bool] = True
    #: Whether sums of gradients may be reordered that :meth:`keeps_sums` does not judge apart from
    #: other rewrites. Where sums differ, these rewrites are given up first.
    may_reorder_sums: ClassVar[bool] = True

    def find(self, raw: Raw, analysis: Analysis | None, conditions: RewriteConditions) -> F | None:
        """Find where to make the change before the search.

        Args:
            raw: the content, without a plan.
            analysis: MXNet's of that content; None where there is none yet.
            conditions: how the planned graph may be trained.

        Returns:
            What :meth:`apply` takes; None where there is nothing to change, or where only the
            search can tell whether the change pays.
        """
        return None

    def alternatives(
        self, raw: Raw, analysis: Analysis, conditions: RewriteConditions, found: F | None
    ) -> Sequence[F]:
        """Find other ways to make the change; which takes the least memory, the search shows.

        Args:
            raw: the content, without a plan.
            analysis: MXNet's of that content.
            conditions: how the planned graph may be trained.
            found: what :meth:`find` gave.
        """
        return ()

    def find_for_plan(self, raw: Raw, analysis: Analysis, plan: Plan) -> F | None:
        """Find what a plan needs that was searched for on ``raw``; None where it needs nothing."""
        return None

    @abstractmethod
    def relocated(self, found: F, moved: Mapping[int, int]) -> F:
        """The same places after nodes were inserted.

        Args:
            found: places in the old content.
            moved: new positions by old ones.
        """

    @abstractmethod
    def apply(self, raw: Raw, found: F) -> tuple[Raw, dict[int, int]]:
        """Make the change.

        Args:
            raw: the content; it is not modified.
            found: the places, by positions in ``raw``.

        Returns:
            The new content, and the new position of each old one.
        """

    def recognizes(self, nodes: Sequence[Raw], position: int) -> bool:
        """Whether an inserted node is one that this rewrite puts in; identities aside.

        Taking a plan off bypasses inserted nodes (:func:`memcli.formats.symbol.edits.undo`), and
        refuses those that no rewrite recognizes.

        Args:
            nodes: of the content.
            position: of the inserted node.
        """
        return False

    def stands_for(self, raw: Raw, found: F) -> dict[Term, Term]:
        """Which gradients of inserted nodes count as those of operators of ``raw``.

        Inserted nodes hand them on; see
        :class:`memcli.engines.mxnet.rewrites.exactness.SumComparison`.
        """
        return {}

    def keeps_sums(self, sums: SumComparison, found: F) -> bool:
        """Whether gradients are added in the order that they had, to the bit.

        Args:
            sums: the sums before and after, with all rewrites of a form made together.
            found: the places of this one, by positions in ``sums.raw``.
        """
        return sums.same_in_place and sums.same_sums

    @abstractmethod
    def describe(self, found: F) -> str:
        """What was done, for people: a number and what there is so many of."""


class IdentityRewrite(Rewrite[list[int]]):
    """Identity nodes behind the outputs of some nodes, given by position.

    Exact: an identity hands on what it reads, and so does its gradient. The gradients of all
    readers are added behind the identity, in the order that they had.
    """

    makes_tensors = False
    may_reorder_sums = False
    #: An identity is called as the node that it stands behind, and this.
    suffix: ClassVar[str] = "_read"

    def relocated(self, found: list[int], moved: Mapping[int, int]) -> list[int]:
        """See :meth:`Rewrite.relocated`."""
        return [moved[p] for p in found]

    def apply(self, raw: Raw, found: list[int]) -> tuple[Raw, dict[int, int]]:
        """See :func:`memcli.formats.symbol.edits.insert_identities`."""
        return insert_identities(raw, found, self.suffix)

    def keeps_sums(self, sums: SumComparison, found: list[int]) -> bool:
        """True: other rewrites are given up first, and identities alone are judged once more."""
        return not sums.same_in_place or sums.reordering or sums.same_sums
