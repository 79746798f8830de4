"""The largest batch that trains in a given memory, without a plan and with one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memcli.graph.cost import Cost
from memcli.graph.training import Plan
from memcli.results.planned import Source, Step
from memcli.results.step_total import Breakdown


@dataclass
class Side:
    """The largest batch, with or without a plan.

    Where not even batch 1 fits, ``batch`` is 0 and the figures are those of batch 1.
    """

    batch: int
    breakdown: Breakdown
    cost: Cost
    next_bytes: int | None  # what one more needs; None where the engine refuses it
    next_problem: str  # and why

    @property
    def fits(self) -> bool:
        """Whether there is such a batch."""
        return self.batch > 0


@dataclass
class Fitted:
    """The answer. Sizes in bytes, ``seconds`` for everything."""

    source: Source
    sha256: str  # of the graph without any plan
    engine: str  # that trains it, as users know it
    memory: int  # as given
    reserve: int
    optimizer: str
    strategy: str  # as asked for
    baseline: Side
    planned: Side
    analysis: Step  # of the baseline, at the planned batch
    operator_count: int  # nodes that compute something
    plan: Plan
    environment: dict[str, str]
    notes: list[str]
    searches: int  # plans searched for
    batches: int  # batches that the engine was asked about
    seconds: float
    form: Any = None  # of the network, that the plan is for, at that batch: the engine's own
    output: str | None = None
    device: str = ""  # that figures are of, where they differ by device: cpu or cuda
    restored: list[str] = field(default_factory=list)  # what --as-training did
    cost_of: str = "roofline"  # what stands for the cost of an operator: see Settings.cost
    reserve_assumed: str = ""  # what the reserve is for, where it was not given

    @property
    def available(self) -> int:
        """What the step may take."""
        return self.memory - self.reserve

    @property
    def ratio(self) -> float | None:
        """Planned batch over the baseline's; None where no batch of the baseline fits."""
        return self.planned.batch / self.baseline.batch if self.baseline.batch else None

    def to_json(self) -> dict[str, Any]:
        """The object that ``fit --json`` prints."""
        from memcli.reports.fit_report import fit_json

        return fit_json(self)
