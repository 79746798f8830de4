"""Modules wrapped whole, or children of a sequence in a row: for torch.utils.checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from memcli.export.layer_units import Path
from memcli.export.scopes import MOST_EVALUATIONS, PASSES, STARTS, Group, Grouping, ScopeCosts

# The part of a module's inside that the plan must drop for it to be wrapped to begin with.
_DROPPED = 0.75
_LONGEST_RUN = 12  # children of one sequence wrapped together


class ModuleSearch:
    """Finds modules to wrap.

    ``paths``: the module of each step. ``sequences``: those that call their children in a row.
    ``callable_``: whether a path is a module that is called; a list of modules is not. ``heavy``:
    over steps, whether a policy can keep its result all the same.
    """

    def __init__(
        self,
        costs: ScopeCosts,
        paths: Sequence[Path],
        sequences: Iterable[Path],
        callable_: Callable[[Path], bool],
        heavy: NDArray[np.bool_],
    ) -> None:
        self.costs = costs
        self.flow = costs.flow
        self.heavy = heavy
        self.candidates = self._candidates(paths, frozenset(sequences), callable_)

    def search(self) -> Grouping:
        """The best groups found.

        Those that the plan drops, or all modules of one depth, with some put in, taken out or
        opened.
        """
        starts = [self.costs.grouping(self._dropped_by_plan())]
        for depth in sorted({len(group.scopes[0]) for group in self.candidates}):
            level = [g for g in self.candidates if len(g.scopes) == 1 and len(g.scopes[0]) == depth]
            starts.append(self.costs.grouping(_apart(level)))
        starts.sort(key=lambda start: self.costs.worth(start.cost))
        found = [self._exchanged(start) for start in starts[:STARTS]]
        return self.costs.pruned(min(found, key=lambda grouping: self.costs.worth(grouping.cost)))

    def _exchanged(self, found: Grouping) -> Grouping:
        """The groups with others put in, taken out or opened, while that is better."""
        limit = self.costs.evaluated + MOST_EVALUATIONS
        for _ in range(PASSES):
            before = found
            for group in self.candidates:
                for other in self._with(found, group):
                    if self.costs.evaluated > limit:
                        break
                    trial = self.costs.grouping(other)
                    if self.costs.worth(trial.cost) < self.costs.worth(found.cost):
                        found = trial
            if found is before:
                break
        return found

    def _with(self, found: Grouping, group: Group) -> list[list[Group]]:
        """What groups become where one is changed.

        Without a group that is there, or with what is inside of it; with one that is not, in the
        place of those that it shares steps with.
        """
        same = [g for g in found.groups if g.steps == group.steps]
        rest = [g for g in found.groups if not (g.steps & group.steps)]
        trials = [[*rest, group], [*rest, self._saving(group)]]
        if not same:
            return trials
        inside = [g for g in self.candidates if g.steps < group.steps and len(g.scopes) == 1]
        return [rest, [*rest, *_apart(inside)], *trials]

    def _saving(self, group: Group) -> Group:
        saves = frozenset(s for s in group.steps if self.heavy[s] and self.costs.kept[s])
        return Group(group.scopes, group.steps, saves)

    def _candidates(
        self, paths: Sequence[Path], sequences: frozenset[Path], callable_: Callable[[Path], bool]
    ) -> list[Group]:
        """Modules that hold more than one step, the outermost first."""
        inside: dict[Path, list[int]] = {}
        for step, path in enumerate(paths):
            for length in range(1, len(path) + 1):
                inside.setdefault(path[:length], []).append(step)
        found = [
            Group((path,), frozenset(steps))
            for path, steps in sorted(inside.items(), key=lambda item: (len(item[0]), item[1][0]))
            if callable_(path) and self.costs.inner(frozenset(steps))
        ]
        for parent in sorted(sequences):
            children = [p for p in inside if p[:-1] == parent and len(p) == len(parent) + 1]
            children.sort(key=lambda p: inside[p][0])
            for i in range(len(children)):
                for j in range(i + 2, min(i + _LONGEST_RUN, len(children)) + 1):
                    steps = frozenset(s for p in children[i:j] for s in inside[p])
                    if j - i < len(children) and self.costs.inner(steps):
                        found.append(Group(tuple(children[i:j]), steps))
        return found

    def _dropped_by_plan(self) -> list[Group]:
        taken = []
        for group in self.candidates:
            inner = self.costs.inner(group.steps)
            size = sum(int(self.flow.size[s]) for s in inner)
            dropped = sum(
                int(self.flow.size[s]) for s in inner if not self.costs.kept[self.flow.makers[s]]
            )
            if size and dropped >= _DROPPED * size:
                taken.append(group)
        return _apart(taken)


def _apart(groups: Iterable[Group]) -> list[Group]:
    """Those groups that share no step with one before them."""
    taken: set[int] = set()
    apart = []
    for group in groups:
        if taken.isdisjoint(group.steps):
            taken |= group.steps
            apart.append(group)
    return apart
