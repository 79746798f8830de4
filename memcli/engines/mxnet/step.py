"""Trains one real step of a symbol with MXNet and measures its memory (a worker).

Run through ``memcli.engines.processes.jobs.run_job`` (``train_step`` does it). What is measured is
what the engine took from the C library, or from the card, never an estimate:

1. *Warm-up*: bind, one step (its results are the ones kept), let go. What stays allocated after
   that is the engine's own (work space of operators, handles of libraries): ``workspace_bytes``.
2. *Measured step*: bind once more. MXNet allocates arguments, gradients and states in the bind,
   and the pool for feature maps and their gradients block by block as operators first touch it.
   So what grows from here on is the pool, and some 2 KB for each operator that the executor
   keeps of its own on first use. In a graph of many small operators that is much.
3. *Control step* (CPU): bind with the same arrays and the same pool. Nothing of the pool is to be
   allocated any more, so what grows now is the executor's own: ``executor_bytes``, taken off.

With ``trace`` the engine runs every operator at once where it is called (``NaiveEngine``), and a
monitor callback reads the memory after each one, in the measured and in the control step.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import io
import json
import os
import time
import zipfile
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines import live_memory
from memcli.engines.gpus import check_gpu
from memcli.engines.mxnet.shim import import_mxnet
from memcli.engines.mxnet.values import (
    argument_values,
    read_symbol,
    state_values,
    undefined_gradients,
)
from memcli.engines.processes.jobs import run_job
from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import engine_text, worker_main
from memcli.engines.timed_steps import steps_to_time
from memcli.engines.user_code import run_files
from memcli.errors import BadInput, EngineFailed

# What the environment of the user's shell may not decide: it would change the plan, or the
# numbers. What the plan needs is in the job.
_CLEARED = (
    "MXNET_BACKWARD_DO_MIRROR",
    "MXNET_EXEC_INPLACE_GRAD_SUM_CAP",
    "MXNET_ELIMINATE_COMMON_EXPR",
    "MXNET_MEM_PLAN_VERBOSE_LOGGING",
    "MXNET_INFER_STORAGE_TYPE_VERBOSE_LOGGING",
    "MXNET_EXEC_VERBOSE_LOGGING",
    "MXNET_PROFILER_AUTOSTART",
    "MXNET_SUBGRAPH_BACKEND",
    "NNVM_EXEC_MATCH_RANGE",
    "NNVM_AUTO_SEARCH_MATCH_RANGE",
    "NNVM_EXEC_NUM_TEMP",
)

# What an executor keeps of its own for each operator, about; where that cannot be half a percent
# of the whole, the third step that tells it exactly is left out.
_EXECUTOR_BYTES = 4096

_HEAD_GRADIENT = "head_gradient"


def train_step(
    job: Mapping[str, Any],
    *,
    workdir: Path | None = None,
    timeout: float | None = None,
    on_progress: Progress | None = None,
    doing: str = "training one step",
) -> dict[str, Any]:
    """Runs ``job`` (see ``handle``) in a process of its own; raises as ``run_job`` does."""
    return run_job(
        "memcli.engines.mxnet.step",
        job,
        workdir=workdir,
        timeout=timeout,
        on_progress=on_progress,
        doing=doing,
    )


def set_environment(job: Mapping[str, Any]) -> None:
    """Sets what libmxnet reads when it is loaded and when it binds."""
    for name in _CLEARED:
        os.environ.pop(name, None)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Sums are split over threads: results are equal to the bit at a fixed number only.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or 1))
    # Threads that spin while they wait take the cores from those that others need: on a busy
    # machine steps were measured to take up to ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["MXNET_ENGINE_TYPE"] = "NaiveEngine" if job.get("trace") else "ThreadedEngine"
    # oneDNN keeps buffers and layouts of its own, which no plan knows.
    os.environ["MXNET_MKLDNN_ENABLED"] = "1" if job.get("onednn") else "0"
    # Has to go with it: RNN would make the state of one kind and run the code of the other.
    os.environ["MXNET_USE_MKLDNN_RNN"] = os.environ["MXNET_MKLDNN_ENABLED"]
    os.environ["MXNET_STORAGE_FALLBACK_LOG_VERBOSE"] = "0"
    # One work space and one random generator for all operators, or their number and order would
    # decide which one an operator gets.
    os.environ["MXNET_CPU_TEMP_COPY"] = "1"
    os.environ["MXNET_CPU_PARALLEL_RAND_COPY"] = "1"
    if str(job.get("device", "cpu")).startswith("gpu"):
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["MXNET_GPU_MEM_POOL_TYPE"] = "Unpooled"  # freed is free
        os.environ["MXNET_GPU_TEMP_COPY"] = "1"
        os.environ["MXNET_GPU_PARALLEL_RAND_COPY"] = "1"
        os.environ["MXNET_GPU_CUDNN_DROPOUT_STATE_COPY"] = "1"
        os.environ["MXNET_USE_FUSION"] = "0"
        os.environ["MXNET_CUDNN_AUTOTUNE_DEFAULT"] = "0"
        os.environ["MXNET_ENFORCE_DETERMINISM"] = "1"
        os.environ["MXNET_ENABLE_CUDA_GRAPHS"] = "0"
    os.environ.update({str(k): str(v) for k, v in (job.get("env") or {}).items()})


class BoundStep:
    """One bound executor, filled; everything it holds goes with it."""

    def __init__(
        self,
        mx: Any,
        symbol: Any,
        context: Any,
        job: Mapping[str, Any],
        shared: BoundStep | None = None,
    ) -> None:
        """Binds; ``shared``: with that one's arrays, and with its pool as far as it fits."""
        self.mx, self.symbol, self.job, self.context = mx, symbol, job, context
        self.executor: Any
        self.head_gradients: list[Any] | None = None
        grad_req = job.get("grad_req", "write")
        if shared is not None:
            other = shared.executor
            self.head_gradients = shared.head_gradients
            self.executor = symbol.bind(
                context,
                args=other.arg_arrays,
                args_grad=other.grad_arrays,
                grad_req=grad_req,
                aux_states=other.aux_arrays,
                shared_exec=other,
            )
            return
        shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
        try:
            types = _argument_types(mx, symbol, job.get("dtypes") or {})
            self.executor = symbol.simple_bind(
                context, grad_req=grad_req, type_dict=types, **shapes
            )
        except (mx.base.MXNetError, ValueError, RuntimeError) as error:
            raise _bind_error(error) from error

    def fill(self) -> None:
        """Puts the seed's values into all arguments and states, and seeds random operators."""
        seed = int(self.job.get("seed", 0))
        originals: dict[str, str] = self.job.get("names") or {}
        names = self.symbol.list_arguments()
        shapes = {n: a.shape for n, a in zip(names, self.executor.arg_arrays, strict=True)}
        reader = read_symbol(self.symbol, shapes)
        for index, (name, held) in enumerate(zip(names, self.executor.arg_arrays, strict=True)):
            held[:] = argument_values(
                reader, name, index, held.shape, held.dtype, seed, originals.get(name)
            )
        names = self.symbol.list_auxiliary_states()
        for index, (name, held) in enumerate(zip(names, self.executor.aux_arrays, strict=True)):
            held[:] = state_values(
                reader, name, index, held.shape, held.dtype, seed, originals.get(name)
            )
        self.mx.random.seed(seed)
        self.mx.nd.waitall()

    def prepare_heads(self, needed: bool) -> None:
        """Makes head gradients of ones, if outputs that are no losses need them."""
        if not needed:
            return
        shapes = {n: a.shape for n, a in self.executor.arg_dict.items()}
        types = {n: a.dtype for n, a in self.executor.arg_dict.items()}
        _, shapes_out, _ = self.symbol.infer_shape(**shapes)
        _, types_out, _ = self.symbol.infer_type(**types)
        self.head_gradients = [
            self.mx.nd.ones(shape, ctx=self.context, dtype=kind)
            for shape, kind in zip(shapes_out, types_out, strict=True)
        ]
        self.mx.nd.waitall()

    @functools.cached_property
    def undefined(self) -> list[int]:
        """Indices of the arguments whose gradient is made of memory that nothing has written."""
        names = undefined_gradients(self.symbol)
        return [i for i, name in enumerate(self.symbol.list_arguments()) if name in names]

    def forward(self) -> None:
        """The forward pass, to its end."""
        self.executor.forward(is_train=True)
        self.mx.nd.waitall()

    def backward(self) -> None:
        """The backward pass, to its end."""
        self.executor.backward(self.head_gradients)
        self.mx.nd.waitall()


def handle(job: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Trains one step; the job and what comes back.

    ``job``: ``symbol`` (path of a symbol JSON, loss heads added), ``shapes`` {input: [..]},
    ``dtypes`` {argument: name}, ``names`` {argument: its name in the user's file}, ``imports``
    (the user's files to run first),
    ``env`` {variable: value} for the engine, ``device`` ("cpu" or
    "gpu:N"), ``seed``, ``save`` (path of an npz to write, or None), ``repeat`` (timed steps; None:
    as many as a few seconds allow), ``trace``, ``onednn`` (False: plain CPU code, whose memory is
    the plan's), ``grad_req`` ("write"), ``memory_limit`` (bytes that this process may take at most
    beyond what it has once MXNet is loaded, where given: it then fails by itself, instead of the
    system ending it or another).

    Returned, sizes in bytes, times in seconds:

    - ``bound_bytes``: growth in the bind: arguments, gradients, states and the graph itself;
      ``arrays_bytes``: of these the arrays, counted
    - ``after_forward_bytes``, ``after_backward_bytes``, ``peak_bytes`` (most seen): growth since
      the bind, i.e. feature maps and their gradients
    - ``workspace_bytes``: what the engine holds of its own after a step; ``executor_bytes``: what
      the executor keeps for its operators (CPU; in none of the others)
    - ``trace``: {"forward": [[output, bytes], ...], "backward": [...]} growth after each operator,
      in the order they ran; None without ``trace``
    - ``step_seconds`` (median of ``repeat`` steps after a warm-up, None if 0; with ``trace`` the
      engine runs operators one at a time, without callbacks here), ``first_step_seconds``
    - ``outputs``, ``arguments``, ``states``: names in the order of ``save``'s out_0, ..,
      grad_0, .., aux_0, ..; ``gradients``: indices of the arguments that have one
    - ``nonfinite`` {"outputs", "gradients", "states"}: arrays that hold NaN or infinity
    - ``undefined``: indices of arguments whose gradient MXNet makes of unwritten memory (see
      ``undefined_gradients``); they are in none of the others, ``save`` included
    - ``repeatable``: whether the second step gave the same bits as the first; ``unstable``: keys
      of the arrays (as in ``save``) in which it did not
    - ``method`` (how memory was read), ``device``, ``head_gradients`` (ones were needed)

    Raises BadInput where the graph does not bind, EngineFailed where the device is no use.
    """
    set_environment(job)
    device = str(job.get("device", "cpu"))
    gpu = None
    if device.startswith("gpu"):
        gpu = check_gpu(_gpu_number(device))
    progress("loading MXNet", None)
    mx = import_mxnet()
    run_files(job.get("imports") or ())
    number = _gpu_number(device) if gpu is not None else 0
    context = mx.gpu(number) if gpu is not None else mx.cpu()
    try:
        symbol = mx.sym.load_json(Path(job["symbol"]).read_text())
    except (mx.base.MXNetError, ValueError) as error:
        raise BadInput(f"MXNet does not load the graph: {engine_text(str(error))}") from error

    if gpu is not None:
        if mx.context.num_gpus() <= number:
            raise EngineFailed(
                f"CUDA does not see GPU {number} ({gpu.name}), though nvidia-smi (driver "
                f"{gpu.driver}) shows it.",
                "mxnet-cu112 needs driver 450.80 or newer, and rights on /dev/nvidia*.",
            )
        mx.nd.ones((1,), ctx=context).wait_to_read()  # makes the CUDA context
        memory = live_memory.gpu_memory(mx, number)
    else:
        memory = live_memory.cpu_memory(lambda size: _touched(mx, size))
    if job.get("memory_limit"):
        live_memory.limit_growth(int(job["memory_limit"]))
    _settle(mx)
    started = memory.read()

    progress("training (first step)", 0.1)
    step = BoundStep(mx, symbol, context, job)
    step.fill()
    before = time.perf_counter()
    needs_heads = _first_step(step)
    first_seconds = time.perf_counter() - before
    progress("writing results", 0.4)
    saved = _save(step, job.get("save"))
    # Timed here, where no callback slows the step down; results are kept, so it may go on.
    count = steps_to_time(job.get("repeat", 0), first_seconds)
    seconds = _time_steps(step, count, progress)
    del step
    _settle(mx)
    workspace = memory.read() - started

    progress("training (measured step)", 0.6)
    unbound = memory.read()
    step = BoundStep(mx, symbol, context, job)
    mx.nd.waitall()
    bound = memory.read() - unbound
    step.fill()
    step.prepare_heads(needs_heads)
    growth = _measure(step, memory.read, bool(job.get("trace")))
    unstable = [key for key, digest in _digests(step) if saved["digests"].get(key) != digest]
    executor_bytes = 0
    own = _EXECUTOR_BYTES * len(symbol.get_internals().list_outputs())
    if gpu is None and own > 0.005 * growth.after_backward:
        progress("training (control step)", 0.8)
        _spare_variables(mx, symbol)
        control = _measure(
            BoundStep(mx, symbol, context, job, shared=step), memory.read, bool(job.get("trace"))
        )
        executor_bytes = control.after_backward
        growth = growth.without(control)
    return {
        "bound_bytes": bound,
        "arrays_bytes": _arrays_bytes(step),
        "after_forward_bytes": growth.after_forward,
        "after_backward_bytes": growth.after_backward,
        "peak_bytes": growth.peak(),
        "workspace_bytes": workspace,
        "executor_bytes": executor_bytes,
        "trace": growth.trace,
        "step_seconds": float(np.median(seconds)) if seconds else None,
        "first_step_seconds": first_seconds,
        "outputs": symbol.list_outputs(),
        "arguments": symbol.list_arguments(),
        "states": symbol.list_auxiliary_states(),
        "gradients": saved["gradients"],
        "nonfinite": saved["nonfinite"],
        "undefined": step.undefined,
        "repeatable": not unstable,
        "unstable": unstable,
        "head_gradients": needs_heads,
        "method": memory.method,
        "device": device if gpu is None else f"{device} ({gpu.name})",
    }


@dataclass
class _Growth:
    """Bytes allocated in one step, over what there was before it."""

    after_forward: int
    after_backward: int
    trace: dict[str, list[tuple[str, int]]] | None

    def peak(self) -> int:
        """The most that was seen."""
        seen = [size for part in (self.trace or {}).values() for _, size in part]
        return max(self.after_forward, self.after_backward, *seen)

    def without(self, other: _Growth) -> _Growth:
        """What is left when ``other``, which ran the same operators, is taken off."""
        trace = None
        if self.trace is not None and other.trace is not None:
            trace = {
                part: [(n, a - b) for (n, a), (_, b) in zip(rows, other.trace[part], strict=True)]
                for part, rows in self.trace.items()
            }
        return _Growth(
            self.after_forward - other.after_forward,
            self.after_backward - other.after_backward,
            trace,
        )


def _measure(step: BoundStep, read: Callable[[], int], trace: bool) -> _Growth:
    """One step, and what it makes the memory grow by."""
    monitor = _Monitor(step, read) if trace else None
    _settle(step.mx)
    base = read()
    step.forward()
    after_forward = read() - base
    if monitor is not None:
        monitor.end_forward()
    step.backward()
    after_backward = read() - base
    return _Growth(after_forward, after_backward, None if monitor is None else monitor.result(base))


class _Monitor:
    """Reads the memory after every operator, through MXNet's monitor callback."""

    def __init__(self, step: BoundStep, read: Callable[[], int]) -> None:
        self._names: list[str] = []
        self._sizes = array("q")
        self._forward_end = 0
        free = step.mx.base._LIB.MXNDArrayFree

        def after_operator(name: Any, handle: Any) -> None:
            size = read()
            # The array that comes along is this function's to free, and would keep its memory.
            free(ctypes.c_void_p(handle))
            self._names.append(name.decode() if isinstance(name, bytes) else str(name))
            self._sizes.append(size)

        step.executor.set_monitor_callback(after_operator, monitor_all=False)

    def end_forward(self) -> None:
        """What comes from here on belongs to the backward pass."""
        self._forward_end = len(self._names)

    def result(self, base: int) -> dict[str, list[tuple[str, int]]]:
        """Growth over ``base`` after each operator's outputs, in order."""
        rows = [(n, s - base) for n, s in zip(self._names, self._sizes, strict=True)]
        return {"forward": rows[: self._forward_end], "backward": rows[self._forward_end :]}


def _argument_types(mx: Any, symbol: Any, given: Mapping[str, str]) -> dict[str, Any] | None:
    """A dtype for every argument: as given, as the graph asks, else float32.

    None leaves it to MXNet, which fills up with float32 only where no dtype at all is given.
    """
    if not given:
        return None
    wanted = {name: np.dtype(kind).type for name, kind in given.items()}
    names = symbol.list_arguments()
    try:
        known, _, _ = symbol.infer_type_partial(**wanted)
    except mx.base.MXNetError:  # some operators (Dropout) do not take "not known yet"
        known = None
    if known is None:
        known = [wanted.get(name) for name in names]
    return {
        name: np.float32 if kind is None else kind for name, kind in zip(names, known, strict=True)
    }


def _first_step(step: BoundStep) -> bool:
    """Forward and backward; True if MXNet wants head gradients (then they were ones)."""
    step.forward()
    try:
        step.backward()
    except step.mx.base.MXNetError as error:
        if _HEAD_GRADIENT not in str(error):
            raise
    else:
        return False
    step.prepare_heads(True)
    step.backward()
    return True


def _time_steps(step: BoundStep, count: int, progress: Progress) -> list[float]:
    """Seconds of each of ``count`` steps after a warm-up step."""
    seconds = []
    for number in range(count):
        progress("timing steps", 0.4 + 0.2 * number / count)
        before = time.perf_counter()
        step.executor.forward(is_train=True)
        step.backward()
        seconds.append(time.perf_counter() - before)
    return seconds


def _results(step: BoundStep) -> list[tuple[str, Any]]:
    """(key, array) of every output, gradient and state."""
    executor = step.executor
    rows = [(f"out_{i}", held) for i, held in enumerate(executor.outputs)]
    left_out = set(step.undefined)
    rows += [
        (f"grad_{i}", held)
        for i, held in enumerate(executor.grad_arrays)
        if held is not None and i not in left_out
    ]
    rows += [(f"aux_{i}", held) for i, held in enumerate(executor.aux_arrays)]
    return rows


def _save(step: BoundStep, path: str | None) -> dict[str, Any]:
    """Writes the results one by one (an npz without compression), and looks at each."""
    digests = {}
    bad = {"out": 0, "grad": 0, "aux": 0}
    gradients = []
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) if path else None
    try:
        for key, held in _results(step):
            values = held.asnumpy()
            kind, _, index = key.partition("_")
            if kind == "grad":
                gradients.append(int(index))
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad[kind] += 1
            digests[key] = _digest(values)
            if archive is not None:
                with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
        if archive is not None:
            names = {
                "outputs": step.symbol.list_outputs(),
                "arguments": step.symbol.list_arguments(),
                "states": step.symbol.list_auxiliary_states(),
            }
            text = io.BytesIO()
            np.lib.format.write_array(
                text, np.frombuffer(json.dumps(names).encode(), np.uint8), allow_pickle=False
            )
            archive.writestr("names.npy", text.getvalue())
    finally:
        if archive is not None:
            archive.close()
    return {
        "digests": digests,
        "gradients": gradients,
        "nonfinite": {"outputs": bad["out"], "gradients": bad["grad"], "states": bad["aux"]},
    }


def _digests(step: BoundStep) -> list[tuple[str, bytes]]:
    return [(key, _digest(held.asnumpy())) for key, held in _results(step)]


def _digest(values: Any) -> bytes:
    plain = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return hashlib.blake2b(plain.data, digest_size=16).digest()


def _arrays_bytes(step: BoundStep) -> int:
    executor = step.executor
    arrays = [*executor.arg_arrays, *executor.grad_arrays, *executor.aux_arrays]
    return sum(
        int(a.size) * np.dtype(a.dtype).itemsize
        for a in arrays
        if a is not None and a.stype == "default"  # sparse ones take what their rows need
    )


def _spare_variables(mx: Any, symbol: Any) -> None:
    """Has the engine hold free variables in store, one for every array of another executor.

    They come from pages that it never gives back. The measured step found those of the warm-up
    step there; without this the control step would have to get new ones.
    """
    module = mx.ndarray.ndarray
    count = min(200_000, 8 * symbol.tojson().count('"op":'))
    held = [
        module.NDArray(module._new_alloc_handle((1,), mx.cpu(), True, np.float32))
        for _ in range(count)
    ]
    del held
    mx.nd.waitall()


def _touched(mx: Any, size: int) -> Any:
    held = mx.nd.ones((size,), dtype="uint8")
    held.wait_to_read()
    return held


def _settle(mx: Any) -> None:
    """Waits for the engine, and frees what only cycles hold."""
    gc.collect()
    mx.nd.waitall()


def _gpu_number(device: str) -> int:
    _, _, number = device.partition(":")
    try:
        return int(number or 0)
    except ValueError:
        raise BadInput(f"No such device: {device}.", "Devices are cpu and gpu:N.") from None


def _bind_error(error: Exception) -> Exception:
    text = str(error)
    if "allocate" in text or "out of memory" in text:
        return EngineFailed(
            f"No memory for the parameters of the graph: {engine_text(text)}",
            "Try a smaller --batch, or a machine or card with more memory.",
        )
    return BadInput(f"MXNet cannot bind the graph for training: {engine_text(text)}")


if __name__ == "__main__":
    worker_main(handle)
