"""A graph of costs: what it takes to compute each value, how large it is, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class CostGraph:
    """``n`` values in the order in which they are first computed: value ``v`` reads only ``< v``.

    Everything inside memcli speaks of values by their place in that order; ``ids`` are the names
    by which the file knows them.
    """

    ids: list[int | str]  # n, as the file has them, in execution order
    seconds: NDArray[np.float64]  # n, time to compute once, in the file's own unit
    sizes: NDArray[np.int64]  # n, bytes
    read_ptr: NDArray[np.int64]  # n + 1
    reads: NDArray[np.int64]  # e, the values that v reads: reads[read_ptr[v]:read_ptr[v + 1]]
    name: str = ""

    @property
    def n(self) -> int:
        """How many values."""
        return len(self.ids)

    @property
    def plain_seconds(self) -> float:
        """The time of the plain order."""
        return float(self.seconds.sum())

    def inputs(self, value: int) -> NDArray[np.int64]:
        """The values that ``value`` reads, rising."""
        return self.reads[self.read_ptr[value] : self.read_ptr[value + 1]]

    @classmethod
    def build(
        cls,
        ids: list[int | str],
        seconds: list[float],
        sizes: list[int],
        reads: list[list[int]],
        name: str = "",
    ) -> CostGraph:
        """A graph from Python lists.

        Args:
            ids: the file's names, in execution order.
            seconds: time to compute each value, in the file's own unit.
            sizes: bytes of each value.
            reads: of each value, places of the values that it reads; may repeat one and need not be
                sorted.
            name: the graph's.
        """
        unique = [sorted(set(r)) for r in reads]
        pointer = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(r) for r in unique], out=pointer[1:])
        flat = np.array([u for r in unique for u in r], np.int64)
        return cls(
            ids, np.array(seconds, np.float64), np.array(sizes, np.int64), pointer, flat, name
        )
