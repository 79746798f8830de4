"""What a strategy is: a way to look for plans, with the name and the help that users see."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcli.search.base import Search

Explore = Callable[..., None]
Refine = Callable[["Search", float], None]


@dataclass(frozen=True)
class Strategy:
    """One strategy.

    Functions are given as they are, or as ``module:function``, which is loaded when it is run: the
    command line lists strategies without numpy and compiled kernels.

    Args:
        name: as in ``--strategy NAME``.
        help: one line, what it does.
        explore: considers candidates of a ``Search`` (:meth:`Search.consider`), at least one.
        refine: improves the best of them, with a part of the usual work, 0 to 1. Of several forms
            of one network only the most promising ones are refined. None: there is no second step.
        arguments: of ``explore``, where several strategies share a function.
        as_published: whether its plans are as they were published: of the graph as it came,
            nothing is put into it.
        for_any_graph: whether it has a plan for every graph; ``compare`` runs all that have.
    """

    name: str
    help: str
    explore: Explore | str
    refine: Refine | str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    as_published: bool = False
    for_any_graph: bool = True

    def run_explore(self, search: Search) -> None:
        """Consider candidates."""
        _loaded(self.explore)(search, **self.arguments)

    def run_refine(self, search: Search, part: float) -> None:
        """Improve the best candidate, where the strategy has such a step.

        Args:
            search: with the candidates so far.
            part: of the usual work, 0 to 1.
        """
        if self.refine is not None:
            _loaded(self.refine)(search, part)

    def run(self, search: Search) -> None:
        """Search for plans of one graph; the answer is :meth:`Search.answer`."""
        self.run_explore(search)
        self.run_refine(search, 1.0)


def _loaded(function: Callable[..., None] | str) -> Callable[..., None]:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    loaded: Callable[..., None] = getattr(importlib.import_module(module), name)
    return loaded
