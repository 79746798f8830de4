"""Measured times of a PyTorch step's functions: what recomputing each really costs on a device."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from memcli.engines.gpus import Gpu, visible_gpu
from memcli.engines.operator_times import OperatorTimes, operator_times, run_timings
from memcli.engines.processes.parent_side import Progress
from memcli.engines.torch.memory.model import step_seconds
from memcli.engines.torch.record import TorchAnalysis
from memcli.graph.roofline import MACHINES, machine_named

_WORKER = "memcli.engines.torch.times"


def card_to_time(device: str) -> Gpu:
    """The card that ``device`` ("gpu:N") names.

    Raises:
        EngineFailed: there is none.
    """
    return visible_gpu(int(device.partition(":")[2] or 0), "--cost roofline needs no card.")


def measure_step_seconds(
    analysis: TorchAnalysis,
    device: str = "cpu",
    *,
    limit_seconds: float = 60.0,
    repeats: int = 5,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> OperatorTimes:
    """Time every kind of step of ``analysis`` in PyTorch, as a recomputation runs it.

    ``device``: "cpu" or "gpu:N". ``limit_seconds``: for all timing; PyTorch's own start comes on
    top. ``repeats``: timed runs of each kind, of which the median counts.

    Never fails for an operator: one that crashes PyTorch is estimated and the rest goes on in a
    new process. Steps that only give out views cost a launch.

    Raises:
        EngineFailed: PyTorch is missing, or sees no such card.
    """
    started = time.monotonic()
    machine, shown = MACHINES["cpu"], "cpu"
    if device.startswith("gpu"):
        gpu = card_to_time(device)
        machine, shown = machine_named(gpu.name), f"{device} ({gpu.name})"
    trace, exact = analysis.trace, analysis.model.exact
    expected, working = step_seconds(trace, machine), np.maximum(*exact.again_peaks)
    makes = np.flatnonzero(exact.makes).tolist()
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        job = {
            **analysis.job(analysis.file, Path(folder) / "model"),
            "device": device,
            "repeats": repeats,
            "seed": seed,
            "steps": {trace.names[v]: [float(expected[v]), int(working[v])] for v in makes},
        }
        found = run_timings(
            _WORKER,
            job,
            lambda done: {"done": sorted(done)},
            limit_seconds,
            Path(folder),
            on_progress,
        )
    kind_of = [int(found.told["kind_of"][name]) for name in trace.names]
    return operator_times(
        found.told["kinds"], kind_of, found, device=shown, machine=machine, started=started
    )
