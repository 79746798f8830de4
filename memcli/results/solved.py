"""A schedule of a graph of costs, and what is known of better ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.graph.cost_graph import CostGraph


@dataclass
class Solved:
    """A schedule, and what is known of better ones."""

    path: str
    graph: CostGraph
    budget: int | None  # bytes; None: the least peak was asked for
    schedule: NDArray[np.int64]  # values by their place in the graph's order
    memory: NDArray[np.int64]  # bytes at each step
    peak: int
    plain_peak: int
    peak_bound: int  # bytes that no schedule gets under
    extra: float  # time above the plain order's, the graph's unit
    lower_extra: float  # no schedule within the budget takes less
    proven: bool
    found_by: str
    found_after: float  # seconds of search until the schedule was found
    seconds: float  # of the whole search

    @property
    def overhead_percent(self) -> float:
        """Extra time in percent of the plain order's."""
        return _percent(self.extra, self.graph)

    @property
    def lower_bound_percent(self) -> float:
        """What ``overhead_percent`` cannot be less than."""
        return min(self.overhead_percent, _percent(self.lower_extra, self.graph))

    @property
    def ids(self) -> list[int | str]:
        """The schedule by the file's own ids."""
        return [self.graph.ids[v] for v in self.schedule]

    def to_json(self) -> dict[str, Any]:
        """The object that ``solve --json`` prints."""
        from memcli.reports.solve_report import solve_json

        return solve_json(self)


def _percent(extra: float, graph: CostGraph) -> float:
    plain = graph.plain_seconds
    return 100 * max(0.0, extra) / plain if plain > 0 else 0.0
