"""What a plan costs, and what no plan can cost less than, whatever the engine."""

from __future__ import annotations

from dataclasses import dataclass

from memcli.graph.training import Plan

# MXNet's NNVM_EXEC_MATCH_RANGE where nobody sets it; that of engines which have no such choice.
DEFAULT_MATCH_RANGE = 16


@dataclass
class Cost:
    """Memory and recomputation of one plan. Sizes in bytes.

    ``total_bytes``: MXNet's own figure (``debug_str``), every element counted as 4 bytes.
    ``pool_bytes``: the same blocks with true element sizes.
    """

    total_bytes: int
    pool_bytes: int
    live_peak_bytes: int
    recompute_flops: float
    forward_flops: float
    match_range: int = DEFAULT_MATCH_RANGE
    recompute_seconds: float = 0.0  # by the model's cost of operators
    forward_seconds: float = 0.0

    @property
    def total_mb(self) -> int:
        """The figure of ``Total N MB allocated``."""
        return self.total_bytes >> 20

    @property
    def recompute_fraction(self) -> float:
        """Recomputed FLOPs as a part of one forward pass."""
        return self.recompute_flops / self.forward_flops if self.forward_flops else 0.0

    @property
    def time_fraction(self) -> float:
        """Time of what is recomputed as a part of one forward pass, by the model's cost."""
        return self.recompute_seconds / self.forward_seconds if self.forward_seconds else 0.0


@dataclass
class Found:
    """A plan with its cost."""

    plan: Plan
    cost: Cost


@dataclass(frozen=True)
class LowerBound:
    """Proofs about the memory of plans.

    Attributes:
        bytes: no plan takes less.
        within: nor does any plan that recomputes no more than a limit; no less than ``bytes``.
    """

    bytes: int
    within: int


def gap(bound: int, planned: int) -> float:
    """How far a plan's memory may be from the least possible.

    Args:
        bound: bytes that no plan gets under.
        planned: bytes that the plan takes.

    Returns:
        A part of ``planned``, 0 to 1; 0 proves that no plan takes less.
    """
    return max(0.0, 1.0 - bound / planned) if planned else 0.0
