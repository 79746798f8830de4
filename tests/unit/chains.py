"""Random graphs like networks: a chain of operators with some skips, made for the bounds' tests."""

from __future__ import annotations

import random
from typing import Any

from memcli.graph.training import TrainingGraph
from tests.unit.test_pool import to_graph


def chain_graph(
    seed: int, n_operators: int, *, sizes: tuple[int, ...] = (50, 60, 100)
) -> TrainingGraph:
    """A chain of operators over one input, each with a weight or without; some read an earlier
    one as well. Gradients read the gradients of the readers, and, drawn at random, the operator's
    inputs and its output. No input is ignored."""
    chance = random.Random(seed)
    nodes: list[dict[str, Any]] = []

    def add(reads: list[tuple[int, int]], owner: int, deps: list[int], out: list[int]) -> int:
        variable = owner == -1 and not reads
        nodes.append({"var": variable, "in": reads, "deps": deps, "owner": owner, "sizes": out})
        return len(nodes) - 1

    previous = add([], -1, [], [chance.choice(sizes)])
    operators: list[int] = []
    for _ in range(n_operators):
        reads = [(previous, 0)]
        if chance.random() < 0.3:
            reads.append((add([], -1, [], [chance.choice(sizes)]), 0))
        if operators and chance.random() < 0.3:
            earlier = chance.choice(operators)
            if earlier != previous:
                reads.append((earlier, 0))
        out = [chance.choice(sizes)]
        if chance.random() < 0.15:
            out.append(chance.choice(sizes))
        previous = add(reads, -1, [], out)
        operators.append(previous)
    n_forward = len(nodes)
    gradient: dict[int, tuple[int, dict[int, int]]] = {}
    for v in reversed(operators):
        incoming = [
            (gradient[u][0], gradient[u][1][v])
            for u in operators
            if u in gradient and v in gradient[u][1]
        ]
        reads = list(incoming)
        inputs = nodes[v]["in"]
        slots = {u: k for k, (u, _) in enumerate(inputs)}
        out = [nodes[u]["sizes"][0] for u, _ in inputs]
        if incoming and chance.random() < 0.2:
            # as of a sum: made of the gradients behind it alone, nobody's own
            gradient[v] = (add(incoming, -1, [], out), slots)
            continue
        if chance.random() < 0.7:
            reads += [(u, k) for u, k in inputs[:1]]
        if chance.random() < 0.3:
            reads += [(v, k) for k in range(len(nodes[v]["sizes"]))]
        gradient[v] = (add(reads, v, [v], out), slots)
    graph = to_graph(nodes, n_forward, chance)
    graph.in_ignored[:] = 0
    return graph


def plain_chain(length: int) -> TrainingGraph:
    """A chain without skips in which each gradient reads its operator's input alone."""
    nodes: list[dict[str, Any]] = [{"var": True, "in": [], "deps": [], "owner": -1, "sizes": [100]}]
    for v in range(length):
        nodes.append({"var": False, "in": [(v, 0)], "deps": [], "owner": -1, "sizes": [100]})
    for v in range(length, 0, -1):
        reads = [(len(nodes) - 1, 0)] if v < length else []
        nodes.append(
            {"var": False, "in": [*reads, (v - 1, 0)], "deps": [v], "owner": v, "sizes": [100]}
        )
    graph = to_graph(nodes, length + 1, random.Random(0))
    graph.in_ignored[:] = 0
    graph.pair_ptr[:] = 0
    graph.fails_unread[:] = 0
    return graph
