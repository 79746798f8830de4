"""The process that records a training step of a model on tensors without data."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import worker_main
from memcli.engines.torch.build import (
    converted,
    described,
    loss_for,
    outputs_of,
    tensors_of,
)
from memcli.engines.torch.cards import card_named
from memcli.engines.torch.convert.calls import REFUSALS, said
from memcli.engines.torch.trace import trace
from memcli.errors import BadInput


def handle(job: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Convert and record; the trace goes to ``trace.npz`` in ``workdir``.

    Returns ``steps`` (name in the file, operator and first output of each), ``tensors`` (what each
    gives), ``folded`` (nodes that are no steps), ``inputs``, ``outputs``, ``notes``, and how many
    tensors are of which role.

    Raises:
        BadInput: the model cannot be converted, or nothing in it can be trained.
    """
    progress("converting for PyTorch", 0.1)
    with FakeTensorMode(), _refusing(job["name"], "cannot be converted for PyTorch"):
        found = converted(job, fake=True)
        inputs = [torch.empty(i.shape, dtype=i.dtype) for i in found.inputs]
    if not found.parameters:
        raise BadInput(f"{job['name']}: has no parameters, so there is nothing to train")
    progress("recording a training step without data", 0.4)
    with _refusing(job["name"], "PyTorch cannot run a training step of it"):
        recorded = trace(
            found.module,
            inputs,
            loss_for(found),
            device=job.get("device", "cpu"),
            card=card_named(job.get("card")),
        )
    steps = described(found)
    by_name = {step["step"]: step for step in steps}
    recorded.operators = [
        by_name[name]["op"] if name in by_name else operator
        for name, operator in zip(recorded.names, recorded.operators, strict=True)
    ]
    (workdir / "trace.npz").write_bytes(recorded.to_bytes())
    return {
        "steps": [by_name.get(name) for name in recorded.names],
        "tensors": tensors_of(found),
        "folded": found.folded,
        "inputs": {i.name: list(i.shape) for i in found.inputs},
        "input_types": {i.name: str(i.dtype).removeprefix("torch.") for i in found.inputs},
        "outputs": outputs_of(found),
        "parameters": len(found.parameters),
        "states": len(found.states),
        "notes": found.notes,
        "torch": torch.__version__,
    }


@contextmanager
def _refusing(name: str, what: str) -> Iterator[None]:
    """What PyTorch refuses of a model is the model's fault: nothing is computed here that could
    fail for want of memory or of a device."""
    try:
        yield
    except REFUSALS as error:
        traceback.print_exc()  # to the log
        raise BadInput(f"{name}: {what}: {said(error)}") from error


def load() -> None:
    """PyTorch came with this module; the first fake tensor imports as much again."""
    with FakeTensorMode():
        torch.nn.functional.relu(torch.empty(1))


if __name__ == "__main__":
    worker_main(handle)
