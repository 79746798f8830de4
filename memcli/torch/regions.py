"""Parts of a forward pass that run without gradients or under an autocast of their own.

``torch.export`` inlines them: what stood inside ``torch.no_grad()`` would get gradients, and what
stood inside ``torch.autocast(...)`` has its casts spelled out, and must not be cast again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node

from memcli.engines.torch.aten_rules import again_of, draws, leaves_states, with_gradients
from memcli.engines.torch.rules import draws_random, recomputed_by, recomputed_with_gradients
from memcli.errors import BadInput

DEVICES = ("cpu", "cuda")


class Within:
    """A function as it runs in such a part."""

    def __init__(self, function: Callable[..., Any], gradients: bool, casts: bool) -> None:
        self.function = function
        self.gradients = gradients
        self.casts = casts
        self.__name__ = getattr(function, "__name__", str(function))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            if not self.gradients:
                stack.enter_context(torch.no_grad())
            if not self.casts:
                stack.enter_context(without_autocast())
            return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Within:
        return self  # told by identity


@functools.cache
def within(function: Any, gradients: bool, casts: bool) -> Any:
    """The function without gradients or without autocast; itself where it has both."""
    if gradients and casts:
        return function
    wrapped = Within(function, gradients, casts)
    if draws(function):
        draws_random(wrapped)
    if with_gradients(function):
        recomputed_with_gradients(wrapped)
    if leaves_states(function):
        recomputed_by(within(again_of(function), gradients, casts))(wrapped)
    return wrapped


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


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Autocast off on every device."""
    with contextlib.ExitStack() as stack:
        for kind in DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
