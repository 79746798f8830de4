"""Values that a forward pass branches on, where they can be had before it runs.

``attention_mask.all()`` depends on the inputs alone: a recording holds for calls that give the
same value, and asking costs what it costs the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from memcli.engines.torch.aten_rules import draws
from memcli.engines.torch.geometry import tensors_in
from memcli.engines.torch.rules import OwnRules

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


class OfShape(OwnRules):
    """An operator whose result has a shape that depends on values, with the one it has here."""

    def __init__(self, function: Any, shapes: Any) -> None:
        self.function = function
        self.shapes = shapes
        self.__name__ = str(function.overloadpacket.__name__)
        self.draws = draws(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(t, FakeTensor) for t in tensors_in([list(args), kwargs])):
            return empty_of(self.shapes)
        return self.function(*args, **kwargs)

    def again(self, *args: Any, **kwargs: Any) -> Any:
        """The same."""
        return self(*args, **kwargs)


def shapes_of(function: Any, kwargs: dict[str, Any], *args: Any) -> Any:
    """Sizes, types and devices of what an operator gives."""
    return pytree.tree_map(
        lambda t: (tuple(t.shape), t.dtype, t.device) if isinstance(t, Tensor) else t,
        function(*args, **kwargs),
    )


def empty_of(shapes: Any) -> Any:
    """Tensors of such sizes, types and devices."""
    if isinstance(shapes, tuple) and len(shapes) == 3 and isinstance(shapes[1], torch.dtype):
        return torch.empty(shapes[0], dtype=shapes[1], device=shapes[2])
    return type(shapes)(empty_of(item) for item in shapes)


class Answering(TorchDispatchMode):
    """Gives what a recording read of tensors, in its order, where these have no data."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__()
        self.answers = list(answers)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if not self.answers:
                raise
            answer = self.answers.pop(0)
            return empty_of(answer) if isinstance(error, DynamicOutputShapeException) else answer


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
