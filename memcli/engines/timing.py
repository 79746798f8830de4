"""Measured times of forward operators: what recomputing each really costs on this device.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.analysis import Analysis
from memcli.engines.gpus import check_gpu
from memcli.engines.process import Progress, WorkerFailed, run_job
from memcli.graph.roofline import (
    MACHINES,
    Machine,
    machine_named,
    only_names_data,
    roofline_seconds,
)
from memcli.graph.training import TrainingGraph
from memcli.memory.mxnet_operators import OPAQUE_OPERATORS
from memcli.rewrites.prepare import prepare

_WORKER = "memcli.engines.mxnet_times"
_STARTS = 5  # of the engine, where operators crash it
# Loading the engine, drawing values and one operator that is slower than expected, in seconds.
_GRACE_SECONDS = 60.0

# oneDNN's layout of feature maps: operators that begin with it, and those that hand it on.
_MAKES_BLOCKED = frozenset({"Convolution", "Deconvolution"})
_KEEPS_BLOCKED = frozenset(
    {
        "BatchNorm", "Activation", "LeakyReLU", "Pooling", "elemwise_add", "add_n", "Concat", "LRN",
        "_copy", "BlockGrad",
    }
)  # fmt: skip
_DTYPE_OF_SIZE = {1: "uint8", 2: "float16", 4: "float32", 8: "float64"}


@dataclass
class OperatorTimes:
    """What ``measure_operator_seconds`` found. Times in seconds.

    ``seconds``: of one run of each forward node, the fastest that was seen; 0 for variables.
    ``processor_seconds``: of all threads of the CPU together, which other work on the machine
    hardly changes (on a GPU it is only what the CPU does for it). ``launch_seconds``: of
    starting an operator that does nothing, which is also what operators that only name data get.
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


def argument_dtypes(analysis: Analysis) -> dict[int, str]:
    """Position in the file -> dtype name, of arguments and states: for the following."""
    rows = [*analysis.arguments, *analysis.auxiliary]
    return {
        int(row["prepared"][1:]): row["dtype"]
        for row in rows
        if str(row.get("prepared", ""))[1:].isdigit()
    }


def measure_operator_seconds(
    graph: TrainingGraph,
    device: str = "cpu",
    *,
    dtypes: Mapping[int, str] | None = None,
    onednn: bool = True,
    limit_seconds: float = 60.0,
    repeats: int = 5,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> OperatorTimes:
    """Time every kind of forward operator of ``graph`` on the real engine.

    ``device``: "cpu" or "gpu:N". ``dtypes``: of variables by their position (see
    ``argument_dtypes``); those not there get the float of their size. ``onednn``: as training
    has it unless told otherwise; False: MXNet's plain code, under which ``verify`` measures memory
    and which is several times slower. ``limit_seconds``: for all timing; the engine's own start
    comes on top. ``repeats``: timed runs of each kind, of which the fastest counts.

    Operators run as in training (BatchNorm on the batch's statistics, Dropout drawing). Never fails
    for an operator: one that crashes the engine is estimated and the rest goes on in a new process.

    Raises:
        EngineFailed: MXNet is missing, or the device is no use to it.
    """
    started = time.monotonic()
    machine = MACHINES["cpu"]
    shown = "cpu"
    if device.startswith("gpu"):
        gpu = check_gpu(int(device.partition(":")[2] or 0))
        machine, shown = machine_named(gpu.name), f"{device} ({gpu.name})"
    expected = roofline_seconds(graph, machine)
    kinds, kind_of, unrunnable = _kinds(graph, dtypes or {}, expected)
    order = _order(kinds, kind_of)
    seconds, skipped, launch = _run(
        [kinds[k] for k in order if k not in unrunnable],
        {
            "device": device, "onednn": onednn, "repeats": repeats, "seed": seed,
        },
        limit_seconds,
        on_progress,
    )  # fmt: skip
    skipped.update(dict.fromkeys(unrunnable, "cannot be run alone"))
    results = []
    for which in (0, 1):
        times = {k: both[which] for k, both in seconds.items()}
        factor = _factors(kinds, times)
        result = np.zeros(graph.n_forward, np.float64)
        for v, k in enumerate(kind_of):
            if k == _NAMES:
                result[v] = launch
            elif k >= 0:
                scaled = kinds[k]["roofline"] * factor.get(kinds[k]["op"], factor[""])
                result[v] = times.get(k, max(scaled, launch))
        results.append(result)
    measured = np.array([k == _NAMES or k in seconds for k in kind_of], bool)
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
        measured=measured,
        device=shown,
        machine=machine,
        launch_seconds=launch,
        timed_kinds=len(seconds),
        estimated_kinds=len(skipped),
        spent_seconds=time.monotonic() - started,
        why=dict(why),
        failed=failed,
    )


_REASONS = {
    "time": "for want of time",
    "memory": "for want of memory",
    "crash": "that crash the engine when run alone",
    "cannot be run alone": "that cannot be run alone",
}
_NAMES = -2  # in place of a kind: the operator only names data


def measure_forward_seconds(
    raw: Mapping[str, Any],
    analysis: Analysis,
    device: str = "cpu",
    *,
    onednn: bool = True,
    repeats: int = 5,
    timeout: float | None = 600.0,
    on_progress: Progress | None = None,
) -> tuple[float, float]:
    """Seconds of a whole forward pass of the symbol ``raw`` in training mode: by the clock, and
    of all threads of the processor; of each the least of ``repeats`` runs.

    ``analysis`` is that of the same symbol: its shapes and dtypes are used. ``device`` and
    ``onednn`` as for ``measure_operator_seconds``.

    Raises:
        BadInput: MXNet refuses the graph.
        EngineFailed: MXNet or the device is missing, crashed, or took longer than ``timeout`` s.
    """
    text, _ = prepare(dict(raw), marked=())
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        path = Path(folder) / "whole.json"
        path.write_text(text)
        job = {
            "symbol": str(path),
            **analysis.binding(),
            "device": device,
            "onednn": onednn,
            "repeats": repeats,
        }
        result = run_job(
            _WORKER, job, workdir=Path(folder), timeout=timeout, on_progress=on_progress,
            doing="timing a forward pass",
        )  # fmt: skip
    return float(result["seconds"]), float(result["processor_seconds"])


def _kinds(
    graph: TrainingGraph, dtypes: Mapping[int, str], expected: NDArray[np.float64]
) -> tuple[list[dict[str, Any]], list[int], set[int]]:
    """Kinds of operators, the kind of each forward node (-1 variables), and which cannot run."""
    type_of = _entry_dtypes(graph, dtypes)
    blocked = _blocked(graph)
    names = only_names_data(graph)
    kinds: list[dict[str, Any]] = []
    number_of: dict[str, int] = {}
    kind_of = []
    unrunnable = set()
    for v in range(graph.n_forward):
        if graph.kind[v] < 0 or names[v]:
            kind_of.append(-1 if graph.kind[v] < 0 else _NAMES)
            continue
        kind = graph.kinds[graph.kind[v]]
        entries = [int(e) for e in graph.inputs(v)]
        distinct = list(dict.fromkeys(entries))
        outputs = list(graph.entries(v))
        attrs = dict(kind.attrs)
        if not entries and "shape" in attrs:  # begin states leave it to their readers
            attrs["shape"] = str(graph.shape(outputs[0]))
        spec = {
            "op": kind.op,
            "attrs": attrs,
            "inputs": [
                {"shape": graph.shape(e), "dtype": type_of[e], "blocked": bool(blocked[e])}
                for e in distinct
            ],
            "slots": [distinct.index(e) for e in entries],
            "heads": [i for i, e in enumerate(outputs) if graph.visible[e]] or [0],
            "output_bytes": int(graph.entry_bytes[outputs].sum()),
        }
        key = json.dumps(spec, sort_keys=True)
        number = number_of.setdefault(key, len(kinds))
        if number == len(kinds):
            spec["number"] = number
            spec["roofline"] = float(expected[v])
            kinds.append(spec)
            unknown = any(graph.elements[e] < 0 for e in [*entries, *outputs])
            if kind.op in OPAQUE_OPERATORS or unknown:
                unrunnable.add(number)
        kind_of.append(number)
    return kinds, kind_of, unrunnable


def _entry_dtypes(graph: TrainingGraph, dtypes: Mapping[int, str]) -> dict[int, str]:
    """Name of each forward entry's dtype: as told, as an attribute says, or as what it came from.

    The graph knows sizes of elements alone; whatever is said here has that size.
    """
    result: dict[int, str] = {}
    for v in range(graph.n_forward):
        told = dtypes.get(int(graph.position[v]))
        inherited = [result[int(e)] for e in graph.inputs(v)]
        if graph.kind[v] >= 0:
            told = graph.kinds[graph.kind[v]].attrs.get("dtype")
        for e in graph.entries(v):
            size = int(graph.itemsize[e])
            fitting = [name for name in [told, *inherited] if name and _size_of(name) == size]
            result[e] = fitting[0] if fitting else _DTYPE_OF_SIZE.get(size, "float32")
    return result


def _size_of(dtype: str) -> int:
    """Bytes of an element; 0 for what is no dtype."""
    try:
        return int(np.dtype(dtype).itemsize)
    except TypeError:
        return 0


def _blocked(graph: TrainingGraph) -> NDArray[np.bool_]:
    """Over entries: whether oneDNN hands the tensor on in its own layout (with oneDNN on)."""
    result = np.zeros(graph.n_entries, bool)
    for v in range(graph.n_forward):
        op = graph.op(v)
        entries = graph.inputs(v)
        output = int(graph.first[v])
        if op in _MAKES_BLOCKED:
            result[output] = True
        elif op in _KEEPS_BLOCKED and len(entries):
            result[output] = result[entries[0]] and len(graph.shape(int(entries[0]))) > 2
    return result


def _order(kinds: list[dict[str, Any]], kind_of: list[int]) -> list[int]:
    """Kinds in the order to time them: one of each operator first, then by what hangs on them."""
    uses = Counter(kind_of)
    share = {k: uses[k] * kind["roofline"] for k, kind in enumerate(kinds)}
    # The cheapest of an operator tells its ratio, even if the time is up right after.
    cheapest: dict[str, int] = {}
    for k, kind in enumerate(kinds):
        other = cheapest.setdefault(kind["op"], k)
        if kind["roofline"] < kinds[other]["roofline"]:
            cheapest[kind["op"]] = k
    first = sorted(cheapest.values(), key=lambda k: kinds[k]["roofline"])
    rest = sorted(set(share) - set(first), key=lambda k: -share[k])
    return first + rest


def _factors(kinds: list[dict[str, Any]], seconds: Mapping[int, float]) -> dict[str, float]:
    """By operator: the median of measured over roofline; under "" that of all."""
    ratios: dict[str, list[float]] = {"": []}
    for k, measured in seconds.items():
        ratio = measured / kinds[k]["roofline"]
        ratios.setdefault(kinds[k]["op"], []).append(ratio)
        ratios[""].append(ratio)
    return {op: statistics.median(found) if found else 1.0 for op, found in ratios.items()}


def _run(
    kinds: list[dict[str, Any]],
    common: dict[str, Any],
    limit: float,
    on_progress: Progress | None,
) -> tuple[dict[int, tuple[float, float]], dict[int, str], float]:
    """Seconds by kind (clock, processor), why others were skipped, and the launch.

    Starts the engine again where an operator crashes it.
    """
    seconds: dict[int, tuple[float, float]] = {}
    skipped: dict[int, str] = {}
    launch = 0.0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        for attempt in range(_STARTS):
            todo = [k for k in kinds if k["number"] not in seconds and k["number"] not in skipped]
            left = limit - (time.monotonic() - started)
            if attempt and (not todo or left <= 0):
                break
            log = Path(folder) / f"times-{attempt}.jsonl"
            log.touch()
            job = {**common, "kinds": todo, "limit": left, "log": str(log)}
            error: WorkerFailed | None = None
            try:
                run_job(
                    _WORKER, job, workdir=Path(folder), timeout=left + _GRACE_SECONDS,
                    on_progress=on_progress, doing="timing operators",
                )  # fmt: skip
            except WorkerFailed as failure:
                error = failure
            running, told = _read_log(log, seconds, skipped)
            launch = told or launch
            if error is None:
                break
            if running is None:  # it was none of the operators
                raise error
            skipped[running] = "crash"
    for kind in kinds:
        if kind["number"] not in seconds:
            skipped.setdefault(kind["number"], "time")
    return seconds, skipped, launch


def _read_log(
    path: Path, seconds: dict[int, tuple[float, float]], skipped: dict[int, str]
) -> tuple[int | None, float]:
    """Adds what the worker told; the kind that it was at when it ended, and the launch."""
    running: int | None = None
    launch = 0.0
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        if "launch" in row:
            launch = float(row["launch"])
        elif "start" in row:
            running = int(row["start"])
        else:
            running = None
            if "seconds" in row:
                seconds[int(row["number"])] = (
                    float(row["seconds"]),
                    float(row["processor_seconds"]),
                )
            else:
                skipped[int(row["number"])] = str(row["skipped"])
    return running, launch
