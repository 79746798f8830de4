"""What a strategy is: a way to look for plans, with the name and the help that users see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memcli.search.base import Search


@dataclass(frozen=True)
class Strategy:
    """One strategy.

    A module of a strategy ends in its ``STRATEGY``, or in ``STRATEGIES`` where it has several;
    :mod:`memcli.search.registry` lists them all.

    Attributes:
        name: as in ``--strategy NAME``.
        help: one line, what it does.
        explore: considers candidates (:meth:`Search.consider`), at least one of them.
        refine: improves the best of them, with a part of the usual work, 0 to 1. Of several forms
            of one network only the most promising ones are refined. None: there is no second step.
        as_published: whether its plans are as they were published: of the graph as saved, nothing
            is put into it.
        for_any_graph: whether it has a plan for every graph; ``compare`` runs all that have.
    """

    name: str
    help: str
    explore: Callable[[Search], None]
    refine: Callable[[Search, float], None] | None = None
    as_published: bool = False
    for_any_graph: bool = True

    def run(self, search: Search) -> None:
        """Search for plans of one graph; the answer is :meth:`Search.answer`."""
        self.explore(search)
        if self.refine is not None:
            self.refine(search, 1.0)
