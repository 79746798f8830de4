"""A model's own functions, put in the place of their calls: counted before anything is unfolded.

Nine functions that each call the next one ten times are a billion nodes in a file of 2 kB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, ModelProto, NodeProto, inliner

from memcli.errors import BadInput
from memcli.formats.onnx.check import LARGEST_GRAPH, subgraphs
from memcli.quoting import shown

# Bytes that functions may unfold to; an ONNX file without them cannot exceed 2 GiB.
_LARGEST_UNFOLDED = 512 << 20

Key = tuple[str, str, str]  # domain, name, overload


def with_functions_inlined(model: ModelProto, name: str) -> ModelProto:
    """The model with the bodies of its own functions in the place of their calls.

    Args:
        model: the same object comes back where there are no functions.
        name: of the file, to begin messages with.

    Raises:
        BadInput: functions that call themselves, or unfold to more than memcli plans.
    """
    if not model.functions:
        return model
    _check_size(model, name)
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the C++ side's exceptions have no common base
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{name}: its functions cannot be put in place: {first}") from error


def _check_size(model: ModelProto, name: str) -> None:
    """Refuses functions that call themselves, or that unfold to too much."""
    bodies = {_key_of(f.domain, f.name, f.overload): f.node for f in model.functions}
    calls: dict[Key, list[tuple[Key | None, int]]] = {}
    # {function: (nodes, bytes) that a call of it becomes}
    sizes: dict[Key, tuple[int, int]] = {}
    for start in bodies:
        stack = [start]
        open_ones: set[Key] = set()
        while stack:
            key = stack[-1]
            if key in sizes:
                stack.pop()
                continue
            if key not in calls:
                calls[key] = list(_calls(bodies[key], bodies))
            waiting = {used for used, _ in calls[key] if used is not None and used not in sizes}
            if waiting:
                open_ones.add(key)
                if waiting & open_ones:
                    raise BadInput(
                        f"{name}: function {shown(key[1])} calls itself, directly or through "
                        "others",
                        "no engine can run it",
                    )
                stack.extend(waiting)
                continue
            sizes[key] = _total(calls[key], sizes)
            open_ones.discard(key)
            stack.pop()
    nodes, size = _total(_calls(model.graph.node, bodies), sizes)
    if nodes > LARGEST_GRAPH or size > _LARGEST_UNFOLDED:
        raise BadInput(
            f"{name}: its functions unfold to {shown(nodes)} nodes of {shown(size)} bytes; memcli "
            f"plans up to {LARGEST_GRAPH} nodes of {_LARGEST_UNFOLDED} bytes",
            "export the model without functions, or a part of it",
        )


def _key_of(domain: str, name: str, overload: str) -> Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _calls(
    nodes: Iterable[NodeProto], bodies: dict[Key, object] | dict[Key, Iterable[NodeProto]]
) -> Iterator[tuple[Key | None, int]]:
    """(the function that a node calls, None for an operator; its bytes) for all nodes, those of
    subgraphs included."""
    waiting: list[Iterable[NodeProto]] = [nodes]
    while waiting:
        for node in waiting.pop():
            key = _key_of(node.domain, node.op_type, node.overload)
            inner: list[GraphProto] = subgraphs(node)
            waiting += [graph.node for graph in inner]
            yield (key if key in bodies else None, node.ByteSize())


def _total(
    calls: Iterable[tuple[Key | None, int]], sizes: dict[Key, tuple[int, int]]
) -> tuple[int, int]:
    nodes = size = 0
    for key, own in calls:
        inner = (1, own) if key is None else sizes[key]
        nodes, size = nodes + inner[0], size + inner[1]
    return nodes, size
