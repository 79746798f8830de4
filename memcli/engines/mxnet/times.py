"""Times forward operators with MXNet, one by one, or a whole forward pass (a worker).

Run through ``memcli.engines.processes.jobs.run_job``; ``memcli.engines.mxnet.timing`` is the
caller.

Each operator is timed as a symbol of its own, bound for training, of which the forward pass alone
is run. That is the code which runs it in a graph: the executor picks the same kernel (oneDNN or
cuDNN among them, their choice of primitive for training included) and writes into arrays that are
there already. The imperative interface would allocate outputs in every call, and take MXNet's
other way to oneDNN. Gradients are asked for but their arrays never touched, and MXNet allocates
lazily, so a bind for training takes no more memory than one for the forward pass.

What it costs to call an executor (some 15 microseconds) is no part of an operator in a graph of
many. So short operators are timed a second time, as a symbol of several copies side by side; the
difference, for each copy more, is the operator and its start, as in a graph.

In a graph, oneDNN hands feature maps from operator to operator in a layout of its own. Given a
plain array it would convert it each time: BatchNorm was seen to take four times as long. Inputs
that come from a convolution in the graph are therefore made by one.
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.gpus import check_gpu
from memcli.engines.kind_timer import KindTimer, timed_runs
from memcli.engines.live_memory import available_bytes
from memcli.engines.mxnet.analyze import lazy_array
from memcli.engines.mxnet.shim import import_mxnet
from memcli.engines.mxnet.step import BoundStep, set_environment
from memcli.engines.mxnet.values import argument_values, read_symbol, state_values
from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import worker_main
from memcli.engines.user_code import run_files
from memcli.errors import EngineFailed

_COPIES = 8  # of a short operator side by side; within one of MXNet's segments of 15
_SHORT_SECONDS = 400e-6
_COPIES_BYTES = 64 << 20  # at most, for the outputs of all copies
_VALUES = 1 << 20  # elements that are drawn; larger arrays repeat them


def handle(job: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Times what the job asks for.

    ``job``: ``device`` ("cpu" or "gpu:N"), ``onednn`` (as training has it unless told), ``seed``,
    ``repeats`` (timed runs of each, the best counts), and either

    - ``symbol``, ``shapes``, ``dtypes``, ``names`` as for ``mxnet_step``: the whole forward pass;
      returns ``{"seconds": best, "processor_seconds": least}``; or
    - ``kinds`` and ``log`` (a path): for each kind ``number``, ``op``, ``attrs``, ``inputs``
      [{"shape", "dtype", "blocked"}], ``slots`` (which of these each input slot reads),
      ``heads`` (indices of the outputs to compute), ``output_bytes``, ``roofline`` (seconds
      expected), in the order to time them. ``limit``: seconds for all. One line of JSON for each
      is added to ``log`` as soon as it is known, one more before each start, so that nothing is
      lost where the engine crashes: ``{"start": number}``, ``{"number", "seconds",
      "processor_seconds"}`` or ``{"number", "skipped": why}``, and ``{"launch": seconds}`` first.
      Returns ``{}``.

    Raises EngineFailed where the device is no use.
    """
    set_environment(job)
    # MXNet's default, which training runs under: one worker for the CPU, so that copies side by
    # side run one after the other.
    os.environ["MXNET_ENGINE_TYPE"] = "ThreadedEnginePerDevice"
    os.environ["MXNET_ELIMINATE_COMMON_EXPR"] = "0"  # would make one of all copies
    device = str(job.get("device", "cpu"))
    number = None
    if device.startswith("gpu"):
        number = int(device.partition(":")[2] or 0)
        check_gpu(number)
    progress("loading MXNet", None)
    mx = import_mxnet()
    run_files(job.get("imports") or ())
    if number is not None and mx.context.num_gpus() <= number:
        raise EngineFailed(
            f"CUDA does not see GPU {number}, though nvidia-smi shows it.",
            "mxnet-cu112 needs driver 450.80 or newer, and rights on /dev/nvidia*.",
        )
    context = mx.cpu() if number is None else mx.gpu(number)
    mx.random.seed(int(job.get("seed", 0)))
    gc.collect()
    gc.freeze()  # what MXNet is made of stays: looking through it took longer than the timing
    if "symbol" in job:
        return _time_whole(mx, context, job, progress)
    with Path(job["log"]).open("a") as log:

        def say(**row: Any) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()

        _Timer(mx, context, number, job, say).run(progress)
    return {}


def _time_whole(mx: Any, context: Any, job: Mapping[str, Any], progress: Progress) -> Any:
    progress("timing the whole forward pass", None)
    symbol = mx.sym.load_json(Path(job["symbol"]).read_text())
    step = BoundStep(mx, symbol, context, job)
    step.fill()
    step.forward()
    step.forward()
    clock = work = math.inf
    for _ in range(max(1, int(job.get("repeats", 5)))):
        before, work_before = time.perf_counter(), time.process_time()
        step.forward()
        clock = min(clock, time.perf_counter() - before)
        work = min(work, time.process_time() - work_before)
    return {"seconds": clock, "processor_seconds": work}


class _Timer(KindTimer):
    """Times kinds of MXNet's operators as symbols of their own."""

    def __init__(
        self,
        mx: Any,
        context: Any,
        gpu: int | None,
        job: Mapping[str, Any],
        say: Callable[..., None],
    ) -> None:
        super().__init__(job["kinds"], job, say)
        self.mx, self.context, self.gpu = mx, context, gpu
        self.refusals = (mx.base.MXNetError, ValueError, TypeError, RuntimeError, KeyError)
        self.seed = int(job.get("seed", 0))
        self.onednn = bool(job.get("onednn")) and gpu is None
        self._call, self.launch = self._overheads()

    def _overheads(self) -> tuple[float, float]:
        """Seconds of calling an executor, and of starting one operator more in it."""
        mx = self.mx
        one = mx.nd.ones((1,), ctx=self.context)
        times = []
        for copies in (1, _COPIES):
            symbol = self._symbol("_plus_scalar", {"scalar": "1"}, [0], [0], copies)
            executor = symbol.bind(
                self.context,
                args={"x0": one},
                args_grad={"x0": mx.nd.zeros((1,), ctx=self.context)},
            )
            times.append(self._run(executor, 50, 1.0)[0])
        launch = max((times[1] - times[0]) / (_COPIES - 1), 1e-7)
        return max(times[0] - launch, 0.0), launch

    def time_kind(self, kind: Mapping[str, Any], left: float) -> tuple[float, float]:
        """Seconds of one run within a graph, the least of several."""
        arrays_bytes = sum(
            math.prod(i["shape"]) * np.dtype(i["dtype"]).itemsize for i in kind["inputs"]
        )
        self.check_memory(arrays_bytes + kind["output_bytes"])
        symbol = self._symbol(kind["op"], kind["attrs"], kind["slots"], kind["heads"], 1)
        arrays = self._arrays(symbol, kind)
        executor = self._bind(symbol, arrays)
        alone = self._run(executor, self.repeats, left)
        if alone[0] > _SHORT_SECONDS or _COPIES * kind["output_bytes"] > _COPIES_BYTES:
            clock, work = (max(seconds - self._call, self.launch) for seconds in alone)
            return clock, work
        symbol = self._symbol(kind["op"], kind["attrs"], kind["slots"], kind["heads"], _COPIES)
        together = self._run(self._bind(symbol, arrays), self.repeats, left)
        # Less than an empty operator, or more than all by itself, is noise.
        clock, work = (
            min(max((all_ - one) / (_COPIES - 1), self.launch), max(one, self.launch))
            for one, all_ in zip(alone, together, strict=True)
        )
        return clock, work

    def free_bytes(self) -> int:
        """Of the machine, or of the card."""
        if self.gpu is None:
            return available_bytes()
        free, _ = self.mx.context.gpu_memory_info(self.gpu)
        return int(free)

    def _run(self, executor: Any, repeats: int, left: float) -> tuple[float, float]:
        """Least seconds of ``repeats`` forward passes after a warm-up (fewer where slow).

        The least is the operator's own: what else runs on the machine can only make it slower.
        """
        clock, work = timed_runs(
            lambda: executor.forward(is_train=True), self.mx.nd.waitall, repeats, left
        )
        return min(clock), min(work)

    def _symbol(
        self, op: str, attrs: Mapping[str, str], slots: list[int], heads: list[int], copies: int
    ) -> Any:
        """``copies`` times the operator, all reading the same variables x0, x1, ..."""
        count = max(slots, default=-1) + 1
        nodes: list[dict[str, Any]] = [
            {"op": "null", "name": f"x{i}", "inputs": []} for i in range(count)
        ]
        made = []
        for copy in range(copies):
            nodes.append(
                {
                    "op": op,
                    "name": f"op{copy}",
                    "attrs": dict(attrs),
                    "inputs": [[i, 0, 0] for i in slots],
                }
            )
            made += [[count + copy, head, 0] for head in heads]
        return self.mx.sym.load_json(
            json.dumps(
                {
                    "nodes": nodes,
                    "arg_nodes": list(range(count)),
                    "heads": made,
                    "attrs": {"mxnet_version": ["int", 10901]},
                }
            )
        )

    def _arrays(self, symbol: Any, kind: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays of all variables, with values that the operator can do something with."""
        told = {f"x{i}": spec for i, spec in enumerate(kind["inputs"])}
        names = symbol.list_arguments()
        shapes = {name: tuple(told[name]["shape"]) for name in names}
        reader = read_symbol(symbol, shapes)
        result = {}
        states = symbol.list_auxiliary_states()
        for index, name in enumerate([*names, *states]):
            shape, dtype = tuple(told[name]["shape"]), told[name]["dtype"]
            if told[name]["blocked"] and self.onednn and len(shape) > 2 and dtype == "float32":
                result[name] = self._made_by_convolution(shape)
                continue
            values = state_values if name in states else argument_values
            drawn = values(reader, name, index, _slab(shape), np.dtype(dtype), self.seed)
            held = self.mx.nd.empty(shape, ctx=self.context, dtype=dtype)
            held[:] = drawn if drawn.shape == shape else np.resize(drawn, shape)
            result[name] = held
        self.mx.nd.waitall()
        return result

    def _made_by_convolution(self, shape: tuple[int, ...]) -> Any:
        """An array in the layout that oneDNN's convolutions give to outputs of this shape."""
        mx = self.mx
        kernel = (1,) * (len(shape) - 2)
        symbol = self._symbol(
            "Convolution",
            {"kernel": str(kernel), "num_filter": str(shape[1]), "no_bias": "True"},
            [0, 1],
            [0],
            1,
        )
        thin = mx.nd.random.normal(shape=(shape[0], 1, *shape[2:]), ctx=self.context)
        weight = mx.nd.random.normal(shape=(shape[1], 1, *kernel), ctx=self.context)
        executor = self._bind(symbol, {"x0": thin, "x1": weight})
        executor.forward(is_train=True)
        return executor.outputs[0]

    def _bind(self, symbol: Any, arrays: Mapping[str, Any]) -> Any:
        """An executor as training has it; without gradients where the operator has none."""
        names = symbol.list_arguments()
        states = {name: arrays[name] for name in symbol.list_auxiliary_states()}
        arguments = {name: arrays[name] for name in names}
        wanted = {
            name: "write" if np.dtype(held.dtype).kind == "f" else "null"
            for name, held in arguments.items()
        }
        if any(request == "write" for request in wanted.values()):
            gradients = {
                name: self._lazy(held)
                for name, held in arguments.items()
                if wanted[name] == "write"
            }
            try:
                return symbol.bind(
                    self.context, arguments, gradients, grad_req=wanted, aux_states=states
                )
            except self.mx.base.MXNetError:
                pass
        return symbol.bind(self.context, arguments, grad_req="null", aux_states=states)

    def _lazy(self, like: Any) -> Any:
        if self.gpu is None:
            return lazy_array(self.mx, like.shape, np.dtype(like.dtype).name)
        module = self.mx.ndarray.ndarray
        return module.NDArray(
            module._new_alloc_handle(like.shape, self.context, True, np.dtype(like.dtype))
        )


def _slab(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with its leading dimensions cut down, so that few enough values are drawn."""
    dims = list(shape)
    for axis in range(len(dims)):
        rest = math.prod(dims[axis + 1 :]) * math.prod(dims[:axis])
        if math.prod(dims) <= _VALUES:
            break
        dims[axis] = max(1, _VALUES // max(1, rest))
    return tuple(dims)


if __name__ == "__main__":
    worker_main(handle)
