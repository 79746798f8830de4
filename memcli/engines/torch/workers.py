"""What several workers' steps came to: each one's results compared, and its memory in a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memcli.engines.torch.memory.plan_model import TorchPlanModel
from memcli.engines.torch.runs import compare_runs, label, run_of
from memcli.graph.training import Flags
from memcli.results.verified import BASELINE, PLANNED, Compared, WorkerRun


def compare_workers(
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
    workdir: Path,
    where: str,
    notes: list[str],
) -> list[dict[str, Compared]]:
    """Each worker's arrays without the plan and under it, bit by bit; adds to ``notes``.

    Raises:
        BadInput: the graphs have other parameters.
    """
    found = []
    for rank, (one, other) in enumerate(zip(first, second, strict=True)):
        own: list[str] = []
        found.append(compare_runs(one, other, workdir, where, own, rank))
        notes += [f"worker {rank}: {note}" for note in own] if len(first) > 1 else own
    for name, results in ((BASELINE, first), (PLANNED, second)):
        if len({result["gradient_digest"] for result in results}) > 1:
            notes.append(f"{name}: the workers' gradients are not the same after the exchange")
    return found


def worker_rows(
    model: TorchPlanModel,
    flags: Flags,
    devices: Sequence[str],
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
    compared: Sequence[dict[str, Compared]],
) -> list[WorkerRun]:
    """A row for each worker; ``first`` and ``second``: the steps of the original and the plan."""
    none = model.none()
    return [
        WorkerRun(
            rank=rank,
            label=label(rank, device),
            device=device,
            name=other["device"],
            baseline=run_of(model, none, one),
            planned=run_of(model, flags, other),
            gradient_bytes=int(other["gradient_bytes"]),
            bucket_bytes=int(other["exchange_bytes"]),
            **parts,
        )
        for rank, (device, one, other, parts) in enumerate(
            zip(devices, first, second, compared, strict=True)
        )
    ]


def added(parts: Sequence[Compared]) -> Compared:
    """All workers' arrays of one kind together."""
    if len(parts) == 1:
        return parts[0]
    return Compared(
        compared=sum(part.compared for part in parts),
        bit_equal=sum(part.bit_equal for part in parts),
        max_abs_diff=max(part.max_abs_diff for part in parts),
        max_rel_diff=max(part.max_rel_diff for part in parts),
        different=[f"worker {k}: {n}" for k, part in enumerate(parts) for n in part.different],
        nonfinite=sum(part.nonfinite for part in parts),
    )
