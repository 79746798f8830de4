"""What every verification in PyTorch does: train both graphs, compare, set estimates beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.process import run_job
from memcli.errors import BadInput
from memcli.graph.training import Flags
from memcli.memory.torch_plan_model import TorchPlanModel
from memcli.memory.torch_stages import torch_stages
from memcli.planners.base import Settings
from memcli.planners.torch_search import TorchSearch
from memcli.workflow.verifying import Compared, Run, StageMeasured, compare_files, result_notes

Progress = Callable[[str, float | None], None]


def named_marks(model: TorchPlanModel, flags: Flags) -> dict[str, int]:
    """{step: mark} of all that is not kept."""
    return {
        step: mark for step, mark in zip(model.trace.names, flags.tolist(), strict=True) if mark
    }


def train(
    name: str,
    job: dict[str, Any],
    marks: dict[str, int],
    workdir: Path,
    device: str,
    seed: int,
    on_progress: Progress | None,
) -> dict[str, Any]:
    """One graph's step under marks in a process of its own; results in ``NAME.npz``.

    Raises:
        BadInput: the graph cannot be converted.
        EngineFailed: no such device, or the step crashed.
    """

    def tell(text: str, fraction: float | None = None) -> None:
        if on_progress:
            on_progress(f"{name}: {text}", fraction)

    return run_job(
        "memcli.engines.torch.step",
        {
            **job,
            "marks": marks,
            "device": device,
            "seed": seed,
            "save": str(workdir / f"{name}.npz"),
            "repeat": 1 if device == "cpu" else 5,
        },
        workdir=workdir,
        on_progress=tell,
        doing=f"training one step of the {name} graph",
    )


def compare_runs(
    first: dict[str, Any], second: dict[str, Any], workdir: Path, where: str, notes: list[str]
) -> dict[str, Compared]:
    """All arrays of the original's and the planned graph's step, bit by bit; adds to ``notes``.

    Raises:
        BadInput: the graphs have other parameters.
    """
    if first["names"] != second["names"]:
        raise BadInput(f"the planned graph is not a plan of {where}: their tensors differ")

    def named(kind: str, index: int) -> str:
        rows = first["names"][kind]
        return str(rows[index]) if index < len(rows) else f"{kind} {index}"

    compared = compare_files(workdir / "original.npz", workdir / "planned.npz", named)
    notes += result_notes(first, second, compared)
    return compared


def run_of(model: TorchPlanModel, flags: Flags, result: dict[str, Any]) -> Run:
    """A step's estimate beside its measurement."""
    return Run(
        estimated_bytes=model.evaluate(flags).pool_bytes,
        measured_bytes=int(result["peak_bytes"]),
        step_seconds=float(result["step_seconds"]),
        workspace_bytes=0,
        reserved_bytes=int(result["reserved_bytes"]),
    )


def stages_of(
    model: TorchPlanModel, flags: Flags, measured: dict[str, dict[str, int]]
) -> list[StageMeasured]:
    """Each stage's estimate beside the most that was really alive while it ran."""
    search = TorchSearch(model, Settings())
    listed, stage_of = torch_stages(model, flags, search.kept_cuts(flags))
    forward = np.zeros(len(listed), np.int64)
    backward = np.zeros(len(listed), np.int64)
    for step, name in enumerate(model.trace.names):
        number = int(stage_of[step])
        forward[number] = max(forward[number], measured["forward"].get(name, 0))
        backward[number] = max(backward[number], measured["backward"].get(name, 0))
    return [
        StageMeasured(
            index=s.index,
            first=s.first,
            last=s.last,
            operators=s.operators,
            estimated_forward=s.forward_bytes,
            measured_forward=int(forward[s.index]),
            estimated_bytes=s.peak_bytes,
            measured_bytes=int(backward[s.index]),
        )
        for s in listed
    ]
