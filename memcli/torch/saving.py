"""A module's plan in an archive of ``torch.export``: the program that it runs, and marks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import operator
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from memcli.errors import BadInput
from memcli.formats.node_plan import MARK_TEXTS
from memcli.formats.output import write_output
from memcli.formats.pt2.file import parse_pt2
from memcli.formats.trained_file import new_plan
from memcli.results.planned import Planned, recorded_memory, recorded_recomputation
from memcli.torch.eager import untraced
from memcli.torch.recording import Recording

# What ``torch.export`` writes beside what the module runs.
_PASSED_OVER = frozenset({"detach", "detach_", "alias", "lift_fresh", "lift_fresh_copy"})
# What the module hands on where it changes nothing.
_HANDED_ON = frozenset({"dropout", "contiguous", "to", "clone", "_assert_tensor_metadata"})
_ASKED = ("is_torchdynamo_compiling", "is_torchdynamo_exporting")


def save_module(
    path: str | os.PathLike[str],
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    recording: Recording,
    planned: Planned,
    marks: Mapping[str, int],
    force: bool,
) -> None:
    """Writes the exported module with its plan, whole or not at all.

    Raises:
        BadInput: ``torch.export`` cannot follow the module, or makes another graph of it; or the
            file cannot be written.
    """
    name = type(model).__name__
    if recording.guards:
        raise BadInput(
            f"{name}'s forward branches on the values of its inputs, and a file holds for all of "
            "them",
            "plan a call without such inputs (attention_mask=None), or keep the plan in Python",
        )
    try:
        with warnings.catch_warnings(), _as_in_eager():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, dict(kwargs), strict=False)
    except Exception as error:  # whatever the user's code raises under tracing
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"torch.export cannot follow {name}: {type(error).__name__}: {first}",
            "the plan itself works (plan.apply); only the file needs torch.export",
        ) from error
    steps = _steps_of(program, recording, name)
    bare = io.BytesIO()
    torch.export.save(program, bare)
    data = bare.getvalue()
    file = parse_pt2(data, f"{name}.pt2", hashlib.sha256(data).hexdigest())
    analysis: Any = planned.analysis
    record = new_plan(
        file,
        {node: MARK_TEXTS[marks.get(steps.get(node, ""), 0)] for node in file.node_names},
        strategy=planned.strategy,
        shapes=analysis.inputs,
        dtype=analysis.dtype,
        memory=recorded_memory(planned.baseline, planned.cost, planned.lower_bound),
        recompute=recorded_recomputation(planned.cost),
        device=planned.device,
    )
    write_output(path, file.planned_bytes(record), overwrite=force)
    planned.output = os.fspath(path)


@contextlib.contextmanager
def _as_in_eager() -> Iterator[None]:
    """Libraries find nothing that speaks of tracing, within ``torch.export`` either."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(untraced())
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("transformers"):
                for asked in _ASKED:
                    if asked in vars(module):
                        stack.callback(setattr, module, asked, vars(module)[asked])
                        setattr(module, asked, _no)
        yield


def _no(*args: Any, **kwargs: Any) -> bool:
    return False


def _steps_of(program: Any, recording: Recording, name: str) -> dict[str, str]:
    """{node of the program: step of the recording}.

    Raises:
        BadInput: they are not the same operators.
    """
    graphs = [
        n.name for n in program.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator)
    ]
    if graphs:
        raise BadInput(
            f"torch.export puts parts of {name} into graphs of their own ({graphs[0]}), which the "
            "marks of its steps do not reach",
            "the plan itself works (plan.apply); only the file needs torch.export",
        )
    exported = [
        (n.name, n.target)
        for n in program.graph.nodes
        if n.op == "call_function"
        and n.target is not operator.getitem
        and _word(n.target) not in _PASSED_OVER
    ]
    ours = [row for row in recording.operators if _word(row[1]) not in _PASSED_OVER]
    at = 0
    found: dict[str, str] = {}
    for node, target in exported:
        if at < len(ours) and ours[at][1] is target:
            found[node] = ours[at][0]
            at += 1
        elif _word(target) not in _HANDED_ON:
            break
    if at < len(ours):
        raise BadInput(
            f"torch.export makes another graph of {name} than the module runs, from "
            f"{ours[at][1]} on ({at} operators are the same)",
            "the plan itself works (plan.apply); memcli plan MODEL.pt2 plans an exported program",
        )
    return found


def _word(target: Any) -> str:
    return str(getattr(target, "overloadpacket", target).__name__)
