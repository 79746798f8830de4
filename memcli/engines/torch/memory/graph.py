"""A recorded PyTorch step as the joint training graph that planners read.

Forward nodes are the steps of the trace, in order. Their tensors are the storages that they make,
in bytes; a step whose result lies in another's storage has one tensor of no size. Every step has a
backward node, in reverse order, that reads what autograd saved for it and the gradients of what
the step made, and makes a gradient for each storage that the step read. What autograd does in
between (sums, temporaries) is left to the exact model: strategies look at this graph, and are
judged by the trace.
"""

from __future__ import annotations

import numpy as np

from memcli.engines.torch.memory.trace import Trace
from memcli.graph.training import Kind, TrainingGraph


def training_graph(trace: Trace) -> TrainingGraph:
    """The graph of a trace; nodes ``0..n_steps-1`` are its steps."""
    n = trace.n_steps
    first, sizes, entry_of = _entries(trace)
    reads = _reads(trace, entry_of)
    saved: list[set[int]] = [set() for _ in range(n)]
    for storage, step in zip(trace.handle_storage.tolist(), trace.saved_by.tolist(), strict=True):
        if step >= 0 and entry_of[storage] >= 0:
            saved[step].add(int(entry_of[storage]))

    inputs: list[list[int]] = [list(entries) for entries in reads]
    # gradients of each forward entry, from whoever reads it; the last reader's first
    gradients: dict[int, list[int]] = {}
    sizes_of = sizes.tolist()
    starts = first.tolist()
    heads = []
    for step in reversed(range(n)):
        inputs.append(
            [g for e in range(starts[step], starts[step + 1]) for g in gradients.get(e, ())]
            + sorted(saved[step])
        )
        for entry in reads[step]:
            gradients.setdefault(entry, []).append(len(sizes_of))
            sizes_of.append(int(sizes[entry]))
        # one more, of no size, stands for the gradients of parameters
        heads.append(len(sizes_of))
        sizes_of.append(0)
        starts.append(len(sizes_of))

    kinds, kind_of = _kinds(trace, reads, starts)
    nodes, entries = 2 * n, len(sizes_of)
    in_ptr = np.concatenate([[0], np.cumsum([len(row) for row in inputs])]).astype(np.int64)
    in_entry = np.array([e for row in inputs for e in row], np.int64)
    entry_node = np.repeat(np.arange(nodes), np.diff(starts))
    given_out = [
        int(entry_of[s]) for s in np.flatnonzero(trace.given_out).tolist() if entry_of[s] >= 0
    ]
    none = np.zeros(0, np.int64)
    names = [*trace.names, *(f"gradient of {name}" for name in reversed(trace.names))]
    return TrainingGraph(
        n_forward=n,
        kind=kind_of,
        kinds=kinds,
        first=np.array(starts, np.int64),
        elements=np.array(sizes_of, np.int64),
        itemsize=np.ones(entries, np.int64),
        in_ptr=in_ptr,
        in_entry=in_entry,
        in_node=entry_node[in_entry].astype(np.int64),
        in_ignored=np.zeros(len(in_entry), np.uint8),
        dep_ptr=np.concatenate([np.zeros(n + 1), np.arange(1, n + 1)]).astype(np.int64),
        dep_node=np.arange(n)[::-1].astype(np.int64),
        owner=np.concatenate([np.full(n, -1), np.arange(n)[::-1]]).astype(np.int64),
        position=np.concatenate([np.arange(n), np.full(n, -1)]).astype(np.int64),
        outputs=np.array(given_out + heads, np.int64),
        n_forward_outputs=len(given_out),
        external=np.zeros(entries, np.int64),
        pair_ptr=np.zeros(nodes + 1, np.int64),
        pair_in=none,
        pair_out=none,
        pair_identity=np.zeros(0, np.uint8),
        ignores_all=np.zeros(nodes, np.uint8),
        is_grad_add=np.zeros(nodes, np.uint8),
        can_recompute=np.ones(n, np.uint8),
        can_barrier=np.zeros(n, np.uint8),
        fails_unread=np.zeros(n, np.uint8),
        flops=np.concatenate([trace.flops, np.zeros(n)]),
        shape_ptr=np.arange(entries + 1),
        shape_dim=np.array(sizes_of, np.int64),
        visible=np.ones(entries, np.uint8),
        names=names,
        file_names=list(trace.names),
        file_variable=[False] * n,
        keeps_inputs=False,
    )


def _entries(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """First entry of each step, bytes of each entry, entry of each storage (-1: auxiliary)."""
    starts: list[int] = [0]
    sizes: list[int] = []
    entry_of = np.full(len(trace.storage_bytes), -1, np.int64)
    for step in range(trace.n_steps):
        for storage in range(int(trace.first[step]), int(trace.first[step + 1])):
            if not trace.auxiliary[storage]:
                entry_of[storage] = len(sizes)
                sizes.append(int(trace.storage_bytes[storage]))
        if len(sizes) == starts[-1]:
            sizes.append(0)
        starts.append(len(sizes))
    return np.array(starts, np.int64), np.array(sizes, np.int64), entry_of


def _reads(trace: Trace, entry_of: np.ndarray) -> list[list[int]]:  # type: ignore[type-arg]
    """Entries that each step reads, each once."""
    result = []
    for step in range(trace.n_steps):
        row = trace.inputs[trace.input_first[step] : trace.input_first[step + 1]]
        entries = [int(entry_of[s]) for s in row.tolist() if entry_of[s] >= 0]
        result.append(list(dict.fromkeys(entries)))
    return result


def _kinds(
    trace: Trace, reads: list[list[int]], starts: list[int]
) -> tuple[list[Kind], np.ndarray]:  # type: ignore[type-arg]
    """Operators that occur, and each node's."""
    number: dict[tuple[str, int, int], int] = {}
    of = []
    n = trace.n_steps
    for step, operator in enumerate(trace.operators):
        key = (operator, len(reads[step]), starts[step + 1] - starts[step])
        of.append(number.setdefault(key, len(number)))
    for back in range(n):
        step = n - 1 - back
        key = (f"gradient of {trace.operators[step]}", 0, starts[n + back + 1] - starts[n + back])
        of.append(number.setdefault(key, len(number)))
    return [Kind(op, {}, i, o) for op, i, o in number], np.array(of, np.int64)
