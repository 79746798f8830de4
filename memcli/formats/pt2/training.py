"""Whether a program was exported in training mode, and putting it back where it was not."""

from __future__ import annotations

import dataclasses

from memcli.formats.pt2.canonical import argument
from memcli.formats.pt2.graph import ExportedGraph, ExportedNode
from memcli.formats.trained_file import Loss
from memcli.quoting import first_of, shown

# The argument that says whether an operator trains, by operator.
_MODE = {
    "batch_norm": "training",
    "instance_norm": "use_input_stats",
    "dropout": "train",
    "feature_dropout": "train",
    "alpha_dropout": "train",
    "feature_alpha_dropout": "train",
    "native_dropout": "train",
    "rrelu": "training",
    "lstm": "train",
    "gru": "train",
    "rnn_tanh": "train",
    "rnn_relu": "train",
}
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_NORMALIZATIONS = frozenset({"batch_norm", "instance_norm"})


def _trains(node: ExportedNode) -> bool | None:
    """Whether an operator of two modes is in training mode; None for all others."""
    mode = _MODE.get(node.operator)
    if mode is None or not node.target.startswith("torch.ops.aten."):
        return None
    if node.operator == "instance_norm" and argument(node, "running_mean") is None:
        return None  # it has no statistics to fix
    if node.operator in _RECURRENT and not argument(node, "dropout"):
        return None
    value = argument(node, mode)
    return value if isinstance(value, bool) else None


def _kind(node: ExportedNode) -> str:
    if node.operator == "batch_norm":
        return "BatchNorm"
    if node.operator == "instance_norm":
        return "InstanceNorm"
    return "RReLU" if node.operator == "rrelu" else "Dropout"


def mode_in_words(graph: ExportedGraph) -> str:
    """What of a graph is in training mode; '' where nothing of it has two modes."""
    found: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for node in graph.nodes:
        trains = _trains(node)
        if trains is not None:
            row = found[trains]
            row[_kind(node)] = row.get(_kind(node), 0) + 1
    parts = [
        f"{', '.join(f'{n} {kind}' for kind, n in found[trains].items())} in "
        f"{'training' if trains else 'evaluation'} mode"
        for trains in (True, False)
        if found[trains]
    ]
    return "; ".join(parts)


def losses(graph: ExportedGraph) -> list[Loss]:
    """What was exported in evaluation mode."""
    rows = []
    off = [node for node in graph.nodes if _trains(node) is False]
    norms = [n.name for n in off if n.operator in _NORMALIZATIONS]
    others = [n.name for n in off if n.operator not in _NORMALIZATIONS]
    if norms:
        rows.append(
            Loss(
                "batchnorm-inference",
                norms,
                f"{len(norms)} normalizations in evaluation mode ({first_of(map(shown, norms))}): "
                "the statistics are fixed; --as-training sets training mode",
            )
        )
    if others:
        rows.append(
            Loss(
                "dropout-inference",
                others,
                f"{len(others)} Dropout or RReLU in evaluation mode "
                f"({first_of(map(shown, others))}); --as-training turns it on",
            )
        )
    if _attention_without_dropout(graph):
        rows.append(
            Loss(
                "dropout-inference",
                [],
                "the program was exported in evaluation mode: where its attention had a dropout, "
                "nothing is left of it; export it after model.train()",
            )
        )
    return rows


def _attention_without_dropout(graph: ExportedGraph) -> bool:
    operators = {n.operator for n in graph.nodes}
    modes = {_trains(n) for n in graph.nodes if n.operator in ("dropout", "batch_norm")}
    return "scaled_dot_product_attention" in operators and modes == {False}


def in_mode(graph: ExportedGraph, training: bool) -> tuple[ExportedGraph, list[str]]:
    """The graph with every operator of two modes in one of them, and what was changed."""
    changed: dict[str, list[str]] = {}
    nodes = []
    for node in graph.nodes:
        if _trains(node) is (not training):
            mode = _MODE[node.operator]
            arguments = tuple(
                dataclasses.replace(a, value=training) if a.name == mode else a
                for a in node.arguments
            )
            changed.setdefault(_kind(node), []).append(node.name)
            node = dataclasses.replace(node, arguments=arguments)
        nodes.append(node)
    if not changed:
        return graph, []
    word = "training" if training else "evaluation"
    texts = [
        f"{len(names)} {kind} set to {word} mode ({first_of(map(shown, names))})"
        for kind, names in changed.items()
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes)), texts
