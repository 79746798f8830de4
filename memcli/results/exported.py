"""A plan as groups of layers that a framework can wrap, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from memcli.formats.node_plan import NodePlan
from memcli.results.planned import Source, Step


class ExportCost(Protocol):
    """What a step takes and recomputes. Bytes, FLOPs, seconds."""

    @property
    def live_peak_bytes(self) -> int:
        """The most that is alive at once."""

    @property
    def recompute_flops(self) -> float:
        """What is recomputed."""

    @property
    def recompute_seconds(self) -> float:
        """The same in time, by the roofline."""


@dataclass(frozen=True)
class WrappedGroup:
    """Scopes that are wrapped together. ``saved``: {kind: calls whose result stays}. Bytes.

    ``dropped_bytes``: of tensors that are made inside, and stay without the wrapping.
    """

    scopes: list[str]
    operators: int
    dropped_bytes: int
    saved: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Exported:
    """What is wrapped, and what it costs beside the plan and no plan at all."""

    source: Source
    plan: NodePlan
    target: str
    origin: str
    analysis: Step
    operator_count: int  # nodes that compute something
    groups: list[WrappedGroup]
    repeated: list[str]
    baseline: ExportCost
    planned: ExportCost
    cost: ExportCost
    evaluated: int
    notes: list[str]
    output: str | None = None

    def fraction(self, cost: ExportCost) -> float:
        """FLOPs that are recomputed, as a part of one forward pass's."""
        return cost.recompute_flops / max(self.analysis.model.forward_flops, 1.0)

    def to_json(self) -> dict[str, Any]:
        """The object that ``export --json`` prints, the script in it."""
        from memcli.reports.export_report import export_json
        from memcli.reports.export_script import export_script

        return export_json(self, export_script(self, "SCRIPT"))

    def time_fraction(self, cost: ExportCost) -> float:
        """The same in time, by the roofline."""
        return cost.recompute_seconds / max(self.analysis.model.forward_seconds, 1e-12)
