"""Parts of a forward pass that run without gradients or under an autocast of their own.

``torch.export`` inlines them: what stood inside ``torch.no_grad()`` would get gradients, and what
stood inside ``torch.autocast(...)`` has its casts spelled out, and must not be cast again.
"""

from __future__ import annotations

import torch
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node

from memcli.engines.torch.modes import DEVICES, Within, within, without_autocast
from memcli.errors import BadInput

__all__ = ["DEVICES", "Within", "regions", "within", "without_autocast"]


def regions(graph: torch.fx.Graph) -> dict[str, tuple[bool, bool]]:
    """{region's node before it is inlined: (has gradients, may be cast)}.

    Raises:
        BadInput: gradients are switched on or off within a region where that cannot be followed,
            or the graph has branches or loops on values.
    """
    return {
        node.name: _flags(node, graph.owning_module)
        for node in graph.nodes
        if isinstance(node.target, HigherOrderOperator)
    }


def _flags(node: Node, owner: GraphModule | None) -> tuple[bool, bool]:
    name = str(node.target)
    casts = "wrap_with_autocast" not in name
    gradients = "wrap_with_set_grad_enabled" not in name
    if casts and gradients:
        raise BadInput(
            f"the model has a {name} in its forward", "plans need operators without control flow"
        )
    if not gradients and node.args[0]:
        raise BadInput("the model switches gradients on within a part that has none")
    for argument in node.all_input_nodes:
        inner = getattr(owner, str(argument.target), None) if argument.op == "get_attr" else None
        if isinstance(inner, GraphModule):
            for below_gradients, below_casts in regions(inner.graph).values():
                if gradients and not below_gradients:
                    raise BadInput(
                        "the model has a part without gradients within an autocast of its own",
                        "put torch.no_grad() around torch.autocast(), not inside",
                    )
                casts = casts and below_casts
    return gradients, casts
