"""What several searches on one model found. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from memcli.graph.cost import Cost
from memcli.results.planned import Source, Step


@dataclass
class Row:
    """What one search found. Sizes in bytes, ``seconds`` of the search alone.

    Where a budget is not met (``feasible`` is false) the figures are those of the plan that came
    nearest to it. They are None where the strategy could not be run at all: ``problem`` says why.
    """

    strategy: str
    budget: str | None  # as asked for
    budget_bytes: int | None
    found_by: str | None
    planned_bytes: int | None
    live_peak_bytes: int | None
    recompute_flops: float | None
    recompute_fraction: float | None  # of one forward pass
    time_fraction: float | None  # the same in time, by the cost that searches minimize
    seconds: float
    environment: dict[str, str]
    feasible: bool
    on_frontier: bool = False
    problem: str = ""

    @property
    def label(self) -> str:
        """The row's name: the strategy, and its budget where it has one."""
        return self.strategy if self.budget is None else f"{self.strategy} ≤{self.budget}"


@dataclass
class Comparison:
    """The rows, and the graph that all of them are about. Sizes in bytes."""

    source: Source
    sha256: str  # of the graph without any plan
    analysis: Step
    operator_count: int  # nodes that compute something
    engine: str  # that trains it
    baseline: Cost
    lower_bound: int
    rows: list[Row]
    notes: list[str]
    device: str = ""  # that figures are of, where they differ by device: cpu or cuda
    restored: list[str] = field(default_factory=list)  # what --as-training did
    cost_of: str = "roofline"  # what stands for the cost of an operator: see Settings.cost

    def to_json(self) -> dict[str, Any]:
        """The object that ``compare --json`` prints."""
        from memcli.reports.compare_report import compare_json

        return compare_json(self)


def mark_frontier(rows: Sequence[Row]) -> None:
    """Mark the feasible rows that no other feasible row dominates.

    One row dominates another where it is no worse in memory and in what is recomputed, by the cost
    that searches minimize, and better in one of them; rows that are equal in both are marked alike.
    """
    points = [_point(row) if row.feasible else None for row in rows]
    real = [point for point in points if point is not None]
    for row, mine in zip(rows, points, strict=True):
        row.on_frontier = mine is not None and not any(
            other[0] <= mine[0] and other[1] <= mine[1] and other != mine for other in real
        )


def _point(row: Row) -> tuple[int, float] | None:
    if row.planned_bytes is None or row.time_fraction is None:
        return None
    return row.planned_bytes, row.time_fraction
