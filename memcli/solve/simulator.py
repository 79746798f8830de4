"""The simulator that judges every schedule, whatever found it.

A schedule is a sequence of values, repeats allowed, whose first occurrences are in the graph's
order. Each use of a value reads its latest computation before that point. A computed value is
live from its computation until its last such use, and at least during its own step. Memory at a
step is the sum of the sizes of all live values, the one being computed included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.compiled import compiled
from memcli.graph.cost_graph import CostGraph


@dataclass
class Simulated:
    """What a schedule takes."""

    peak: int  # bytes
    seconds: float  # the graph's unit of time
    memory: NDArray[np.int64]  # one per step, bytes


@compiled(nogil=True)
def memory_by_step(schedule, sizes, read_ptr, reads):
    """Bytes live at each step. One pass from the end: whoever reads makes live."""
    wanted = np.zeros(sizes.shape[0], np.uint8)
    memory = np.empty(schedule.shape[0], np.int64)
    live = 0
    for p in range(schedule.shape[0] - 1, -1, -1):
        v = schedule[p]
        if wanted[v] == 0:
            live += sizes[v]
        wanted[v] = 0
        for i in range(read_ptr[v], read_ptr[v + 1]):
            u = reads[i]
            if wanted[u] == 0:
                wanted[u] = 1
                live += sizes[u]
        memory[p] = live
        live -= sizes[v]
    return memory


def check_schedule(graph: CostGraph, schedule: NDArray[np.int64]) -> None:
    """A schedule computes every value, for the first time in the graph's order.

    Raises:
        ValueError: it does not.
    """
    expected = 0
    for v in schedule:
        if v > expected or v < 0:
            raise ValueError(f"value {v} comes before value {expected} was computed")
        expected += int(v == expected)
    if expected != graph.n:
        raise ValueError(f"value {expected} is never computed")


def simulate(graph: CostGraph, schedule: NDArray[np.int64]) -> Simulated:
    """Peak, time and memory by step of a checked schedule.

    Raises:
        ValueError: not a schedule of this graph (see :func:`check_schedule`).
    """
    check_schedule(graph, schedule)
    memory = memory_by_step(schedule, graph.sizes, graph.read_ptr, graph.reads)
    peak = int(memory.max()) if len(memory) else 0
    return Simulated(peak, float(graph.seconds[schedule].sum()), memory)


def plain_schedule(graph: CostGraph) -> NDArray[np.int64]:
    """Every value once."""
    return np.arange(graph.n, dtype=np.int64)


def working_set_bound(graph: CostGraph) -> int:
    """Bytes that no schedule gets under: the largest value with all that it reads."""
    return max(
        (int(graph.sizes[v] + graph.sizes[graph.inputs(v)].sum()) for v in range(graph.n)),
        default=0,
    )
