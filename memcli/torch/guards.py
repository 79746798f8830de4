"""Values that a forward pass branches on, where they can be had before it runs.

``attention_mask.all()`` depends on the inputs alone: a recording holds for calls that give the
same value, and asking costs what it costs the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten

# Operators that give numbers of Python.
RAN_FOR_VALUES = frozenset(
    {
        aten.item.default,
        aten._local_scalar_dense.default,
        aten.is_nonzero.default,
        aten.equal.default,
        aten.allclose.default,
    }
)
# Operators that are run for a value before each call, at most.
_MOST = 64


class Guard:
    """A value of Python that a function gives of tensors computed from the inputs."""

    def __init__(self, function: Any, args: Any, nodes: list[Node], inputs: list[Node]) -> None:
        self.function = function
        self.args = args
        self.nodes = nodes
        self.inputs = inputs
        self.value: Any = None

    @classmethod
    def of(cls, function: Any, args: Any, inputs: Sequence[Node]) -> Guard:
        """``args``: with nodes in the places of tensors; ``inputs``: those of the graph."""
        wanted: set[Node] = set()
        order: list[Node] = []
        stack = _nodes(args)
        while stack:
            node = stack.pop()
            if node not in wanted:
                wanted.add(node)
                stack.extend(node.all_input_nodes)
        for node in next(iter(wanted)).graph.nodes if wanted else ():
            if node in wanted:
                order.append(node)
        return cls(function, args, order, list(inputs))

    @property
    def too_long(self) -> bool:
        """Whether it would run the network itself."""
        return sum(n.op == "call_function" for n in self.nodes) > _MOST

    def evaluate(self, inputs: Sequence[Any], attribute: Callable[[str], Any]) -> Any:
        """The value for some inputs."""
        values: dict[Node, Any] = dict(zip(self.inputs, inputs, strict=True))
        for node in self.nodes:
            if node.op == "get_attr":
                values[node] = attribute(str(node.target))
            elif node.op == "call_function":
                args = torch.fx.map_arg(node.args, values.__getitem__)
                kwargs = torch.fx.map_arg(node.kwargs, values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self.function(*torch.fx.map_arg(self.args, values.__getitem__))

    def holds(self, inputs: Sequence[Any], attribute: Callable[[str], Any]) -> bool:
        """Whether a call has the value that was recorded."""
        with torch.no_grad():
            return bool(self.evaluate(inputs, attribute) == self.value)


def value_of(guard: Guard) -> bool | None:
    """What a comparison of uniform random numbers gives, where its bound is outside of [0, 1)."""
    drawn = [n for n in guard.nodes if n.op == "call_function"]
    if len(drawn) != 2 or getattr(drawn[0].target, "function", drawn[0].target) not in (
        aten.rand.default,
    ):
        return None
    compared = getattr(drawn[1].target, "function", drawn[1].target)
    bound = drawn[1].args[1]
    if not isinstance(bound, (int, float)):
        return None
    if compared is aten.lt.Scalar and (bound <= 0 or bound >= 1):
        return bound >= 1
    if compared is aten.gt.Scalar and (bound < 0 or bound >= 1):
        return bound < 0
    return None


def _nodes(value: Any) -> list[Node]:
    found: list[Node] = []
    torch.fx.map_arg(value, found.append)
    return found
