"""Dynamic programming over lower sets of a forward graph (Kusumoto et al., NeurIPS 2019).

A lower set holds with each tensor all that it depends on. A plan is a chain of lower sets from
the empty one to the whole graph. The forward pass keeps, of each set, only the tensors that
something outside it reads; the backward pass computes each difference of neighbouring sets
again, last first. By their section 3, with ``V`` the difference, ``L`` the set at its upper end,
``W`` what earlier sets keep, ``A`` the readers of ``L`` outside it and ``B`` what else those read
outside ``L``, the peak of a difference's backward pass is ``W + 2 V + A + B`` (sizes).

Three families of lower sets to choose from. ``approximate`` is theirs (section 4.3): the sets of
all that one tensor depends on, itself included. ``prefixes`` has also each beginning of the
execution order, so that it is never worse. ``exact`` has all lower sets, which only small graphs
or those like chains have few of.

Sets are Python integers used as bit masks: bit ``v`` is tensor ``v``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.graph.forward_graph import ForwardGraph

FAMILIES = ("approximate", "prefixes", "exact")


@dataclass
class LowerSetChain:
    """A chain of lower sets, and what it takes by the paper's formulas."""

    sets: list[int]  # from the first that is not empty to the whole graph
    peak: int  # bytes
    recompute_seconds: float


class LowerSets:
    """The family of lower sets of a graph, and chains in it.

    Raises:
        ValueError: the family is ``exact`` and has more than ``most`` sets, or is unknown.
    """

    def __init__(self, graph: ForwardGraph, family: str = "approximate", most: int = 4000) -> None:
        if family not in FAMILIES:
            raise ValueError(f"no family {family}: {', '.join(FAMILIES)}")
        self.graph = graph
        self.full = (1 << graph.n) - 1
        self._inputs = [sum(1 << u for u in reads) for reads in graph.reads]
        self._readers = [0] * graph.n
        for v, reads in enumerate(graph.reads):
            for u in reads:
                self._readers[u] |= 1 << v
        below = [1 << v for v in range(graph.n)]
        for v, reads in enumerate(graph.reads):
            for u in reads:
                below[v] |= below[u]
        if family == "exact":
            sets = self._all(most)
        else:
            sets = {0, self.full, *below}
            if family == "prefixes":
                sets |= {(1 << v) - 1 for v in range(graph.n)}
        self.sets = sorted(sets, key=lambda s: (self._size(s), bin(s).count("1")))
        self._transitions()

    def _members(self, mask: int) -> list[int]:
        members = []
        while mask:
            low = mask & -mask
            members.append(low.bit_length() - 1)
            mask ^= low
        return members

    def _size(self, mask: int) -> int:
        return sum(self.graph.sizes[v] for v in self._members(mask))

    def _seconds(self, mask: int) -> float:
        return sum(self.graph.seconds[v] for v in self._members(mask))

    def _all(self, most: int) -> set[int]:
        found = {0}
        fresh = [0]
        while fresh:
            s = fresh.pop()
            for v in range(self.graph.n):
                bigger = s | 1 << v
                if bigger != s and not self._inputs[v] & ~s and bigger not in found:
                    if len(found) >= most:
                        raise ValueError(f"more than {most} lower sets")
                    found.add(bigger)
                    fresh.append(bigger)
        return found

    def _union(self, masks: list[int], of: int) -> int:
        union = 0
        for v in self._members(of):
            union |= masks[v]
        return union

    def border(self, lower: int) -> int:
        """The tensors of ``lower`` that something outside it reads."""
        return self._union(self._inputs, self.full & ~lower) & lower

    def _transitions(self) -> None:
        """For each pair of sets, one within the other: own memory, kept memory, kept time.

        What a step of the chain keeps are border tensors of the upper set that are not in the
        lower one; whatever the lower one keeps stays.
        """
        count = len(self.sets)
        sizes = np.array([self._size(s) for s in self.sets], np.int64)
        borders = [self.border(s) for s in self.sets]
        self._to: list[NDArray[np.int64]] = []
        self._own: list[NDArray[np.int64]] = []
        self._kept: list[NDArray[np.int64]] = []
        self._kept_seconds: list[NDArray[np.float64]] = []
        fringe = []
        for s in self.sets:
            after = self._union(self._readers, s) & ~s
            beside = self._union(self._inputs, after) & ~s
            fringe.append(self._size(after) + self._size(beside))
        graph = self.graph
        size_of = np.array(graph.sizes, np.int64)
        seconds_of = np.array(graph.seconds, np.float64)
        members = [np.array(self._members(b), np.int64) for b in borders]
        for i, lower in enumerate(self.sets):
            to = [j for j in range(count) if j != i and not lower & ~self.sets[j]]
            kept = np.zeros(len(to), np.int64)
            seconds = np.zeros(len(to))
            inside = np.zeros(graph.n, bool)
            inside[self._members(lower)] = True
            for k, j in enumerate(to):
                new = members[j][~inside[members[j]]]
                kept[k] = size_of[new].sum()
                seconds[k] = seconds_of[new].sum()
            at = np.array(to, np.int64)
            own = 2 * (sizes[at] - sizes[i]) + np.array([fringe[j] for j in to], np.int64)
            order = np.argsort(own, kind="stable")
            self._to.append(at[order])
            self._own.append(own[order])
            self._kept.append(kept[order])
            self._kept_seconds.append(seconds[order])

    def least_budget(self) -> int:
        """The least peak of any chain in the family, bytes.

        Bisection: for a budget, the least memory kept at each set is a shortest path.
        """
        low, high = 0, int(2 * sum(self.graph.sizes)) + 1
        while low < high:
            middle = (low + high) // 2
            if self._reachable(middle):
                high = middle
            else:
                low = middle + 1
        return low

    def _reachable(self, budget: int) -> bool:
        far = np.iinfo(np.int64).max
        held = np.full(len(self.sets), far, np.int64)
        held[0] = 0
        for i in range(len(self.sets)):
            if held[i] == far:
                continue
            fits = int(np.searchsorted(self._own[i], budget - held[i], side="right"))
            to = self._to[i][:fits]
            held[to] = np.minimum(held[to], held[i] + self._kept[i][:fits])
        return bool(held[-1] < far)

    def chain(self, budget: int) -> LowerSetChain | None:
        """The chain of least recomputation whose peak is at most ``budget``; None if there is none.

        States are (set, time kept) with the least memory kept; of two states of one set, one that
        keeps less time with no less memory is dropped.
        """
        states: list[dict[float, tuple[int, int, float]]] = [{} for _ in self.sets]
        states[0][0.0] = (0, -1, 0.0)
        for i in range(len(self.sets)):
            front = _undominated(states[i])
            states[i] = front
            for spent, (held, _, _) in front.items():
                fits = int(np.searchsorted(self._own[i], budget - held, side="right"))
                for k in range(fits):
                    j = int(self._to[i][k])
                    time = spent + float(self._kept_seconds[i][k])
                    memory = held + int(self._kept[i][k])
                    old = states[j].get(time)
                    if old is None or old[0] > memory:
                        states[j][time] = (memory, i, spent)
        if not states[-1]:
            return None
        spent = max(states[-1])
        recomputed = self._seconds(self.full) - spent
        sets: list[int] = []
        i = len(self.sets) - 1
        while i > 0:
            sets.append(self.sets[i])
            _, i, spent = states[i][spent]
        sets.reverse()
        return LowerSetChain(sets, self.peak(sets), recomputed)

    def peak(self, sets: list[int]) -> int:
        """The peak of a chain by the paper's formula, bytes."""
        worst = 0
        kept = 0
        below = 0
        for s in sets:
            after = self._union(self._readers, s) & ~s
            beside = self._union(self._inputs, after) & ~s
            own = 2 * self._size(s & ~below) + self._size(after) + self._size(beside)
            worst = max(worst, self._size(kept) + own)
            kept |= self.border(s) & ~below
            below = s
        return worst

    def schedule(self, chain: LowerSetChain) -> NDArray[np.int64]:
        """The chain as a sequence over the joint graph (:meth:`ForwardGraph.joint`).

        ``~v`` where ``v`` is recomputed: before a difference's first gradient, all of the
        difference that is not kept.
        """
        n = self.graph.n
        kept = 0
        below = 0
        parts: list[tuple[int, int]] = []  # difference, what of it is kept
        for s in chain.sets:
            kept |= self.border(s) & ~below
            parts.append((s & ~below, kept & s & ~below))
            below = s
        entries = list(range(n))
        part_of = {v: k for k, (part, _) in enumerate(parts) for v in self._members(part)}
        done: set[int] = {len(parts) - 1}  # the last difference is still there
        for v in reversed(range(n)):
            k = part_of[v]
            if k not in done:
                done.add(k)
                part, stays = parts[k]
                entries += [~u for u in self._members(part & ~stays)]
            entries.append(2 * n - 1 - v)
        return np.array(entries, np.int64)


def _undominated(
    states: dict[float, tuple[int, int, float]],
) -> dict[float, tuple[int, int, float]]:
    """Of states by time kept, those with less memory than all that keep more."""
    front: dict[float, tuple[int, int, float]] = {}
    least: int | None = None
    for time in sorted(states, reverse=True):
        if least is None or states[time][0] < least:
            least = states[time][0]
            front[time] = states[time]
    return front
