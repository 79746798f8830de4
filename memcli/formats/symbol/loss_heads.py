"""Gives a graph without a loss one to train under, for planning and verifying only.

The file that is written never has it: the heads go into the copy that engines bind.
Rule: where no output is a loss, every output ``y`` becomes ``MakeLoss(sum(Cast(y, float32)))``;
where at least one output is a loss the graph stays as it is.
"""

from __future__ import annotations

from typing import Any

# MXNet's loss layers: their gradient starts by itself, or their output is a loss value.
LOSS_OPERATORS = frozenset(
    {
        "SoftmaxOutput",
        "Softmax",
        "LinearRegressionOutput",
        "LogisticRegressionOutput",
        "MAERegressionOutput",
        "MakeLoss",
        "make_loss",
        "SVMOutput",
        "softmax_cross_entropy",
        "CTCLoss",
        "_contrib_CTCLoss",
        "ctc_loss",
    }
)


def has_loss(raw: dict[str, Any]) -> bool:
    """Whether any output of a symbol JSON's content is a loss."""
    return any(raw["nodes"][head[0]]["op"] in LOSS_OPERATORS for head in raw["heads"])


def add_loss_heads(raw: dict[str, Any]) -> int:
    """Put a loss on every output of a symbol.

    Nodes are appended, so the positions of the graph's own nodes stay as they were.

    Args:
        raw: the symbol file's content; changed.

    Returns:
        The number of heads added.
    """
    nodes: list[dict[str, Any]] = raw["nodes"]
    heads = []
    for number, head in enumerate(raw["heads"]):
        source = [head[0], head[1] if len(head) > 1 else 0, 0]
        for op, attrs in (("Cast", {"dtype": "float32"}), ("sum", {}), ("MakeLoss", {})):
            nodes.append(
                {
                    "op": op,
                    "name": f"memcli_loss{number}_{op.lower()}",
                    "attrs": attrs,
                    "inputs": [source],
                }
            )
            source = [len(nodes) - 1, 0, 0]
        heads.append(source)
    raw["heads"] = heads
    # An index over nodes that no longer matches them; MXNet does without it.
    raw.pop("node_row_ptr", None)
    return len(heads)
