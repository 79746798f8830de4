"""A plan in terms of whole functions: which runs of layers, or modules, to wrap as checkpoints.

What ``torch.utils.checkpoint``, ``tf.recompute_grad`` and ``jax.checkpoint`` offer is coarser than
a plan: a function is wrapped, its inputs and outputs stay, and everything inside is dropped and
made again when the backward pass comes to it. Here groups are found whose insides the plan drops,
and then moved about, step by step, while the exact memory model says that it gets better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import Flags
from memcli.graph.units import Dataflow, Path, Unit
from memcli.marks import AGAIN, AUXILIARY, EACH, KEPT, RESULTS
from memcli.memory.torch_model import TorchCost
from memcli.memory.torch_plan_model import TorchPlanModel
from memcli.memory.torch_trace import Trace

# How much more recomputation than the plan's groups may take; beyond, memory must pay for it.
_SLACK = 1.1
_MOST_EVALUATIONS = 3000
_PASSES = 3
_STARTS = 2
_EVERY = (1, 2, 4)
# The part of a scope's inside that the plan must drop for it to be wrapped to begin with.
_DROPPED = 0.75
_LONGEST_RUN = 12  # children of one sequence wrapped together
# What is made again for its every reader rather than in a group of its own: nothing is computed.
_COPIES = ("Concat",)


@dataclass(frozen=True)
class Group:
    """Wrapped together: steps, the scopes that they are, and steps whose result stays all the
    same (a policy says so)."""

    scopes: tuple[Path, ...]
    steps: frozenset[int]
    saves: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Grouping:
    """Groups, units that each group makes for itself (``repeated``), and what that costs."""

    groups: tuple[Group, ...]
    repeated: tuple[Unit, ...]
    marks: Flags
    cost: TorchCost


def dataflow(trace: Trace) -> Dataflow:
    """What a trace says of storages."""
    n = len(trace.storage_bytes)
    readers: list[list[int]] = [[] for _ in range(n)]
    for step in range(trace.n_steps):
        for k in range(int(trace.input_first[step]), int(trace.input_first[step + 1])):
            readers[int(trace.inputs[k])].append(step)
    saved = np.zeros(n, bool)
    saved[trace.handle_storage] = True
    return Dataflow(
        makers=np.repeat(np.arange(trace.n_steps), np.diff(trace.first)).astype(np.int64),
        readers=readers,
        saved=saved,
        given_out=trace.given_out,
        results=~trace.auxiliary,
        size=trace.storage_bytes,
    )


@dataclass(frozen=True)
class _Narrow:
    """Units after which little is handed on."""

    count: int
    ends: list[int]

    def every(self, step: int) -> list[bool]:
        """Runs that end at every ``step``-th of them."""
        chosen = set(self.ends[step - 1 :: step])
        return [k in chosen for k in range(self.count)]


class ScopeSearch:
    """Groups for one plan. ``heavy``: of each step, whether a policy can keep its result."""

    def __init__(
        self, model: TorchPlanModel, plan: Flags, heavy: NDArray[np.bool_] | None = None
    ) -> None:
        self.model = model
        self.plan = plan
        self.flow = dataflow(model.trace)
        self.heavy = np.zeros(model.trace.n_steps, bool) if heavy is None else heavy
        self.plan_cost = model.exact.evaluate(plan)
        self.evaluated = 0
        self._known: dict[bytes, TorchCost] = {}
        self._forward = max(model.forward_seconds, 1e-12)
        self._kept = (plan & RESULTS) == KEPT

    def grouping(self, groups: Iterable[Group], repeated: Sequence[Unit] = ()) -> Grouping:
        """What groups cost: the figure for what is wrapped, not for the plan.

        A group runs again as a whole, up to what is asked for, saved results or not: while it does,
        it takes as much as if none were saved.
        """
        listed = tuple(groups)
        marks = self.marks(listed, repeated)
        cost = self._cost(marks)
        if any(group.saves for group in listed):
            whole = [replace(group, saves=frozenset()) for group in listed]
            other = self._cost(self.marks(whole, repeated))
            cost = replace(
                cost,
                live_peak_bytes=max(cost.live_peak_bytes, other.live_peak_bytes),
                all_peak_bytes=max(cost.all_peak_bytes, other.all_peak_bytes),
            )
        return Grouping(listed, tuple(repeated), marks, cost)

    def marks(self, groups: Sequence[Group], repeated: Sequence[Unit] = ()) -> Flags:
        """The same as marks: dropped is what is read within its own group alone."""
        flow = self.flow
        group_of = {step: g for g, group in enumerate(groups) for step in group.steps}
        copied = {step for unit in repeated for step in unit.steps}
        marks = self.model.none()
        escapes = np.zeros(len(marks), bool)
        for storage in range(flow.n_storages):
            step = int(flow.makers[storage])
            if not flow.results[storage] or (step not in group_of and step not in copied):
                continue
            within = {group_of.get(reader, -1) for reader in self._final(storage, copied)}
            if step in copied:
                escapes[step] |= bool(flow.given_out[storage]) or -1 in within
            else:
                escapes[step] |= bool(flow.given_out[storage]) or within != {group_of[step]}
        for g, group in enumerate(groups):
            for step in group.steps:
                stays = escapes[step] or step in groups[g].saves
                marks[step] = (KEPT if stays else AGAIN) | AUXILIARY
        for step in copied:
            marks[step] = KEPT if escapes[step] else EACH | AUXILIARY
        return marks

    def runs(self, units: Sequence[Unit]) -> Grouping:
        """Groups that are runs of units, in their order, as recompute_grad and jax.checkpoint can
        wrap them. Where runs end to begin with: behind what the plan keeps, or where little is
        handed on; the best of these are moved about."""
        starts: list[tuple[tuple[float, float], list[Unit], list[Unit], list[bool]]] = []
        for repeated in self._repeated(units):
            copied = {unit.path for unit in repeated}
            listed = [unit for unit in units if unit.path not in copied]
            narrow = self._narrow(listed, repeated)
            for cuts in ([self._keeps(unit) for unit in listed], *map(narrow.every, _EVERY)):
                cost = self.grouping(self._as_groups(listed, cuts), repeated).cost
                starts.append((self._worth(cost), listed, repeated, cuts))
        starts.sort(key=lambda start: start[0])
        found = [self._moved(*start[1:]) for start in starts[:_STARTS]]
        return self._pruned(min(found, key=lambda grouping: self._worth(grouping.cost)))

    def _moved(self, units: list[Unit], repeated: list[Unit], cuts: list[bool]) -> Grouping:
        """The runs with ends taken out, put in, or moved by one unit, while that is better."""
        found = self.grouping(self._as_groups(units, cuts), repeated)
        limit = self.evaluated + _MOST_EVALUATIONS
        for _ in range(_PASSES):
            before = found
            for k in range(len(cuts) - 1):
                for change in ([k], [k, k + 1]):
                    if self.evaluated > limit or (len(change) > 1 and cuts[k] == cuts[k + 1]):
                        continue
                    for c in change:
                        cuts[c] = not cuts[c]
                    other = self.grouping(self._as_groups(units, cuts), repeated)
                    if self._worth(other.cost) < self._worth(found.cost):
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
            last = max((of[r] for r in self._final(storage, copied) if r >= 0), default=of[step])
            if last > of[step]:
                change[of[step]] += self.flow.size[storage]
                change[last] -= self.flow.size[storage]
        over = np.cumsum(change)[: len(units)].tolist()
        ends = [
            k for k in range(1, len(units) - 1)
            if over[k] < over[k - 1] and over[k] <= over[k + 1]
        ]  # fmt: skip
        return _Narrow(len(units), ends)

    def modules(
        self, paths: Sequence[Path], sequences: Iterable[Path], callable_: Callable[[Path], bool]
    ) -> Grouping:
        """Groups that are modules, or children of a sequence one after the other.

        ``paths``: the module of each step. ``callable_``: whether a path is a module that is
        called: a list of modules is not.
        """
        candidates = self._candidates(paths, frozenset(sequences), callable_)
        starts = [self.grouping(self._dropped_by_plan(candidates))]
        for depth in sorted({len(group.scopes[0]) for group in candidates}):
            level = [g for g in candidates if len(g.scopes) == 1 and len(g.scopes[0]) == depth]
            starts.append(self.grouping(_apart(level)))
        starts.sort(key=lambda start: self._worth(start.cost))
        found = [self._exchanged(start, candidates) for start in starts[:_STARTS]]
        return self._pruned(min(found, key=lambda grouping: self._worth(grouping.cost)))

    def _exchanged(self, found: Grouping, candidates: Sequence[Group]) -> Grouping:
        """The groups with others put in, taken out or opened, while that is better."""
        limit = self.evaluated + _MOST_EVALUATIONS
        for _ in range(_PASSES):
            before = found
            for group in candidates:
                for other in self._with(found, group, candidates):
                    if self.evaluated > limit:
                        break
                    trial = self.grouping(other)
                    if self._worth(trial.cost) < self._worth(found.cost):
                        found = trial
            if found is before:
                break
        return found

    def _with(
        self, found: Grouping, group: Group, candidates: Sequence[Group]
    ) -> list[list[Group]]:
        """The groups without one, or with what is inside of it, or with it in the place of those
        that it shares steps with."""
        same = [g for g in found.groups if g.steps == group.steps]
        rest = [g for g in found.groups if not (g.steps & group.steps)]
        trials = [[*rest, group], [*rest, self._saving(group)]]
        if not same:
            return trials
        inside = [g for g in candidates if g.steps < group.steps and len(g.scopes) == 1]
        return [rest, [*rest, *_apart(inside)], *trials]

    def _saving(self, group: Group) -> Group:
        saves = frozenset(s for s in group.steps if self.heavy[s] and self._kept[s])
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
            if callable_(path) and self._drops(frozenset(steps))
        ]
        for parent in sorted(sequences):
            children = [p for p in inside if p[:-1] == parent and len(p) == len(parent) + 1]
            children.sort(key=lambda p: inside[p][0])
            for i in range(len(children)):
                for j in range(i + 2, min(i + _LONGEST_RUN, len(children)) + 1):
                    steps = frozenset(s for p in children[i:j] for s in inside[p])
                    if j - i < len(children) and self._drops(steps):
                        found.append(Group(tuple(children[i:j]), steps))
        return found

    def _dropped_by_plan(self, candidates: Sequence[Group]) -> list[Group]:
        taken = []
        for group in candidates:
            inner = self._inner(group.steps)
            size = sum(int(self.flow.size[s]) for s in inner)
            dropped = sum(
                int(self.flow.size[s]) for s in inner if not self._kept[self.flow.makers[s]]
            )
            if size and dropped >= _DROPPED * size:
                taken.append(group)
        return _apart(taken)

    def _repeated(self, units: Sequence[Unit]) -> list[list[Unit]]:
        """Copies that more than one unit reads: in a group of their own they would stay as its
        output. None of them, those that the plan drops, or all."""
        of = {step: k for k, unit in enumerate(units) for step in unit.steps}
        every, dropped = [], []
        for unit in units:
            own = set(unit.steps)
            made = [s for s in range(self.flow.n_storages) if int(self.flow.makers[s]) in own]
            copies = all(self.model.trace.operators[self.flow.makers[s]] in _COPIES for s in made)
            readers = {of[r] for s in made for r in self.flow.readers[s] if r not in own}
            if made and copies and len(readers) > 1:
                every.append(unit)
                if not any(self._kept[self.flow.makers[s]] for s in made):
                    dropped.append(unit)
        choices = [[], dropped, every]
        return [c for k, c in enumerate(choices) if all(len(c) > len(d) for d in choices[:k])]

    def _keeps(self, unit: Unit) -> bool:
        """Whether the plan keeps a result of the unit that others read."""
        own = set(unit.steps)
        return any(
            bool(self.flow.results[s]) and bool(self._kept[self.flow.makers[s]])
            and (bool(self.flow.given_out[s]) or not own.issuperset(self.flow.readers[s]))
            for s in range(self.flow.n_storages) if int(self.flow.makers[s]) in own
        )  # fmt: skip

    @staticmethod
    def _as_groups(units: Sequence[Unit], cuts: Sequence[bool]) -> list[Group]:
        groups, run = [], []
        for unit, cut in zip(units, cuts, strict=True):
            run.append(unit)
            if cut or unit is units[-1]:
                groups.append(
                    Group(
                        tuple(u.path for u in run), frozenset(s for u in run for s in u.steps)
                    )
                )  # fmt: skip
                run = []
        return groups

    def _pruned(self, found: Grouping) -> Grouping:
        """Without groups that drop nothing, and those whose loss costs no memory, largest first."""
        groups = [
            g for g in found.groups
            if any(found.marks[s] & RESULTS or self._has_inside(s) for s in g.steps)
        ]  # fmt: skip
        best = self.grouping(groups, found.repeated)
        for group in sorted(groups, key=lambda g: -len(g.steps)):
            other = self.grouping([g for g in best.groups if g is not group], found.repeated)
            if other.cost.live_peak_bytes <= best.cost.live_peak_bytes:
                best = other
        return best

    def _has_inside(self, step: int) -> bool:
        return bool(self.model.exact.has_auxiliaries[step])

    def _drops(self, steps: frozenset[int]) -> bool:
        return bool(self._inner(steps))

    def _inner(self, steps: frozenset[int]) -> list[int]:
        """Storages of results that are read in a group alone and that autograd saves."""
        flow = self.flow
        first = self.model.trace.first
        return [
            s for step in steps for s in range(int(first[step]), int(first[step + 1]))
            if flow.results[s] and flow.size[s] and not flow.given_out[s]
            and steps.issuperset(flow.readers[s])
        ]  # fmt: skip

    def _final(self, storage: int, copied: set[int]) -> set[int]:
        """Who reads a storage, through what is made anew for each."""
        found: set[int] = set()
        stack, seen = [storage], {storage}
        first = self.model.trace.first
        while stack:
            for reader in self.flow.readers[stack.pop()]:
                if reader not in copied:
                    found.add(reader)
                    continue
                for s in range(int(first[reader]), int(first[reader + 1])):
                    if self.flow.given_out[s]:
                        found.add(-1)
                    if s not in seen:
                        seen.add(s)
                        stack.append(s)
        return found

    def _cost(self, marks: Flags) -> TorchCost:
        key = marks.tobytes()
        if key not in self._known:
            self.evaluated += 1
            self._known[key] = self.model.exact.evaluate(marks)
        return self._known[key]

    def _worth(self, cost: TorchCost) -> tuple[float, float]:
        """Less is better: memory, and more of it for recomputation beyond the plan's."""
        if not cost.feasible:
            return float("inf"), 0.0
        over = max(0.0, cost.recompute_seconds - _SLACK * self.plan_cost.recompute_seconds)
        return cost.live_peak_bytes * (1 + over / self._forward), cost.recompute_seconds


def _apart(groups: Iterable[Group]) -> list[Group]:
    """Those groups that share no step with one before them."""
    taken: set[int] = set()
    apart = []
    for group in groups:
        if taken.isdisjoint(group.steps):
            taken |= group.steps
            apart.append(group)
    return apart
