"""Runs of units, one after the other, wrapped together: for recompute_grad and jax.checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memcli.export.layer_units import Unit
from memcli.export.scopes import MOST_EVALUATIONS, PASSES, STARTS, Group, Grouping, ScopeCosts

# Strides, in narrow places: runs to start from end at every stride-th of them.
_EVERY = (1, 2, 4)
# What is recomputed for its every reader rather than in a group of its own: nothing is computed.
_COPIES = ("Concat",)


@dataclass(frozen=True)
class _Narrow:
    """Units after which little is handed on."""

    count: int
    ends: list[int]

    def every(self, step: int) -> list[bool]:
        """Runs that end at every ``step``-th of them."""
        chosen = set(self.ends[step - 1 :: step])
        return [k in chosen for k in range(self.count)]


class RunSearch:
    """Finds runs of ``units``, which are in an order in which each comes after all it reads."""

    def __init__(self, costs: ScopeCosts, units: Sequence[Unit]) -> None:
        self.costs = costs
        self.units = units
        self.flow = costs.flow

    def search(self) -> Grouping:
        """The best runs found.

        They end behind what the plan keeps, or where little is handed on; the ends of the best of
        these are then moved about.
        """
        starts: list[tuple[tuple[float, float], list[Unit], list[Unit], list[bool]]] = []
        for repeated in self._repeated():
            copied = {unit.path for unit in repeated}
            listed = [unit for unit in self.units if unit.path not in copied]
            narrow = self._narrow(listed, repeated)
            for cuts in ([self._keeps(unit) for unit in listed], *map(narrow.every, _EVERY)):
                cost = self.costs.grouping(self._as_groups(listed, cuts), repeated).cost
                starts.append((self.costs.worth(cost), listed, repeated, cuts))
        starts.sort(key=lambda start: start[0])
        found = [self._moved(*start[1:]) for start in starts[:STARTS]]
        return self.costs.pruned(min(found, key=lambda grouping: self.costs.worth(grouping.cost)))

    def _moved(self, units: list[Unit], repeated: list[Unit], cuts: list[bool]) -> Grouping:
        """The runs with ends taken out, put in, or moved by one unit, while that is better."""
        found = self.costs.grouping(self._as_groups(units, cuts), repeated)
        limit = self.costs.evaluated + MOST_EVALUATIONS
        for _ in range(PASSES):
            before = found
            for k in range(len(cuts) - 1):
                for change in ([k], [k, k + 1]):
                    if self.costs.evaluated > limit or (len(change) > 1 and cuts[k] == cuts[k + 1]):
                        continue
                    for c in change:
                        cuts[c] = not cuts[c]
                    other = self.costs.grouping(self._as_groups(units, cuts), repeated)
                    if self.costs.worth(other.cost) < self.costs.worth(found.cost):
                        found = other
                        continue
                    for c in change:
                        cuts[c] = not cuts[c]
            if found is before:
                break
        return found

    def _narrow(self, units: Sequence[Unit], repeated: Sequence[Unit]) -> _Narrow:
        """Where less is handed on to later units than before and after."""
        copied = {step for unit in repeated for step in unit.steps}
        of = {step: k for k, unit in enumerate(units) for step in unit.steps}
        change = np.zeros(len(units) + 1, np.int64)
        for storage in range(self.flow.n_storages):
            step = int(self.flow.makers[storage])
            if step in copied or not self.flow.results[storage]:
                continue
            readers = [of[r] for r in self.costs.final(storage, copied) if r >= 0]
            last = max(readers, default=of[step])
            if last > of[step]:
                change[of[step]] += self.flow.size[storage]
                change[last] -= self.flow.size[storage]
        over = np.cumsum(change)[: len(units)].tolist()
        ends = [
            k for k in range(1, len(units) - 1) if over[k] < over[k - 1] and over[k] <= over[k + 1]
        ]
        return _Narrow(len(units), ends)

    def _repeated(self) -> list[list[Unit]]:
        """Copies that more than one unit reads: none of them, those that the plan drops, or all.

        In a group of their own they would stay as its output.
        """
        of = {step: k for k, unit in enumerate(self.units) for step in unit.steps}
        operators = self.costs.model.trace.operators
        every, dropped = [], []
        for unit in self.units:
            own = set(unit.steps)
            made = [s for s in range(self.flow.n_storages) if int(self.flow.makers[s]) in own]
            copies = all(operators[self.flow.makers[s]] in _COPIES for s in made)
            readers = {of[r] for s in made for r in self.flow.readers[s] if r not in own}
            if made and copies and len(readers) > 1:
                every.append(unit)
                if not any(self.costs.kept[self.flow.makers[s]] for s in made):
                    dropped.append(unit)
        choices = [[], dropped, every]
        return [c for k, c in enumerate(choices) if all(len(c) > len(d) for d in choices[:k])]

    def _keeps(self, unit: Unit) -> bool:
        """Whether the plan keeps a result of the unit that others read."""
        own = set(unit.steps)
        return any(
            bool(self.flow.results[s])
            and bool(self.costs.kept[self.flow.makers[s]])
            and (bool(self.flow.given_out[s]) or not own.issuperset(self.flow.readers[s]))
            for s in range(self.flow.n_storages)
            if int(self.flow.makers[s]) in own
        )

    @staticmethod
    def _as_groups(units: Sequence[Unit], cuts: Sequence[bool]) -> list[Group]:
        groups, run = [], []
        for unit, cut in zip(units, cuts, strict=True):
            run.append(unit)
            if cut or unit is units[-1]:
                groups.append(
                    Group(tuple(u.path for u in run), frozenset(s for u in run for s in u.steps))
                )
                run = []
        return groups
