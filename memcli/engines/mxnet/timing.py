"""Measured times of MXNet's forward operators: what recomputing each really costs on this device.

See :mod:`memcli.engines.operator_times` for how they are put together.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.gpus import check_gpu
from memcli.engines.kind_timer import timing_order
from memcli.engines.mxnet.memory.operators import OPAQUE_OPERATORS
from memcli.engines.mxnet.record import Analysis
from memcli.engines.operator_times import (
    NAMES,
    NOTHING,
    OperatorTimes,
    operator_times,
    run_timings,
)
from memcli.engines.processes.jobs import run_job
from memcli.engines.processes.parent_side import Progress
from memcli.formats.symbol.prepare import prepare
from memcli.graph.roofline import MACHINES, machine_named, only_names_data, roofline_seconds
from memcli.graph.training import TrainingGraph
from memcli.quoting import whole_number

_WORKER = "memcli.engines.mxnet.times"

# oneDNN's layout of feature maps: operators that begin with it, and those that hand it on.
_MAKES_BLOCKED = frozenset({"Convolution", "Deconvolution"})
_KEEPS_BLOCKED = frozenset(
    {
        "BatchNorm",
        "Activation",
        "LeakyReLU",
        "Pooling",
        "elemwise_add",
        "add_n",
        "Concat",
        "LRN",
        "_copy",
        "BlockGrad",
    }
)
_DTYPE_OF_SIZE = {1: "uint8", 2: "float16", 4: "float32", 8: "float64"}


def argument_dtypes(analysis: Analysis) -> dict[int, str]:
    """Position in the file -> dtype name, of arguments and states: for the following."""
    rows = [*analysis.arguments, *analysis.auxiliary]
    return {
        int(row["prepared"][1:]): row["dtype"]
        for row in rows
        if whole_number(str(row.get("prepared", ""))[1:]) is not None
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

    Operators run as in training (BatchNorm on the batch's statistics, Dropout drawing). Never fails
    for an operator: one that crashes the engine is estimated and the rest goes on in a new process.

    Args:
        graph: the training graph.
        device: "cpu" or "gpu:N".
        dtypes: of variables by their position (see ``argument_dtypes``); those not there get the
            float of their size.
        onednn: as training has it unless told otherwise; False: MXNet's plain code, under which
            ``verify`` measures memory and which is several times slower.
        limit_seconds: for all timing; the engine's own start comes on top.
        repeats: timed runs of each kind, of which the fastest counts.
        seed: of random numbers.
        on_progress: told what is going on.

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
    order = [k for k in timing_order(kinds, kind_of) if k not in unrunnable]

    def remaining(done: set[int]) -> dict[str, Any] | None:
        todo = [kinds[k] for k in order if k not in done]
        return {"kinds": todo} if todo else None

    found = run_timings(
        _WORKER,
        {"device": device, "onednn": onednn, "repeats": repeats, "seed": seed},
        remaining,
        limit_seconds,
        on_progress=on_progress,
    )
    found.skipped.update(dict.fromkeys(unrunnable, "cannot be run alone"))
    return operator_times(kinds, kind_of, found, device=shown, machine=machine, started=started)


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
    """Seconds of a whole forward pass of a symbol in training mode.

    Args:
        raw: the symbol's content.
        analysis: of the same symbol: its shapes and types are used.
        device: as for ``measure_operator_seconds``.
        onednn: as for ``measure_operator_seconds``.
        repeats: runs.
        timeout: seconds; None: any.
        on_progress: told what is going on.

    Returns:
        The least of all runs, by the clock and of all threads of the processor.

    Raises:
        BadInput: MXNet refuses the graph.
        EngineFailed: MXNet or the device is missing, crashed, or took longer than ``timeout``.
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
            _WORKER,
            job,
            workdir=Path(folder),
            timeout=timeout,
            on_progress=on_progress,
            doing="timing a forward pass",
        )
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
            kind_of.append(NOTHING if graph.kind[v] < 0 else NAMES)
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
