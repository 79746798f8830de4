"""An fx graph as a list of steps, with what each value's last use is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from memcli.engines.torch.aten_rules import (
    again_of,
    draws,
    leaves_states,
    saves_alike,
    with_gradients,
)
from memcli.errors import BadInput
from memcli.marks import AUXILIARY, RESULTS


class Reference:
    """In a step's arguments: the value with this number."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


@dataclass
class Step:
    """A ``call_function`` node. ``value``: the number of its result among all values."""

    index: int
    name: str
    value: int
    function: Callable[..., Any]
    again: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]  # distinct values, in the order of the arguments
    draws: bool
    leaves_states: bool
    saves_alike: bool  # run again with gradients, it saves what it saved first
    with_gradients: bool  # runs again as if gradients were asked for
    # Where no argument has references inside: each argument's number, -1 for a constant.
    slots: tuple[tuple[int, Any], ...] | None = None
    free_after: tuple[int, ...] = ()  # values that nothing reads any more once this step ran

    def arguments(self, values: Any) -> tuple[Any, dict[str, Any]]:
        """What to call the function with; ``values``: a sequence or mapping by number."""
        if self.slots is not None:
            return [constant if v < 0 else values[v] for v, constant in self.slots], {}
        return fill(self.args, values), fill(self.kwargs, values)


@dataclass
class Program:
    """``inputs`` and ``attributes``: numbers of values; attributes with their dotted names."""

    steps: list[Step]
    inputs: list[int]
    input_names: list[str]
    attributes: list[tuple[int, str]]
    outputs: Any  # a template
    n_values: int
    unread: list[int] = field(default_factory=list)  # inputs and attributes that nothing reads


def compile_graph(module: GraphModule) -> Program:
    """The steps of a graph.

    Raises:
        BadInput: the graph has nodes other than placeholders, ``get_attr`` and ``call_function``.
    """
    number: dict[Node, int] = {}
    steps: list[Step] = []
    program = Program(steps, [], [], [], None, 0)
    for node in module.graph.nodes:
        if node.op == "output":
            program.outputs = _template(node.args[0], number)
            continue
        if node.op == "call_module" and node.target == "_guards_fn":
            continue  # torch.export's checks of its inputs' shapes
        value = number[node] = len(number)
        if node.op == "placeholder":
            program.inputs.append(value)
            program.input_names.append(node.name)
        elif node.op == "get_attr":
            program.attributes.append((value, str(node.target)))
        elif node.op == "call_function":
            function: Any = node.target
            step = Step(
                index=len(steps),
                name=node.name,
                value=value,
                function=function,
                again=again_of(function),
                args=tuple(_template(a, number) for a in node.args),
                kwargs={k: _template(a, number) for k, a in node.kwargs.items()},
                reads=tuple(number[n] for n in node.all_input_nodes),
                draws=draws(function),
                leaves_states=leaves_states(function),
                saves_alike=saves_alike(function),
                with_gradients=with_gradients(function),
            )
            if not step.kwargs and all(
                isinstance(a, Reference) or not references(a) for a in step.args
            ):
                step.slots = tuple(
                    (a.value, None) if isinstance(a, Reference) else (-1, a) for a in step.args
                )
            steps.append(step)
        else:
            raise BadInput(
                f"node {node.name!r} of the graph is a {node.op}; plans run on functions alone",
                "Make the graph with torch.export, which leaves no modules or methods in it.",
            )
    program.n_values = len(number)
    _last_uses(program)
    return program


def _last_uses(program: Program) -> None:
    last = dict.fromkeys(range(program.n_values), -1)
    for step in program.steps:
        last[step.value] = step.index  # a result that nothing reads goes at once
        for value in step.reads:
            last[value] = step.index
    for value in references(program.outputs):
        last.pop(value, None)
    free: dict[int, list[int]] = {}
    for value, at in last.items():
        free.setdefault(at, []).append(value)
    program.unread = free.pop(-1, [])
    for at, values in free.items():
        program.steps[at].free_after = tuple(values)


def _template(argument: Any, number: dict[Node, int]) -> Any:
    if isinstance(argument, Node):
        return Reference(number[argument])
    if isinstance(argument, (tuple, list)):
        items = [_template(a, number) for a in argument]
        if isinstance(argument, list):
            return items
        kind = type(argument)
        return kind(*items) if hasattr(argument, "_fields") else tuple(items)
    if isinstance(argument, dict):
        return {k: _template(a, number) for k, a in argument.items()}
    if isinstance(argument, slice):
        parts = (argument.start, argument.stop, argument.step)
        return slice(*(_template(a, number) for a in parts))
    return argument


def references(template: Any) -> list[int]:
    """Numbers of all values that a template names, in order."""
    if isinstance(template, Reference):
        return [template.value]
    if isinstance(template, (tuple, list)):
        return [v for item in template for v in references(item)]
    if isinstance(template, dict):
        return [v for item in template.values() for v in references(item)]
    if isinstance(template, slice):
        return references((template.start, template.stop, template.step))
    return []


def fill(template: Any, values: Any) -> Any:
    """The template with values (a sequence or mapping by number) in place of references."""
    kind = type(template)
    if kind is Reference:
        return values[template.value]
    if kind is list:
        return [fill(item, values) for item in template]
    if kind is tuple:
        return tuple(fill(item, values) for item in template)
    if kind is dict:
        return {k: fill(item, values) for k, item in template.items()}
    if kind is slice:
        return slice(*fill((template.start, template.stop, template.step), values))
    if isinstance(template, tuple):
        return kind(*(fill(item, values) for item in template))
    return template


def attribute(module: torch.nn.Module, path: str) -> Any:
    """What a dotted name stands for in a module, now: parameters may have been replaced."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def marks_of(program: Program, marks: Any, allowed: Sequence[int]) -> list[int]:
    """Marks by step from a mapping by node name.

    Raises:
        BadInput: a name that is no function node of the graph, or a mark that is none.
    """
    by_name = {step.name: step.index for step in program.steps}
    result = [0] * len(program.steps)
    for name, mark in marks.items():
        if name not in by_name:
            raise BadInput(
                f"the plan names {name!r}, which is no function of this graph",
                "The plan was made for another graph, or names changed since.",
            )
        if mark not in allowed:
            raise BadInput(f"the plan gives {name!r} the mark {mark!r}, which is none")
        index = by_name[name]
        # run as it ran first, it makes what it saves inside itself as well
        inside = program.steps[index].with_gradients and mark & RESULTS
        result[index] = int(mark) | (AUXILIARY if inside else 0)
    return result
