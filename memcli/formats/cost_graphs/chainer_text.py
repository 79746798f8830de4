"""Chainer's graphs in the text format of Kusumoto et al. (NeurIPS 2019).

The first line has two counts: tensors and functions. A line for each tensor: number, bytes, name.
Then each function: ``forward`` or ``backward``; a line with the counts of its inputs and outputs;
a line for each input (tensor, kind: ``_``, or ``gradient``, ``input``, ``output`` for a backward
function); a line for each output; its type; its details as JSON. The k-th backward function is
that of the k-th forward function. Their planner counts 10 for the time of a convolution and 1 for
any other function, and so does this reader.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcli.errors import BadInput
from memcli.graph.forward_graph import ForwardGraph
from memcli.quoting import shown

_MOST = 1_000_000


@dataclass
class _Function:
    inputs: list[tuple[int, str]]
    outputs: list[int]
    kind: str


class _Lines:
    """Lines of the file, and where in it we are."""

    def __init__(self, text: str, name: str) -> None:
        self.lines, self.name, self.at = text.splitlines(), name, 0

    def next(self, wanted: str) -> str:
        if self.at >= len(self.lines):
            raise BadInput(f"{self.name}: line {self.at + 1}: ends where {wanted} should be")
        self.at += 1
        return self.lines[self.at - 1]

    def numbers(self, wanted: str, count: int) -> tuple[list[int], str]:
        """``count`` whole numbers that are not negative, and the rest of the line."""
        line = self.next(wanted)
        parts = line.split(maxsplit=count)
        try:
            values = [int(part) for part in parts[:count]]
        except ValueError:
            values = []
        if len(values) < count or min(values) < 0 or max(values) >= 1 << 53:
            raise self.wrong(wanted, line)
        return values, parts[count] if len(parts) > count else ""

    def wrong(self, wanted: str, line: str) -> BadInput:
        return BadInput(f"{self.name}: line {self.at}: {shown(line)} is not {wanted}")


def parse_chainer_text(data: bytes, name: str) -> ForwardGraph:
    """The graph in ``data``; ``name`` (of the file) begins each message.

    Raises:
        BadInput: anything that is not as the format has it, with the line; or a cycle.
    """
    try:
        lines = _Lines(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: byte {error.start} is not UTF-8 text") from error
    (n_tensors, n_functions), _ = lines.numbers("the counts of tensors and functions", 2)
    if max(n_tensors, n_functions) > _MOST:
        raise BadInput(f"{name}: line 1: more than {_MOST} tensors or functions")
    sizes: dict[int, int] = {}
    for _ in range(n_tensors):
        (tensor, size), _ = lines.numbers("a tensor: number, bytes, name", 2)
        if tensor in sizes:
            raise BadInput(f"{name}: line {lines.at}: tensor {tensor} is there twice")
        sizes[tensor] = size
    forward: list[_Function] = []
    backward: list[_Function] = []
    for _ in range(n_functions):
        way = lines.next("'forward' or 'backward'")
        if way not in ("forward", "backward"):
            raise lines.wrong("'forward' or 'backward'", way)
        (forward if way == "forward" else backward).append(_function(lines, sizes))
    if len(forward) != len(backward):
        raise BadInput(f"{name}: {len(forward)} forward functions, {len(backward)} backward")
    made: dict[int, int] = {}
    for k, function in enumerate(forward):
        if len(function.outputs) != 1 or function.outputs[0] in made:
            raise BadInput(f"{name}: forward function {k} must compute one tensor of its own")
        made[function.outputs[0]] = k
    if not made:
        raise BadInput(f"{name}: no function computes anything")
    order = _depth_first(forward, made, name)
    place = {forward[k].outputs[0]: r for r, k in enumerate(order)}

    def places(tensors: list[int]) -> list[int]:
        return sorted({place[t] for t in tensors if t in place})

    return ForwardGraph(
        ids=[forward[k].outputs[0] for k in order],
        seconds=[10.0 if forward[k].kind.startswith("Conv") else 1.0 for k in order],
        sizes=[sizes[forward[k].outputs[0]] for k in order],
        reads=[places([t for t, _ in forward[k].inputs]) for k in order],
        backward_reads=[
            places([t for t, how in backward[k].inputs if how != "gradient"]) for k in order
        ],
        backward_into=[places(backward[k].outputs) for k in order],
    )


def _function(lines: _Lines, sizes: dict[int, int]) -> _Function:
    (n_in, n_out), _ = lines.numbers("the counts of inputs and outputs", 2)
    inputs: list[tuple[int, str]] = []
    outputs: list[int] = []
    for _ in range(n_in):
        (tensor,), how = lines.numbers("an input: tensor and kind", 1)
        inputs.append((tensor, how))
    for _ in range(n_out):
        (tensor,), _ = lines.numbers("an output tensor", 1)
        outputs.append(tensor)
    for tensor in (*(t for t, _ in inputs), *outputs):
        if tensor not in sizes:
            raise BadInput(f"{lines.name}: line {lines.at}: there is no tensor {tensor}")
    kind = lines.next("a function's type")
    lines.next("a function's details")
    return _Function(inputs, outputs, kind)


def _depth_first(forward: list[_Function], made: dict[int, int], name: str) -> list[int]:
    """Functions in an order of execution: each after those it reads, from the outputs back."""
    order: list[int] = []
    state = [0] * len(forward)  # 1 while its inputs are visited, 2 when done
    for root in range(len(forward)):
        stack = [root]
        while stack:
            k = stack[-1]
            if state[k] == 2:
                stack.pop()
                continue
            inputs = [made[t] for t, _ in forward[k].inputs if t in made]
            if state[k] == 0:
                state[k] = 1
                for u in inputs:
                    if state[u] == 1:
                        tensor = forward[k].outputs[0]
                        raise BadInput(f"{name}: tensor {tensor} depends on itself")
                stack.extend(u for u in reversed(inputs) if state[u] == 0)
            else:
                state[k] = 2
                order.append(k)
                stack.pop()
    return order
