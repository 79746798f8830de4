"""Annealing in rounds that grow, so that easy graphs end soon and hard ones use their time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.graph.cost_graph import CostGraph
from memcli.request import Progress
from memcli.solve.annealing import anneal
from memcli.solve.base import BestSchedule
from memcli.solve.simulator import plain_schedule

# What a proposal takes for each value and each read of the graph, measured, and rounded up. Work
# is counted in this unit instead of by the clock, so that a search repeats itself exactly.
_SECONDS_PER_ITEM = 3e-9
_FIRST_ROUND = 0.01
_CHUNK = 0.1
# Rounds without a gain after which the search has ended (twice as many where nothing fits yet),
# once seven eighths of the work were without one, and the least work before that, in seconds for
# each value.
_PATIENCE = 3
_WORK_PER_VALUE = 0.005
# First and last temperature of a round, in percent of the plain order's time, and whether the
# round begins at the best schedule or at the plain order, for another region; they take turns.
_TURNS = ((0.05, 0.001, True), (0.3, 0.003, False), (0.1, 0.0003, True))


def capacity(graph: CostGraph) -> int:
    """The longest sequence that is looked at."""
    return 6 * graph.n + 64


@dataclass
class Rounds:
    """The rounds of one graph and budget."""

    graph: CostGraph
    best: BestSchedule
    seed: int
    length: float = _FIRST_ROUND  # of the next round, in seconds of expected work
    number: int = 0
    idle: int = 0  # rounds since the last gain
    spent: float = 0.0  # seconds of expected work so far
    gained_at: float = 0.0  # of these, up to the end of the last round that gained
    start: NDArray[np.int64] | None = None  # where to begin while nothing fits; plain without
    _price: float = 0.0

    def __post_init__(self) -> None:
        self._seconds = self.graph.seconds * (100 / max(self.graph.plain_seconds, 1e-300))
        self._price = 10.0 / max(1, self.best.budget)
        self.per_proposal = _SECONDS_PER_ITEM * (self.graph.n + len(self.graph.reads) + 90)

    def run(self, time_limit: float, progress: Progress) -> bool:
        """One round; says whether it gained. Ends early where proven or out of time."""
        best = self.best
        hottest, coldest, from_best = _TURNS[self.number % len(_TURNS)]
        # In a small graph each value is a larger part of the time.
        hottest *= max(1.0, 100 / self.graph.n)
        current: NDArray[np.int64]
        if best.fits and from_best:
            current = best.sequence
        elif self.start is not None and from_best:
            current = self.start
        else:
            current = plain_schedule(self.graph)
        gained = False
        proposals = max(1000, int(self.length / self.per_proposal))
        chunks = max(1, round(self.length / _CHUNK))
        for chunk in range(chunks):
            hot = hottest * (coldest / hottest) ** (chunk / chunks)
            cold = hottest * (coldest / hottest) ** ((chunk + 1) / chunks)
            found, _, current, self._price, lowest, _ = anneal(
                current,
                self.graph.sizes,
                self._seconds,
                self.graph.read_ptr,
                self.graph.reads,
                best.budget,
                capacity(self.graph),
                -(-proposals // chunks),
                hot,
                cold,
                self._price,
                self.seed * 1_000_003 + self.number * 1009 + chunk,
                100.0,
            )
            if len(found):
                gained |= best.offer(found, "annealing")
            elif not best.fits:
                best.offer(lowest, "annealing")
            if best.fits:
                state = f"{100 * best.extra / max(self.graph.plain_seconds, 1e-300):.3f}% so far"
            else:
                state = "no schedule fits so far"
            progress(state, min(1.0, best.elapsed / time_limit) if time_limit else None)
            if best.proven or best.infeasible or best.elapsed > time_limit:
                break
        self.number += 1
        self.spent += self.length
        self.idle = 0 if gained else self.idle + 1
        if gained:
            self.gained_at = self.spent
        return gained

    def search(self, time_limit: float, progress: Progress, longest: float | None = None) -> None:
        """Rounds until proven, at a plateau, or out of time.

        A round is as long as all before it together, up to a seventh of the limit or ``longest``.
        The time limit is kept by counting work; the clock only cuts a machine that is slow.
        """
        best = self.best
        while not (best.proven or best.infeasible or best.elapsed > time_limit):
            patience = _PATIENCE if best.fits else 2 * _PATIENCE
            enough = max(_WORK_PER_VALUE * self.graph.n, 8 * self.gained_at)
            if self.idle >= patience and self.spent > enough:
                break
            left = time_limit - self.spent
            if left < 0.03 * time_limit:
                break
            if longest is None:
                # Several whole rounds, even where the machine is slower than expected.
                self.length = min(self.length, time_limit / 7)
            self.run(time_limit, progress)
            self.length = max(_FIRST_ROUND, self.spent)
            if longest is not None:
                self.length = min(self.length, longest)
