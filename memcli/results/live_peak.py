"""What is alive at the moment of the live peak, by tensor, operator and stage. Bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


FEATURE_MAPS = "feature maps"


GRADIENTS = "gradients"


RECOMPUTED = "recomputed"


PARTS = (FEATURE_MAPS, GRADIENTS, RECOMPUTED)


@dataclass
class PeakParts:
    """Bytes by part: forward tensors, backward tensors, and copies of recomputed ones."""

    feature_maps: int = 0
    gradients: int = 0
    recomputed: int = 0

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.feature_maps + self.gradients + self.recomputed

    def add(self, part: str, size: int) -> None:
        """Count ``size`` bytes to one of PARTS."""
        if part == FEATURE_MAPS:
            self.feature_maps += size
        elif part == GRADIENTS:
            self.gradients += size
        else:
            self.recomputed += size


@dataclass
class LiveTensor:
    """A tensor that holds memory at the peak. ``size`` in bytes.

    ``entry`` and ``node`` are numbers of the graph without recomputation, for a copy those of
    what it is a copy of.
    """

    entry: int
    node: int
    part: str  # one of PARTS
    size: int


@dataclass
class LivePeak:
    """The moment when most is alive."""

    step: int  # place in the execution order
    node: int  # the node that runs then; -1 in a graph without operators
    running: str  # 'forward', 'backward' or 'recomputation'
    tensors: list[LiveTensor] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes alive."""
        return sum(tensor.size for tensor in self.tensors)

    def split(self) -> PeakParts:
        """All of it, by part."""
        whole = PeakParts()
        for tensor in self.tensors:
            whole.add(tensor.part, tensor.size)
        return whole

    def grouped(self, key: Callable[[LiveTensor], K]) -> dict[K, PeakParts]:
        """By any property of the tensors."""
        groups: dict[K, PeakParts] = {}
        for tensor in self.tensors:
            groups.setdefault(key(tensor), PeakParts()).add(tensor.part, tensor.size)
        return groups
