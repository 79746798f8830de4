"""What every verification in PyTorch does: train both graphs, compare, set estimates beside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.processes.jobs import run_jobs
from memcli.engines.torch.memory.device_steps import blas_workspace
from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.engines.torch.memory.stages import torch_stages
from memcli.engines.torch.search_space import TorchSpace
from memcli.errors import BadInput
from memcli.graph.training import Flags
from memcli.request import Progress
from memcli.results.verified import (
    BASELINE,
    PLANNED,
    SIMULATED_CARD,
    Compared,
    Run,
    StageMeasured,
    compare_files,
    result_notes,
)
from memcli.search.base import Search, Settings


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
    devices: Sequence[str],
    seed: int,
    steps: int | None,
    on_progress: Progress | None,
) -> list[dict[str, Any]]:
    """One graph's step under marks in a process for each device; results in ``NAME-K.npz``.

    ``steps``: how many are timed after a warm-up step, the median counts; None: 5 on a card, on the
    CPU as many as a few seconds allow. On several devices the processes train together, each as a
    worker with inputs of its own.

    Raises:
        BadInput: the graph cannot be converted.
        EngineFailed: no such device, or the step crashed.
    """

    def tell(text: str, fraction: float | None = None) -> None:
        if on_progress:
            on_progress(f"{name}: {text}", fraction)

    jobs = [
        {
            **job,
            "marks": marks,
            "device": device,
            "seed": seed,
            "save": str(results_file(workdir, name, rank)),
            "repeat": 5 if steps is None and device != "cpu" else steps,
        }
        for rank, device in enumerate(devices)
    ]
    several = len(devices) > 1
    if several:
        store = str(workdir / f"{name}.store")
        for rank, each in enumerate(jobs):
            each["parallel"] = {"rank": rank, "workers": len(devices), "store": store}
    return run_jobs(
        "memcli.engines.torch.step",
        jobs,
        labels=[label(rank, device) for rank, device in enumerate(devices)] if several else (),
        workdir=workdir,
        env=_threads(len(devices)) if several and "cpu" in devices else None,
        on_progress=tell,
        doing=f"training one step of the {name} graph",
    )


def results_file(workdir: Path, name: str, rank: int) -> Path:
    """Where a worker leaves the arrays of a graph's step."""
    return workdir / f"{name}-{rank}.npz"


def label(rank: int, device: str) -> str:
    """A worker in words."""
    return f"worker {rank}" if device == "cpu" else f"worker {rank} ({device})"


def _threads(workers: int) -> dict[str, str | None]:
    """Each worker its part of the processors, where the user does not say otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}


def compare_runs(
    first: dict[str, Any],
    second: dict[str, Any],
    workdir: Path,
    where: str,
    notes: list[str],
    rank: int = 0,
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

    original, planned = (results_file(workdir, name, rank) for name in (BASELINE, PLANNED))
    compared = compare_files(original, planned, named)
    if first["device"] == SIMULATED_CARD:
        notes.append("a simulated card counts memory and computes nothing: no bits were compared")
        return {kind: Compared() for kind in compared}
    notes += result_notes(first, second, compared)
    return compared


def together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several workers' steps as one: the most memory and time that any of them took."""
    first = results[0]
    peaks: dict[str, dict[str, int]] = {"forward": {}, "backward": {}}
    for part, found in peaks.items():
        for result in results:
            for name, size in result["trace"][part].items():
                found[name] = max(found.get(name, 0), size)
    return {
        "device": ", ".join(dict.fromkeys(result["device"] for result in results)),
        "trace": peaks,
        "method": first["method"],
        **{key: max(result[key] for result in results) for key in ("peak_bytes", "reserved_bytes")},
        # all of them time as many steps, or none does
        "step_seconds": max((r["step_seconds"] or 0.0 for r in results), default=0.0) or None,
    }


def run_of(model: TorchPlanModel, flags: Flags, result: dict[str, Any]) -> Run:
    """A step's estimate beside its measurement."""
    reserved = 0
    if model.trace.device == "cuda":
        # the processes that train have cuBLAS's deterministic work space, unless told otherwise
        config = os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        reserved = model.exact.device_memory(flags, blas_workspace(None, config)).reserved_peak
    return Run(
        estimated_bytes=model.evaluate(flags).pool_bytes,
        measured_bytes=int(result["peak_bytes"]),
        step_seconds=result["step_seconds"],
        workspace_bytes=0,
        reserved_bytes=int(result["reserved_bytes"]),
        estimated_reserved_bytes=reserved,
    )


def stages_of(
    model: TorchPlanModel, flags: Flags, measured: dict[str, dict[str, int]]
) -> list[StageMeasured]:
    """Each stage's estimate beside the most that was really alive while it ran."""
    search = Search(TorchSpace(model), Settings())
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
