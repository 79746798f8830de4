"""Small graphs of costs, and the optimum by exhaustive search."""

from __future__ import annotations

import heapq
import random

from memcli.graph.cost_graph import CostGraph


def random_graph(chance: random.Random, largest: int = 9) -> CostGraph:
    """At most ``largest`` values with small costs, zero included; some with broken times."""
    n = chance.randint(2, largest)
    density = chance.choice([0.2, 0.35, 0.5, 0.7])
    reads = [
        [u for u in range(v) if chance.random() < density or (u == v - 1 and chance.random() < 0.5)]
        for v in range(n)
    ]
    broken = chance.random() < 0.2
    seconds = [chance.randint(0, 9) + (chance.random() if broken else 0) for _ in range(n)]
    return CostGraph.build(list(range(n)), seconds, [chance.randint(0, 9) for _ in range(n)], reads)


def optimum(graph: CostGraph, budget: int) -> float | None:
    """The least extra time of any schedule within ``budget`` bytes; None where there is none.

    Dijkstra over (values computed so far, values in memory): a step drops a value, or computes
    one whose inputs are in memory. Values are freed whenever that helps, so this is the space of
    all schedules, whatever their order within a stage.
    """
    n = graph.n
    sizes, seconds = graph.sizes.tolist(), graph.seconds.tolist()
    inputs = [sum(1 << int(u) for u in graph.inputs(v)) for v in range(n)]
    memory = [sum(sizes[v] for v in range(n) if held >> v & 1) for held in range(1 << n)]
    nearest = {(0, 0): 0.0}
    heap = [(0.0, 0, 0)]
    while heap:
        spent, computed, held = heapq.heappop(heap)
        if spent > nearest[computed, held]:
            continue
        if computed == n:
            return spent - sum(seconds)
        ways = [(spent, computed, held & ~(1 << v)) for v in range(n) if held >> v & 1]
        for v in range(computed + 1):
            after = held | 1 << v
            if not inputs[v] & ~held and after != held and memory[after] <= budget:
                ways.append((spent + seconds[v], max(computed, v + 1), after))
        for way in ways:
            if way[0] < nearest.get(way[1:], float("inf")) - 1e-12:
                nearest[way[1:]] = way[0]
                heapq.heappush(heap, way)
    return None
