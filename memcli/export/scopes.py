"""A plan in terms of whole functions: which runs of layers, or modules, to wrap as checkpoints.

What ``torch.utils.checkpoint``, ``tf.recompute_grad`` and ``jax.checkpoint`` offer is less fine
than a plan: a function is wrapped, its inputs and outputs stay, and everything inside is dropped
and recomputed when the backward pass comes to it. Here is what such groups cost, by the exact
memory model; :mod:`memcli.export.run_groups` and :mod:`memcli.export.module_groups` find groups
whose insides the plan drops, and move them about while that gets better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory.model import TorchCost
from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.engines.torch.memory.trace import Trace
from memcli.export.layer_units import Dataflow, Path, Unit
from memcli.graph.training import Flags
from memcli.marks import AGAIN, AUXILIARY, EACH, KEPT, RESULTS

# How much more recomputation than the plan's groups may take; beyond, memory must pay for it.
_SLACK = 1.1
# Searches: rounds through all moves, evaluations, and how many of the best starts are moved about.
PASSES = 3
MOST_EVALUATIONS = 3000
STARTS = 2


@dataclass(frozen=True)
class Group:
    """Wrapped together: steps, and the scopes that they are.

    ``saves``: steps whose result stays all the same (a policy says so).
    """

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


class ScopeCosts:
    """Costs of groups beside one plan. ``kept``: over steps, whether the plan keeps its result."""

    def __init__(self, model: TorchPlanModel, plan: Flags) -> None:
        self.model = model
        self.flow = dataflow(model.trace)
        self.plan_cost = model.exact.evaluate(plan)
        self.kept: NDArray[np.bool_] = (plan & RESULTS) == KEPT
        self.evaluated = 0
        self._known: dict[bytes, TorchCost] = {}
        self._forward = max(model.forward_seconds, 1e-12)

    def grouping(self, groups: Iterable[Group], repeated: Sequence[Unit] = ()) -> Grouping:
        """What groups cost: the figure for what is wrapped, not for the plan.

        A group is recomputed as a whole, up to what is asked for, saved results or not: while it
        does, it takes as much as if none were saved.
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
        """The groups as a plan.

        Dropped is what is read within its own group alone, and what a function saves inside itself.
        """
        flow = self.flow
        group_of = {step: g for g, group in enumerate(groups) for step in group.steps}
        copied = {step for unit in repeated for step in unit.steps}
        marks = self.model.none()
        escapes = np.zeros(len(marks), bool)
        for storage in range(flow.n_storages):
            step = int(flow.makers[storage])
            if not flow.results[storage] or (step not in group_of and step not in copied):
                continue
            within = {group_of.get(reader, -1) for reader in self.final(storage, copied)}
            if step in copied:
                escapes[step] |= bool(flow.given_out[storage]) or -1 in within
            else:
                escapes[step] |= bool(flow.given_out[storage]) or within != {group_of[step]}
        for group in groups:
            for step in group.steps:
                stays = escapes[step] or step in group.saves
                marks[step] = (KEPT if stays else AGAIN) | AUXILIARY
        for step in copied:
            marks[step] = KEPT if escapes[step] else EACH | AUXILIARY
        return marks

    def pruned(self, found: Grouping) -> Grouping:
        """Without groups that drop nothing, and those whose loss costs no memory, largest first."""
        groups = [
            g
            for g in found.groups
            if any(found.marks[s] & RESULTS or self._has_inside(s) for s in g.steps)
        ]
        best = self.grouping(groups, found.repeated)
        for group in sorted(groups, key=lambda g: -len(g.steps)):
            other = self.grouping([g for g in best.groups if g is not group], found.repeated)
            if other.cost.live_peak_bytes <= best.cost.live_peak_bytes:
                best = other
        made_anew = [u for u in best.repeated if any(best.marks[s] & RESULTS for s in u.steps)]
        return self.grouping(best.groups, made_anew)

    def inner(self, steps: frozenset[int]) -> list[int]:
        """Storages of results that are read among the steps alone."""
        flow = self.flow
        first = self.model.trace.first
        return [
            s
            for step in steps
            for s in range(int(first[step]), int(first[step + 1]))
            if flow.results[s]
            and flow.size[s]
            and not flow.given_out[s]
            and steps.issuperset(flow.readers[s])
        ]

    def worth(self, cost: TorchCost) -> tuple[float, float]:
        """Less is better: memory, and more of it for recomputation beyond the plan's."""
        if not cost.feasible:
            return float("inf"), 0.0
        over = max(0.0, cost.recompute_seconds - _SLACK * self.plan_cost.recompute_seconds)
        return cost.live_peak_bytes * (1 + over / self._forward), cost.recompute_seconds

    def final(self, storage: int, copied: set[int]) -> set[int]:
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

    def _has_inside(self, step: int) -> bool:
        return bool(self.model.exact.has_auxiliaries[step])

    def _cost(self, marks: Flags) -> TorchCost:
        key = marks.tobytes()
        if key not in self._known:
            self.evaluated += 1
            self._known[key] = self.model.exact.evaluate(marks)
        return self._known[key]
