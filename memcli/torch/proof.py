"""Proof that a recorded graph runs what its module runs in eager mode, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.engines.torch.device_rules import as_on
from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.program import attribute
from memcli.engines.torch.tape import Tape
from memcli.engines.torch.tracking import fake_copy
from memcli.errors import BadInput
from memcli.torch.regimes import Span, all_left

# Compute nothing, or are the recording's own copies of constants.
_PASSED_OVER = frozenset(
    {
        "detach",
        "detach_",
        "alias",
        "lift_fresh",
        "lift_fresh_copy",
        "_local_scalar_dense",
        "equal",
    }
)


class OperatorLog:
    """The operators of a run with what they are given: shapes, strides and types, and the rest."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Any]] = []

    def note(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """One operator, as it reached the kernels."""
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and name not in _PASSED_OVER:
            self.rows.append((str(func), _described([list(args), kwargs])))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout is torch.strided else ()
        return tuple(value.shape), strides, value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(_described(item) for item in value)
    if isinstance(value, dict):
        return {key: _described(item) for key, item in value.items() if key != "pin_memory"}
    return None if isinstance(value, torch.device) else value


def log_of_graph(
    planned: PlannedModule, inputs: Sequence[Any], span: Span, device: str
) -> OperatorLog:
    """The operators of a graph without a plan; nothing is computed."""
    log, tape = OperatorLog(), Tape()
    with (
        span.off(),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        as_on(device),
        all_left(),
        torch.enable_grad(),
    ):
        copied, given = fake_copy(planned, inputs, mode)
        program = copied.program
        values: list[Any] = [None] * program.n_values
        for number, value in zip(program.inputs, given, strict=True):
            values[number] = value
        for number, path in program.attributes:
            values[number] = attribute(copied, path)
        tape.on_operator = log.note
        with tape:
            span.enter()
            for step in program.steps:
                args, kwargs = step.arguments(values)
                values[step.value] = step.function(*args, **kwargs)
    return log


def prove(eager: OperatorLog, graph: OperatorLog, name: str) -> None:
    """Compares both, in their order.

    Raises:
        BadInput: the first operator that differs.
    """
    for number, (one, other) in enumerate(zip(eager.rows, graph.rows, strict=False)):
        if one != other:
            raise BadInput(
                f"the recording of {name} is not what the module runs: operator {number} is "
                f"{one[0]} in the module and {other[0]} in the recording"
                + ("" if one[0] != other[0] else f", with {one[1]} and {other[1]}"),
                "does forward do the same at each call? Please report it with the model",
            )
    if len(eager.rows) != len(graph.rows):
        longer = eager if len(eager.rows) > len(graph.rows) else graph
        first = longer.rows[min(len(eager.rows), len(graph.rows))][0]
        raise BadInput(
            f"the recording of {name} is not what the module runs: {len(eager.rows)} operators in "
            f"the module and {len(graph.rows)} in the recording, from {first} on",
            "does forward do the same at each call? Please report it with the model",
        )
