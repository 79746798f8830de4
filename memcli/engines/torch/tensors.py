"""The operators, tensors and nodes of a file as one recorded step has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.memory import trace as events
from memcli.engines.torch.record import TorchAnalysis
from memcli.graph.training import Flags, Ints
from memcli.marks import EACH, RESULTS
from memcli.results.inspected import LargeTensor, NodeRow, OperatorKind

Chosen = NDArray[np.bool_]


def operator_kinds(
    analysis: TorchAnalysis,
    in_file: list[OperatorKind],
    kept: Chosen,
    planned: Chosen | None,
    runs: Ints,
) -> list[OperatorKind]:
    """The operators by kind, those with the largest outputs first; last those that never run.

    ``in_file``: how many the file has. ``kept`` and ``planned``: over storages, whether it stays
    for the backward pass; what operators save inside themselves (indices, masks) is among them.
    ``runs``: over steps, how often it runs again.
    """
    trace = analysis.trace
    nothing = None if planned is None else 0
    kinds: dict[str, OperatorKind] = {}
    nodes: dict[str, set[str | int]] = {}
    again: dict[str, set[str | int]] = {}
    for v, (step, place) in enumerate(zip(analysis.steps, places(analysis), strict=True)):
        op = step["op"]
        row = kinds.setdefault(op, OperatorKind(op, 0, 0.0, 0, 0, nothing))
        node = step["name"] if place < 0 else place
        nodes.setdefault(op, set()).add(node)
        if runs[v]:
            again.setdefault(op, set()).add(node)
        part = slice(int(trace.first[v]), int(trace.first[v + 1]))
        sizes = trace.storage_bytes[part]
        row.flops += float(trace.flops[v])
        row.output_bytes += int(sizes[~trace.auxiliary[part]].sum())
        row.kept_bytes += int(sizes[kept[part]].sum())
        if planned is not None and row.planned_kept_bytes is not None:
            row.planned_kept_bytes += int(sizes[planned[part]].sum())
    counts = {kind.op: kind.count for kind in in_file}
    for op in counts:
        kinds.setdefault(op, OperatorKind(op, 0, 0.0, 0, 0, nothing))
    for op, row in kinds.items():
        row.count = len(nodes.get(op, ()))
        row.recomputed = len(again.get(op, ()))
        # nodes of a branch that is taken are in no count of the graph's own
        row.folded = max(0, counts.get(op, 0) - row.count)
    return sorted(kinds.values(), key=lambda k: (not k.count, -k.output_bytes, -k.flops, k.op))


def largest_tensors(
    analysis: TorchAnalysis, kept: Chosen, runs: Ints, top: int
) -> list[LargeTensor]:
    """The ``top`` largest tensors that a step takes, of equal ones the earliest first.

    What every backward pass takes for gradients and temporaries is among them, by the operator
    that it goes back through. Parameters, inputs and parameters' gradients are not.
    """
    trace = analysis.trace
    found = [*_made(analysis, kept, runs)]
    step, again = -1, False
    for kind, number, size in zip(
        trace.kinds.tolist(), trace.numbers.tolist(), trace.event_bytes.tolist(), strict=True
    ):
        if kind in (events.AGAIN, events.AGAIN_END):
            again = kind == events.AGAIN
        elif kind == events.BACKWARD:
            step = number
        elif kind == events.ALLOCATED and step >= 0 and not again:
            name, op = analysis.steps[step]["name"], analysis.steps[step]["op"]
            found.append(LargeTensor(f"back of {name}", op, None, None, size, "gradient"))
    found = [tensor for tensor in found if tensor.size]
    return sorted(found, key=lambda tensor: -tensor.size)[:top]


def _made(analysis: TorchAnalysis, kept: Chosen, runs: Ints) -> list[LargeTensor]:
    """What steps make in the forward pass."""
    trace = analysis.trace
    rows = []
    for v, step in enumerate(analysis.steps):
        given = list(analysis.tensors[v])
        for s in range(int(trace.first[v]), int(trace.first[v + 1])):
            size = int(trace.storage_bytes[s])
            state = "kept" if kept[s] else "recomputed" if runs[v] else "short-lived"
            tensor = None if trace.auxiliary[s] else _of_size(given, size)
            name, shape, itemsize = step["output"], None, None
            if trace.auxiliary[s]:
                name = f"inside {step['name']}"
            if tensor is not None:
                given.remove(tensor)
                shape, itemsize = tuple(tensor["shape"]), tensor["itemsize"]
                name = tensor["name"] or name
            rows.append(LargeTensor(name, step["op"], shape, itemsize, size, state))
    return rows


def _of_size(given: list[dict[str, Any]], size: int) -> dict[str, Any] | None:
    """The first tensor that takes as many bytes; a step's storages are in their order."""
    return next((t for t in given if _bytes(t) == size), None)


def _bytes(tensor: dict[str, Any]) -> int:
    return int(np.prod(tensor["shape"], dtype=np.int64)) * int(tensor["itemsize"])


def places(analysis: TorchAnalysis) -> list[int]:
    """Over steps: position of the file's node; -1 for those within a branch that is taken.

    A node of several outputs has several steps: one that runs it, and one for each output.
    """
    of = {
        output: position
        for position, outputs in enumerate(analysis.file.node_outputs())
        for output in outputs
    }
    return [of.get(step["output"], -1) for step in analysis.steps]


def node_rows(analysis: TorchAnalysis, marks: Flags, runs: Ints) -> list[NodeRow]:
    """Every node of the file, in its order."""
    trace, file = analysis.trace, analysis.file
    steps: dict[int, list[int]] = {}
    for v, position in enumerate(places(analysis)):
        steps.setdefault(position, []).append(v)
    rows = []
    named = zip(file.operators(), file.node_names, strict=True)
    for position, (operator, name) in enumerate(named):
        own = steps.get(position, [])
        if not own:
            rows.append(NodeRow(position, name, operator, None, None, "folded"))
            continue
        first = own[0]
        # outputs that the file does not take have no name
        tensors = [t for t in analysis.tensors[first] if t["name"]] or analysis.tensors[first]
        makes = any(trace.first[v] < trace.first[v + 1] for v in own)
        mark = ""
        if any(runs[v] for v in own):
            mark = "recomputed"
            if any(runs[v] and marks[v] & RESULTS == EACH for v in own):
                mark = "each need"
        elif not makes:
            mark = "view"
        elif marks[first]:
            mark = "no effect"
        shape = tuple(tensors[0]["shape"]) if tensors else None
        size = sum(map(_bytes, tensors)) if tensors else None
        rows.append(NodeRow(position, name, operator, shape, size, mark))
    return rows
