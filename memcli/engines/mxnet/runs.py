"""Both graphs' steps in MXNet: each in a process of its own, and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memcli.engines.live_memory import available_bytes
from memcli.engines.mxnet.record import Analysis
from memcli.engines.mxnet.step import train_step
from memcli.errors import MemcliError
from memcli.formats.symbol.file import SymbolFile
from memcli.formats.symbol.prepare import prepare
from memcli.request import Progress
from memcli.results.verified import (
    BASELINE,
    PLANNED,
    Compared,
    KernelRun,
    KernelRuns,
    all_equal,
    compare_files,
)
from memcli.units import format_size

# Part of the free memory that a step may take; the rest is for buffers and the other programs.
USABLE = 0.8
# Both graphs' steps together, in seconds: beyond that the default kernels run if asked for only.
_LONG_STEPS = 20.0
# Measured (MobileNetV2, ResNet-50): with oneDNN a step takes up to twice the pool, and buffers for
# weights in its layouts.
_ONEDNN_FACTOR = 2


@dataclass
class GraphRun:
    """One of the two graphs, and the variables that it runs with."""

    name: str  # BASELINE or PLANNED
    file: SymbolFile
    analysis: Analysis
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class RunConditions:
    """What both graphs run under. ``steps``: how many are timed, None: what seconds allow."""

    device: str
    seed: int
    steps: int | None
    onednn: bool
    memory_limit: int | None = None  # bytes that a process may take
    save_as: str = "as-planned"


def train_sides(
    sides: Sequence[GraphRun], under: RunConditions, workdir: Path, on_progress: Progress | None
) -> list[dict[str, Any]]:
    """Train a step of each graph.

    Args:
        sides: the graphs.
        under: what they run under.
        workdir: folder for their arrays.
        on_progress: told what is going on.

    Returns:
        Of each, what :func:`memcli.engines.mxnet.step.handle` returns.

    Raises:
        BadInput: a graph does not bind.
        EngineFailed: MXNet or the device is missing, or a step crashed.
    """
    results = []
    for side in sides:
        path = workdir / f"{side.name}.json"
        path.write_text(prepare(side.file.raw, marked=None)[0])
        job = {
            "symbol": str(path),
            **side.analysis.binding(),
            "env": side.environment,
            "device": under.device,
            "seed": under.seed,
            "save": str(_results_file(workdir, side.name, under)),
            "onednn": under.onednn,
            "memory_limit": under.memory_limit,
            "grad_req": side.analysis.gradient_requests(),
            "repeat": 5 if under.steps is None and under.device != "cpu" else under.steps,
            "trace": True,
        }

        def tell(text: str, fraction: float | None = None, name: str = side.name) -> None:
            if on_progress:
                on_progress(f"{name}: {text}", fraction)

        results.append(
            train_step(
                job,
                workdir=workdir,
                on_progress=tell,
                doing=f"training one step of the {side.name} graph",
            )
        )
    return results


def compare_sides(
    workdir: Path, under: RunConditions, name_of: Callable[[str, int], str]
) -> dict[str, Compared]:
    """Compare all arrays of both graphs' steps, bit by bit.

    Args:
        workdir: folder of their arrays.
        under: what they ran under.
        name_of: the name of an array, of its kind and index.
    """
    return compare_files(
        _results_file(workdir, BASELINE, under), _results_file(workdir, PLANNED, under), name_of
    )


def _results_file(workdir: Path, name: str, under: RunConditions) -> Path:
    return workdir / f"{name}-{under.save_as}.npz"


def kernel_runs(results: Sequence[dict[str, Any]], compared: dict[str, Compared]) -> KernelRuns:
    """Both graphs' steps as rows of a table of kernels."""
    baseline, planned = (
        KernelRun(
            measured_bytes=int(result["peak_bytes"]),
            workspace_bytes=int(result["workspace_bytes"]),
            step_seconds=result["step_seconds"],
        )
        for result in results
    )
    return KernelRuns(baseline, planned, all_equal(compared.values()))


def on_default_kernels(
    sides: Sequence[GraphRun],
    plain: Sequence[dict[str, Any]],
    needed: int,
    under: RunConditions,
    workdir: Path,
    *,
    however_long: bool,
    on_progress: Progress | None = None,
) -> KernelRuns:
    """Both graphs as MXNet starts by default: with oneDNN, and no variable of the plan's.

    Nothing that happens here is a failure: where nothing was run, the result says why.

    Args:
        sides: the two graphs.
        plain: their steps on plain kernels.
        needed: bytes that verifying takes at most on plain kernels.
        under: seed and timed steps.
        workdir: for large files.
        however_long: whether to run graphs whose steps take long, too.
        on_progress: told what is being done.
    """
    seconds = sum(float(result["first_step_seconds"]) for result in plain)
    if seconds > _LONG_STEPS and not however_long:
        return KernelRuns(
            left_out=f"a step of both graphs takes {seconds:.0f} s; --kernels both runs them"
        )
    free = int(available_bytes() * USABLE)
    pool = max(int(result["peak_bytes"]) for result in plain)
    needed += _ONEDNN_FACTOR * pool
    if needed > free:
        return KernelRuns(
            left_out=f"a step with oneDNN may take {format_size(needed)}, and "
            f"{format_size(free)} are free here; a smaller --batch takes less"
        )
    conditions = RunConditions(
        "cpu", under.seed, under.steps, onednn=True, memory_limit=free, save_as="as-default"
    )
    plainly = [GraphRun(side.name, side.file, side.analysis) for side in sides]

    def tell(text: str, fraction: float | None = None) -> None:
        if on_progress:
            on_progress(f"default kernels: {text}", fraction)

    try:
        results = train_sides(plainly, conditions, workdir, tell)
        compared = compare_sides(workdir, conditions, lambda kind, index: f"{kind} {index}")
    except MemcliError as error:
        return KernelRuns(left_out=f"it failed: {error.message}")
    return kernel_runs(results, compared)
