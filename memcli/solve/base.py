"""What every strategy is given, and what it gives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memcli.graph.cost_graph import CostGraph
from memcli.solve.simulator import plain_schedule, simulate


@dataclass
class ScheduleSettings:
    """How long and how to search."""

    time_limit: float = 60.0  # seconds
    seed: int = 0
    prove: bool = True  # spend time on a proof where the graph is small enough
    strategy: str = "auto"


@dataclass
class BestSchedule:
    """The best schedule so far, and what is known of better ones. Times are the graph's unit."""

    graph: CostGraph
    budget: int
    started: float = field(default_factory=time.monotonic)
    sequence: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    seconds: float = float("inf")
    found_after: float = 0.0  # seconds of search until the best was seen
    found_by: str = "plain"
    least: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    least_peak: int = 0
    lower_extra: float = 0.0  # no schedule takes less than plain plus this
    infeasible: bool = False  # proven

    def __post_init__(self) -> None:
        self.offer(plain_schedule(self.graph), "plain")

    @property
    def fits(self) -> bool:
        """Whether a schedule within the budget is known."""
        return len(self.sequence) > 0

    @property
    def extra(self) -> float:
        """Time of the best above the plain order's."""
        return self.seconds - self.graph.plain_seconds

    @property
    def proven(self) -> bool:
        """Whether nothing better can be: the bound meets the schedule.

        Exactly so where times are whole numbers of a few digits; else to two millionths of the
        extra time, which is what the program's arithmetic is good for.
        """
        slack = 2e-6 * max(self.extra, 0.0) + 1e-12 * self.graph.plain_seconds
        return self.fits and self.extra <= self.lower_extra + slack

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.started

    def offer(self, sequence: NDArray[np.int64], by: str) -> bool:
        """Take a sequence (``~v`` where ``v`` is recomputed) if it is better; simulated anew.

        Whatever found it, only the simulator's word counts.
        """
        schedule = np.where(sequence < 0, ~sequence, sequence)
        result = simulate(self.graph, schedule)
        if not len(self.least) or result.peak < self.least_peak:
            self.least, self.least_peak = schedule, result.peak
        slack = 1e-12 * self.graph.plain_seconds
        if result.peak > self.budget or result.seconds >= self.seconds - slack:
            return False
        self.sequence, self.seconds = sequence.copy(), result.seconds
        self.found_after, self.found_by = self.elapsed, by
        return True


def as_sequence(schedule: NDArray[np.int64]) -> NDArray[np.int64]:
    """A schedule with ``~v`` wherever ``v`` is recomputed."""
    sequence = schedule.copy()
    first = 0
    for p, v in enumerate(schedule):
        if v == first:
            first += 1
        else:
            sequence[p] = ~v
    return sequence
