"""What a verification found: two steps compared array by array, their memory, the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.errors import EngineFailed
from memcli.units import format_size

if TYPE_CHECKING:
    from memcli.results.planned import BatchSplit

# The two graphs of a verification.
BASELINE = "baseline"
PLANNED = "planned"

# The device where libraries stand in for a card: memory is counted, and nothing is computed.
SIMULATED_CARD = "simulated card"

# So much more than estimated, as a part of it, is no confirmation any more.
MOST_OVER = 0.05


@dataclass
class Compared:
    """Arrays of one kind in both runs."""

    compared: int = 0
    bit_equal: int = 0
    max_abs_diff: float = 0.0
    max_rel_diff: float = 0.0
    different: list[str] = field(default_factory=list)
    nonfinite: int = 0


@dataclass
class Run:
    """One graph's step. Sizes in bytes, times in seconds.

    ``step_seconds``: the median of steps after a warm-up step, None where none were timed.
    ``granularity_bytes``: what the way of measuring may add of its own.
    """

    estimated_bytes: int
    measured_bytes: int
    step_seconds: float | None
    workspace_bytes: int
    reserved_bytes: int = 0  # what CUDA's caching allocator took from the card, where it was asked
    estimated_reserved_bytes: int = 0  # the same by its emulation, with parameters and work spaces
    granularity_bytes: int = 0

    @property
    def over(self) -> float:
        """The measurement over the estimate, as a part of it."""
        if not self.estimated_bytes:
            return 0.0
        return self.measured_bytes / self.estimated_bytes - 1

    @property
    def memory_ok(self) -> bool:
        """Whether the measurement confirms the estimate."""
        most = self.estimated_bytes * (1 + MOST_OVER) + self.granularity_bytes
        return self.measured_bytes <= most


@dataclass
class KernelRun:
    """One graph's step on one kind of kernels. Sizes in bytes, times in seconds.

    ``measured_bytes``: feature maps, their gradients, and buffers that the kernels hold beside
    them. ``workspace_bytes``: what the engine keeps between steps.
    """

    measured_bytes: int
    workspace_bytes: int
    step_seconds: float | None


@dataclass
class KernelRuns:
    """Both graphs on one kind of MXNet's kernels for the CPU; no runs: ``left_out`` says why."""

    baseline: KernelRun | None = None
    planned: KernelRun | None = None
    bits_equal: bool | None = None
    left_out: str = ""


@dataclass
class StageMeasured:
    """Estimate and measurement at the end of a stage's forward, and at the most it sees."""

    index: int
    first: str
    last: str
    operators: int
    estimated_forward: int
    measured_forward: int | None
    estimated_bytes: int
    measured_bytes: int | None


@dataclass
class Verified:
    """The outcome of a verification."""

    planned_path: str
    original: str  # which original, in words
    device: str
    shapes: dict[str, list[int]]
    baseline: Run
    planned: Run
    outputs: Compared
    gradients: Compared
    states: Compared
    stages: list[StageMeasured]
    method: str
    scaled: dict[str, Any] | None  # batch that was asked for, used, and why
    notes: list[str]
    seed: int
    engine: str = "mxnet"
    # Where several workers trained together: runs above are the most that any of them took,
    # compared are all their arrays.
    split: BatchSplit | None = None
    workers: list[WorkerRun] = field(default_factory=list)
    # MXNet on the CPU: PLAIN and DEFAULT, those of them that were asked for.
    kernels: dict[str, KernelRuns] = field(default_factory=dict)
    # What is known to be in a measurement and in no estimate, in words.
    beside_estimate: list[str] = field(default_factory=list)

    @property
    def simulated(self) -> bool:
        """Whether a simulated card ran the steps, on which no bit means anything."""
        return self.device == SIMULATED_CARD

    @property
    def ok(self) -> bool | None:
        """Whether every array is equal to the bit; None where that cannot be told."""
        if self.simulated:
            return None
        return all_equal((self.outputs, self.gradients, self.states))

    @property
    def memory_ok(self) -> bool:
        """Whether both graphs took no more than MOST_OVER beyond their estimates."""
        return self.baseline.memory_ok and self.planned.memory_ok

    def memory_faults(self) -> list[str]:
        """Which graph took more than estimated, where it began, and what is known of why."""
        faults = []
        for name, run in (("baseline", self.baseline), ("planned", self.planned)):
            if not run.memory_ok:
                faults.append(
                    f"the {name} graph takes {format_size(run.measured_bytes)}, {run.over:.0%} "
                    f"over the {format_size(run.estimated_bytes)} estimated"
                )
        if not self.planned.memory_ok:
            faults += _first_over(self.stages, self.planned.granularity_bytes)
        return faults + self.beside_estimate if faults else []

    def to_json(self) -> dict[str, Any]:
        """The object that ``verify --json`` prints."""
        from memcli.reports.verify_report import verify_json

        return verify_json(self)


def _first_over(stages: list[StageMeasured], granularity: int) -> list[str]:
    """Where a step first takes more than estimated; nothing where no stage tells."""
    forward = [("forward", s, s.estimated_forward, s.measured_forward) for s in stages]
    backward = [("backward", s, s.estimated_bytes, s.measured_bytes) for s in reversed(stages)]
    for part, stage, estimated, measured in forward + backward:
        if measured is not None and measured > (1 + MOST_OVER) * estimated + granularity:
            return [f"first in the {part} of stage {stage.index} ({stage.first} to {stage.last})"]
    return []


def all_equal(parts: Iterable[Compared]) -> bool:
    """Whether every array of all kinds is equal to the bit."""
    return all(part.compared == part.bit_equal for part in parts)


def result_notes(
    first: dict[str, Any], second: dict[str, Any], compared: dict[str, Compared]
) -> list[str]:
    """What is odd about two steps' results, in words.

    Args:
        first: what one step returned.
        second: what the other returned.
        compared: by kind; what is not finite is counted in it.
    """
    notes = []
    for kind in ("outputs", "gradients", "states"):
        bad = int(first["nonfinite"][kind])
        compared[kind].nonfinite = bad
        if bad:
            notes.append(f"{bad} {kind} of the original hold NaN or infinity at this seed")
    if not (first["repeatable"] and second["repeatable"]):
        notes.append(
            "a second step from the same seed gave other bits: this graph is not "
            "deterministic on this device"
        )
    return notes


def compare_files(
    first: Path, second: Path, name_of: Callable[[str, int], str]
) -> dict[str, Compared]:
    """Compare all arrays of two steps, bit by bit.

    Args:
        first: the file of one step's arrays (``.npz``).
        second: the other's.
        name_of: the name of an array, of its kind and index.

    Returns:
        By kind: ``outputs``, ``gradients``, ``states``.
    """
    kinds = {"out": "outputs", "grad": "gradients", "aux": "states"}
    result = {kind: Compared() for kind in kinds.values()}
    with np.load(first) as a, np.load(second) as b:
        keys = [k for k in a.files if k.partition("_")[0] in kinds]
        missing = {k for k in b.files if k.partition("_")[0] in kinds} ^ set(keys)
        if missing:
            raise EngineFailed(f"the two steps gave different sets of arrays: {sorted(missing)[0]}")
        for key in keys:
            kind, _, index = key.partition("_")
            _compare(result[kinds[kind]], a[key], b[key], name_of(kind, int(index)))
    return result


def _compare(into: Compared, a: Any, b: Any, name: str) -> None:
    into.compared += 1
    if a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes():
        into.bit_equal += 1
        return
    into.different.append(name)
    if a.shape != b.shape:
        into.max_abs_diff = into.max_rel_diff = float("inf")
        return
    with np.errstate(all="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        difference = np.abs(x - y)
        # equal infinities and NaN in the same place are no difference
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        difference = np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
        largest = float(difference.max(initial=0.0))
        scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
    into.max_abs_diff = max(into.max_abs_diff, largest)
    into.max_rel_diff = max(into.max_rel_diff, largest / scale if scale else largest)


@dataclass
class WorkerRun:
    """One worker's steps, original and planned. Sizes in bytes.

    ``gradient_bytes``: of parameters. ``bucket_bytes``: DistributedDataParallel's copies of them.
    ``outputs``, ``gradients``, ``states``: those of this worker under the plan and without it.
    """

    rank: int
    label: str
    device: str  # cpu or gpu:N
    name: str  # of the device
    baseline: Run
    planned: Run
    gradient_bytes: int
    bucket_bytes: int
    outputs: Compared
    gradients: Compared
    states: Compared
