"""Operators that decomposition made, as the operators that a module in training runs.

``run_decompositions`` writes BatchNorm and Dropout as operators that give out what they keep for
the backward pass or update, some without gradients of their own. Where nothing but the network
reads those, the plain operator stands in their place: the same kernels, and states updated by the
operator itself. Shapes are changed whatever the strides, which need not be those of the export.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from memcli.formats.pt2.graph import ExportedGraph, ExportedNode, Named, Ref

BATCH_NORM = "torch.ops.aten.batch_norm.default"
DROPOUT = "torch.ops.aten.dropout.default"
_LEGIT = "torch.ops.aten._native_batch_norm_legit"


def references(value: Any) -> list[str]:
    """Names of all values in an argument, in order."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, list):
        return [name for item in value for name in references(item)]
    return []


def argument(node: ExportedNode, name: str) -> Any:
    """A node's argument by its name; None where it has none."""
    return next((a.value for a in node.arguments if a.name == name), None)


def canonical(graph: ExportedGraph) -> ExportedGraph:
    """The same graph with plain BatchNorm and Dropout; itself where it has them already."""
    reads = Counter(
        name for node in graph.nodes for a in node.arguments for name in references(a.value)
    )
    reads.update(o.name for o in graph.outputs if isinstance(o, Ref))
    updates = dict(graph.updates)
    of = {held.value: held for held in graph.held}
    nodes = []
    for node in graph.nodes:
        changed = _batch_norm(node, reads, updates, of) or _dropout(node, reads) or _view(node)
        nodes.append(changed)
    if all(new is old for new, old in zip(nodes, graph.nodes, strict=True)):
        return graph
    kept = tuple((buffer, value) for buffer, value in graph.updates if buffer in updates)
    return dataclasses.replace(graph, nodes=tuple(nodes), updates=kept)


def _view(node: ExportedNode) -> ExportedNode:
    if node.target != "torch.ops.aten.view.default":
        return node
    arguments = tuple(
        dataclasses.replace(a, name="shape") if a.name == "size" else a for a in node.arguments
    )
    return dataclasses.replace(node, target="torch.ops.aten.reshape.default", arguments=arguments)


def _first_alone(node: ExportedNode, reads: Mapping[str, int], most: int) -> bool:
    """Whether nothing reads outputs number 1 to ``most`` - 1."""
    return all(isinstance(o, str) and not reads.get(o) for o in node.outputs[1:most])


def _batch_norm(
    node: ExportedNode, reads: Mapping[str, int], updates: dict[str, str], of: Mapping[str, Any]
) -> ExportedNode | None:
    if not node.target.startswith(_LEGIT) or not node.outputs:
        return None
    training: Any = argument(node, "training")
    mean, var = argument(node, "running_mean"), argument(node, "running_var")
    given = node.outputs[:1]
    if node.target == f"{_LEGIT}_functional.default" and len(node.outputs) == 5:
        if not _first_alone(node, reads, 5):
            return None
        buffers = [of.get(b.name) if isinstance(b, Ref) else None for b in (mean, var)]
        targets = [held.target if held else "" for held in buffers]
        if training and [updates.get(t) for t in targets] != list(node.outputs[3:]):
            return None
        for target in targets:
            updates.pop(target, None)
    elif node.target == f"{_LEGIT}_no_training.default":
        training = False
    elif node.target != f"{_LEGIT}.no_stats":
        return None
    if not _first_alone(node, reads, 3):
        return None
    names = {
        "input": argument(node, "input"),
        "weight": argument(node, "weight"),
        "bias": argument(node, "bias"),
        "running_mean": mean,
        "running_var": var,
        "training": training,
        "momentum": argument(node, "momentum"),
        "eps": argument(node, "eps"),
        "cudnn_enabled": True,
    }
    arguments = tuple(Named(name, value, True) for name, value in names.items())
    return dataclasses.replace(node, target=BATCH_NORM, arguments=arguments, outputs=given)


def _dropout(node: ExportedNode, reads: Mapping[str, int]) -> ExportedNode | None:
    if node.target != "torch.ops.aten.native_dropout.default" or not _first_alone(node, reads, 2):
        return None
    names = {
        "input": argument(node, "input"),
        "p": argument(node, "p"),
        "train": argument(node, "train") is not False,
    }
    arguments = tuple(Named(name, value, True) for name, value in names.items())
    return dataclasses.replace(node, target=DROPOUT, arguments=arguments, outputs=node.outputs[:1])
