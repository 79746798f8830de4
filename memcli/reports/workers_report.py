"""Several workers' steps as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console

from memcli.reports.tables import mib, new_table, step_time
from memcli.results.planned import BatchSplit
from memcli.results.verified import Compared, WorkerRun
from memcli.units import format_size


def split_json(split: BatchSplit) -> dict[str, int]:
    """How many workers, and their samples."""
    return {"workers": split.workers, "batch": split.batch, "batch_each": split.each}


def split_text(split: BatchSplit) -> str:
    """The same in words."""
    return f"{split.workers}, each with {split.each} of the batch of {split.batch}"


def worker_json(
    worker: WorkerRun, compared: Callable[[Compared], dict[str, Any]]
) -> dict[str, Any]:
    """A row of ``workers`` in ``verify --json``."""
    return {
        "rank": worker.rank,
        "device": worker.device,
        "name": worker.name,
        "baseline": asdict(worker.baseline),
        "planned": asdict(worker.planned),
        "gradient_bytes": worker.gradient_bytes,
        "bucket_bytes": worker.bucket_bytes,
        "outputs": compared(worker.outputs),
        "gradients": compared(worker.gradients),
        "states": compared(worker.states),
    }


def workers_table(
    console: Console, workers: list[WorkerRun], off: Callable[[int, int | None], str]
) -> None:
    """Each worker's memory and time, without the plan and under it."""
    table = new_table(
        "Each worker: feature maps and their gradients, MiB; its step",
        [
            ("worker", "left"),
            ("saved est", "right"),
            ("meas", "right"),
            ("plan est", "right"),
            ("meas", "right"),
            ("over", "right"),
            ("saved", "right"),
            ("planned", "right"),
        ],
    )
    for worker in workers:
        base, plan = worker.baseline, worker.planned
        table.add_row(
            worker.label.removeprefix("worker "),
            mib(base.estimated_bytes),
            mib(base.measured_bytes),
            mib(plan.estimated_bytes),
            mib(plan.measured_bytes),
            off(plan.estimated_bytes, plan.measured_bytes),
            step_time(base.step_seconds),
            step_time(plan.step_seconds),
        )
    console.print(table)


def workers_facts(split: BatchSplit, workers: list[WorkerRun]) -> list[tuple[str, str]]:
    """What is the same for all."""
    gradients = max(worker.gradient_bytes for worker in workers)
    buckets = max(worker.bucket_bytes for worker in workers)
    states = ""
    if any(worker.states.compared for worker in workers):
        states = (
            "; states (BatchNorm's statistics) are of its part, and worker 0's go to all before "
            "the next step"
        )
    reserved = []
    if any(worker.planned.reserved_bytes for worker in workers):
        sizes = ", ".join(format_size(worker.planned.reserved_bytes) for worker in workers)
        reserved = [("reserved", f"{sizes} by CUDA's caching allocator, under the plan")]
    return [
        ("workers", split_text(split)),
        (
            "besides",
            f"in each {format_size(gradients)} of parameters' gradients and "
            f"{format_size(buckets)} of DistributedDataParallel's buckets, their copies: "
            "not in the above",
        ),
        ("results", f"of every worker; gradients are the mean of all{states}"),
        *reserved,
    ]
