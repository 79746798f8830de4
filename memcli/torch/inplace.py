"""Operators that change tensors in place, as parts of larger steps.

Plans recompute functions. An in-place operator and what made the tensor that it changes are
therefore one step, together with all that runs between the two; it runs them one by one, as the
module does, and takes the same memory.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from memcli.engines.torch.aten_rules import again_of, draws, leaves_states, with_gradients
from memcli.engines.torch.program import Reference, fill
from memcli.engines.torch.rules import OwnRules
from memcli.torch.regimes import InRegime

aten = torch.ops.aten


class _Part(NamedTuple):
    """One operator of a step. ``value``: the number of its result; inputs have the first ones."""

    function: Callable[..., Any]
    again: Callable[..., Any] | None  # None: it has no place in a second run
    args: Any
    kwargs: Any
    value: int
    free: tuple[int, ...]


class Together(OwnRules):
    """Several operators that run in turn; gives the results that others read.

    ``states``: numbers of inputs that it changes; a second run changes copies of them.
    """

    def __init__(
        self, parts: Sequence[_Part], given: Sequence[int], values: int, states: Sequence[int]
    ) -> None:
        self.parts = list(parts)
        self.given = list(given)
        self.values = values
        self.states = tuple(states)
        functions = [part.function for part in parts]
        self.__name__ = "+".join(getattr(f, "__name__", str(f)) for f in functions)
        self.draws = any(map(draws, functions))
        self.with_gradients = any(map(with_gradients, functions))
        self.leaves_states = bool(states) or any(map(leaves_states, functions))
        self.saves_alike = True

    def __call__(self, *inputs: Any) -> Any:
        return self._run(list(inputs), again=False)

    def again(self, *inputs: Any) -> Any:
        """The same on copies of the states."""
        values = list(inputs)
        for number in self.states:
            values[number] = values[number].clone()
        return self._run(values, again=True)

    def mapped(self, change: Callable[[Any], Any]) -> Together:
        """The same with other constants among its arguments."""
        other = copy.copy(self)
        other.parts = [
            part._replace(args=change(part.args), kwargs=change(part.kwargs)) for part in self.parts
        ]
        return other

    def _run(self, values: list[Any], again: bool) -> Any:
        values += [None] * (self.values - len(values))
        for part in self.parts:
            function = part.again if again else part.function
            if function is not None:
                args, kwargs = fill(part.args, values), fill(part.kwargs, values)
                values[part.value] = function(*args, **kwargs)
                args = kwargs = None
            for number in part.free:
                values[number] = None
        results = tuple(values[number] for number in self.given)
        return results[0] if len(results) == 1 else results


def batch_norm_on_copies(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> Any:
    """BatchNorm that updates copies, and saves as many tensors as on the buffers themselves."""
    if training:
        mean = None if mean is None else mean.clone()
        var = None if var is None else var.clone()
    return aten.batch_norm.default(x, weight, bias, mean, var, training, *rest)


def instance_norm_on_copies(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, *rest: Any
) -> Any:
    """InstanceNorm that updates copies."""
    if use_input_stats:
        mean = None if mean is None else mean.clone()
        var = None if var is None else var.clone()
    return aten.instance_norm.default(x, weight, bias, mean, var, use_input_stats, *rest)


# Operators that update buffers without saying so, and how they run on copies. Not the rules for
# single steps: within a larger one a second run has to save as many tensors as the first.
UPDATING: dict[Any, Callable[..., Any]] = {
    aten.batch_norm.default: batch_norm_on_copies,
    aten.instance_norm.default: instance_norm_on_copies,
}


def _again(function: Any) -> Any:
    if isinstance(function, InRegime) and function.function in UPDATING:
        return function.running_again(UPDATING[function.function])
    if getattr(function, "once", False):
        return None
    return UPDATING.get(function) or again_of(function)


def grouped(
    graph: Graph,
    ranges: Sequence[tuple[Node, Node]],
    states: dict[Node, list[Node]],
) -> tuple[Graph, dict[str, list[str]]]:
    """A copy of a graph in which what runs from one node to another is one step.

    Args:
        ranges: first and last node of each; those that overlap become one.
        states: {node: the attributes that it changes}.

    Returns:
        The graph, and {name of a step: names of the nodes in it}.
    """
    nodes = list(graph.nodes)
    at = {node: number for number, node in enumerate(nodes)}
    merged: list[tuple[int, int]] = []
    for begin, end in sorted((at[first], at[last]) for first, last in ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    starts = dict(merged)
    result = Graph()
    of: dict[Node, Node] = {}
    inside: dict[str, list[str]] = {}
    number = 0
    while number < len(nodes):
        if number not in starts:
            node = nodes[number]
            of[node] = result.node_copy(node, of.__getitem__)
            number += 1
            continue
        end = starts[number]
        # attributes are looked up, not made: they stand outside
        body = [n for n in nodes[number : end + 1] if n.op == "call_function"]
        for node in nodes[number : end + 1]:
            if node.op != "call_function":
                of[node] = result.node_copy(node, of.__getitem__)
        _add_step(result, body, of, states)
        inside[of[body[-1]].name if len(body) == 1 else _step_of(of, body)] = [n.name for n in body]
        number = end + 1
    return result, inside


def _step_of(of: dict[Node, Node], body: Sequence[Node]) -> str:
    node = next(of[n] for n in reversed(body) if n in of)
    while node.meta.get("memcli_part_of") is not None:
        node = node.meta["memcli_part_of"]
    return node.name


def _add_step(
    graph: Graph, body: Sequence[Node], of: dict[Node, Node], states: dict[Node, list[Node]]
) -> None:
    members = set(body)
    inputs: dict[Node, int] = {}
    for node in body:
        for source in node.all_input_nodes:
            if source not in members:
                inputs.setdefault(source, len(inputs))
    number = {**inputs}
    for node in body:
        number[node] = len(number)
    given = [n for n in body if any(user not in members for user in n.users)] or [body[-1]]
    last: dict[Node, int] = {}
    for position, node in enumerate(body):
        last[node] = position
        for source in node.all_input_nodes:
            last[source] = position
    free: dict[int, list[int]] = {}
    for node, position in last.items():
        if node in members and node not in given:
            free.setdefault(position, []).append(number[node])
    parts = [
        _Part(
            node.target,  # type: ignore[arg-type]
            _again(node.target),
            torch.fx.map_arg(node.args, lambda n: _Number(number[n])),
            torch.fx.map_arg(node.kwargs, lambda n: _Number(number[n])),
            number[node],
            tuple(free.get(position, ())),
        )
        for position, node in enumerate(body)
    ]
    parts = [p._replace(args=_referred(p.args), kwargs=_referred(p.kwargs)) for p in parts]
    changed = [inputs[state] for node in body for state in states.get(node, ()) if state in inputs]
    function = Together(parts, [number[n] for n in given], len(number), sorted(set(changed)))
    name = body[-1].name
    step = graph.create_node("call_function", function, tuple(of[n] for n in inputs), {}, name=name)
    step.meta.update(body[-1].meta)
    if len(given) == 1:
        of[given[0]] = step
        return
    for position, node in enumerate(given):
        item = graph.create_node(
            "call_function",
            operator.getitem,
            (step, position),
            {},
            name=node.name if node is not body[-1] else f"{node.name}_given",
        )
        item.meta.update(node.meta)
        item.meta["memcli_part_of"] = step
        of[node] = item


class _Number(int):
    """Stands in arguments for a value, until they are no longer fx's."""


def _referred(argument: Any) -> Any:
    if isinstance(argument, _Number):
        return Reference(int(argument))
    if isinstance(argument, (tuple, list)):
        items = [_referred(item) for item in argument]
        return items if isinstance(argument, list) else tuple(items)
    if isinstance(argument, dict):
        return {key: _referred(item) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*map(_referred, (argument.start, argument.stop, argument.step)))
    return argument
