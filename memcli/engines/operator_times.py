"""What operators were measured to take, by any engine, and what stands in for those that were not.

Operators that are alike (kind, attributes, shapes, dtypes, layout) are timed once. Those that
cannot be run alone, do not fit, or have no time left are estimated: by the roofline, scaled by what
operators of the same name were measured to take against it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.processes.jobs import run_job
from memcli.engines.processes.parent_side import Progress, WorkerFailed
from memcli.graph.roofline import Machine

_STARTS = 5  # of the engine, where operators crash it
# Loading the engine, drawing values and one operator that is slower than expected, in seconds.
_GRACE_SECONDS = 60.0

# In place of a node's kind: it computes nothing at all, or only names data.
NOTHING, NAMES = -1, -2


@dataclass
class OperatorTimes:
    """What ``operator_times`` put together. Times in seconds.

    ``seconds``: of one run of each forward node; 0 for variables. ``processor_seconds``: of all
    threads of the CPU together, which other work on the machine hardly changes (on a GPU it is
    only what the CPU does for it). ``launch_seconds``: of starting an operator that does nothing,
    which is also what operators that only name data get.
    """

    seconds: NDArray[np.float64]
    processor_seconds: NDArray[np.float64]
    measured: NDArray[np.bool_]  # over forward nodes: timed, not estimated (variables: False)
    device: str
    machine: Machine  # whose roofline the estimates go by
    launch_seconds: float
    timed_kinds: int
    estimated_kinds: int
    spent_seconds: float
    why: dict[str, int] = field(default_factory=dict)  # reason -> kinds that were estimated
    failed: dict[str, str] = field(default_factory=dict)  # operator -> what the engine said

    @property
    def estimated_share(self) -> float:
        """Part of the forward pass's seconds that is estimated, 0 to 1."""
        total = float(self.seconds.sum())
        mine = float(self.seconds[~self.measured].sum())
        return mine / total if total else 0.0

    @property
    def notes(self) -> list[str]:
        """What to tell the user, in sentences."""
        kinds = self.timed_kinds + self.estimated_kinds
        told = [
            f"{kinds} kinds of operators, {self.timed_kinds} timed on {self.device} in "
            f"{self.spent_seconds:.1f} s"
        ]
        if self.estimated_kinds:
            reasons = ", ".join(f"{n} {why}" for why, n in sorted(self.why.items()))
            told.append(
                f"{self.estimated_kinds} of them ({self.estimated_share:.0%} of the forward pass) "
                f"estimated by the roofline and what was timed: {reasons}"
            )
        return told


@dataclass
class Timings:
    """What the engine's processes told.

    ``seconds`` by kind: of the clock, of the processor. ``skipped``: why others have none.
    ``told``: the last row that was neither a kind's start nor its end nor the launch.
    """

    seconds: dict[int, tuple[float, float]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    launch: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> set[int]:
        """Kinds that need no further attempt."""
        return {*self.seconds, *self.skipped}


def run_timings(
    worker: str,
    job: Mapping[str, Any],
    remaining: Callable[[set[int]], Mapping[str, Any] | None],
    limit: float,
    workdir: Path | None = None,
    on_progress: Progress | None = None,
) -> Timings:
    """Have a worker time kinds of operators.

    The engine is started anew where an operator crashes it.

    Args:
        worker: a module with a :class:`memcli.engines.kind_timer.KindTimer`.
        job: what to do, as JSON.
        remaining: given the kinds that are done, the part of the job that says what to time; None
            where nothing is left.
        limit: seconds for all timing.
        workdir: folder for large files.
        on_progress: told what is going on.

    Raises:
        EngineFailed: the engine or the device is missing, or crashed before any operator.
    """
    found = Timings()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memcli-", dir=workdir) as folder:
        for attempt in range(_STARTS):
            todo = remaining(found.done)
            left = limit - (time.monotonic() - started)
            if attempt and (todo is None or left <= 0):
                break
            log = Path(folder) / f"times-{attempt}.jsonl"
            log.touch()
            error: WorkerFailed | None = None
            try:
                run_job(
                    worker,
                    {**job, **(todo or {}), "limit": left, "log": str(log)},
                    workdir=Path(folder),
                    timeout=left + _GRACE_SECONDS,
                    on_progress=on_progress,
                    doing="timing operators",
                )
            except WorkerFailed as failure:
                error = failure
            running = _read_log(log, found)
            if error is None:
                break
            if running is None:  # it was none of the operators
                raise error
            found.skipped[running] = "crash"
    return found


def _read_log(path: Path, found: Timings) -> int | None:
    """Adds what the worker told; the kind that it was at when it ended."""
    running: int | None = None
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        if "launch" in row:
            found.launch = float(row["launch"]) or found.launch
        elif "start" in row:
            running = int(row["start"])
        elif "number" not in row:
            found.told = row
        else:
            running = None
            number = int(row["number"])
            if "seconds" in row:
                found.seconds[number] = float(row["seconds"]), float(row["processor_seconds"])
            else:
                found.skipped[number] = str(row["skipped"])
    return running


_REASONS = {
    "time": "for want of time",
    "memory": "for want of memory",
    "crash": "that crash the engine when run alone",
    "cannot be run alone": "that cannot be run alone",
}


def operator_times(
    kinds: Sequence[Mapping[str, Any]],
    kind_of: Sequence[int],
    found: Timings,
    *,
    device: str,
    machine: Machine,
    started: float,
) -> OperatorTimes:
    """Times of all nodes from those of kinds.

    Args:
        kinds: rows with ``op`` and ``roofline``, seconds.
        kind_of: the kind of each node, ``NAMES`` or ``NOTHING``.
        found: times of the kinds.
        device: that kinds were timed on.
        machine: whose roofline stands in where a kind has no time.
        started: when timing began, by the monotonic clock.
    """
    skipped = {k: found.skipped.get(k, "time") for k in range(len(kinds)) if k not in found.seconds}
    results = []
    for which in (0, 1):
        times = {k: both[which] for k, both in found.seconds.items()}
        factor = _factors(kinds, times)
        result = np.zeros(len(kind_of), np.float64)
        for v, k in enumerate(kind_of):
            if k == NAMES:
                result[v] = found.launch
            elif k >= 0:
                scaled = kinds[k]["roofline"] * factor.get(kinds[k]["op"], factor[""])
                result[v] = times.get(k, max(scaled, found.launch))
        results.append(result)
    why: Counter[str] = Counter()
    failed: dict[str, str] = {}
    for k, reason in skipped.items():
        if reason in _REASONS:
            why[_REASONS[reason]] += 1
        else:
            why["failed when run alone"] += 1
            failed.setdefault(kinds[k]["op"], reason)
    return OperatorTimes(
        seconds=results[0],
        processor_seconds=results[1],
        measured=np.array([k == NAMES or k in found.seconds for k in kind_of], bool),
        device=device,
        machine=machine,
        launch_seconds=found.launch,
        timed_kinds=len(found.seconds),
        estimated_kinds=len(skipped),
        spent_seconds=time.monotonic() - started,
        why=dict(why),
        failed=failed,
    )


def _factors(kinds: Sequence[Mapping[str, Any]], seconds: Mapping[int, float]) -> dict[str, float]:
    """By operator: the median of measured over roofline; under "" that of all."""
    ratios: dict[str, list[float]] = {"": []}
    for k, measured in seconds.items():
        ratio = measured / kinds[k]["roofline"]
        ratios.setdefault(kinds[k]["op"], []).append(ratio)
        ratios[""].append(ratio)
    return {op: statistics.median(found) if found else 1.0 for op, found in ratios.items()}
