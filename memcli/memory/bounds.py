"""What no plan can get under."""

from __future__ import annotations

import numpy as np

from memcli.graph.training import TrainingGraph


def working_set_bound(graph: TrainingGraph) -> int:
    """Bytes of the largest operator's own inputs and outputs, a bound for every plan's pool.

    While an operator runs, all it reads and all it writes is allocated, recomputed or not.
    Caller's memory (parameters, inputs, their gradients) does not count, nor an output that may
    share its input's block, nor an input that is read for its shape alone.
    """
    worst = 0
    pooled = (graph.external == 0) & (graph.variable[graph.entry_node] == 0)
    for v in range(graph.n_nodes):
        if graph.variable[v]:
            continue
        begin, end = int(graph.in_ptr[v]), int(graph.in_ptr[v + 1])
        reads = {
            int(graph.in_entry[i])
            for i in range(begin, end)
            if not graph.in_ignored[i] and pooled[graph.in_entry[i]]
        }
        shared = {
            int(graph.first[v] + graph.pair_out[p])
            for p in range(graph.pair_ptr[v], graph.pair_ptr[v + 1])
        }
        writes = {e for e in graph.entries(v) if pooled[e] and e not in shared}
        # in-place inputs of one block count once
        total = int(sum(graph.entry_bytes[e] for e in writes))
        sizes = sorted((int(graph.entry_bytes[e]) for e in reads), reverse=True)
        blocks = _distinct_blocks(graph, reads)
        total += sum(sizes) if blocks else (sizes[0] if sizes else 0)
        worst = max(worst, total)
    return worst


def _distinct_blocks(graph: TrainingGraph, reads: set[int]) -> bool:
    """Whether no two of the entries can be views of one block (an identity shares its input's)."""
    roots = set()
    for entry in reads:
        root = entry
        for _ in range(64):
            node = int(graph.entry_node[root])
            begin, end = int(graph.pair_ptr[node]), int(graph.pair_ptr[node + 1])
            nxt = next(
                (
                    int(graph.in_entry[graph.in_ptr[node] + graph.pair_in[p]])
                    for p in range(begin, end)
                    if graph.pair_identity[p] and graph.first[node] + graph.pair_out[p] == root
                ),
                None,
            )
            if nxt is None:
                break
            root = nxt
        if root in roots:
            return False
        roots.add(root)
    return True


def gap(bound: int, planned: int) -> float:
    """How far a plan may be from the best possible, as a part of it; 0 is proven best."""
    return max(0.0, 1.0 - bound / planned) if planned else 0.0


def saved_bytes(graph: TrainingGraph) -> int:
    """Bytes of all tensors that the backward pass reads from the forward pass."""
    return int(np.dot(graph.saved_entries().astype(np.int64), graph.entry_bytes))
