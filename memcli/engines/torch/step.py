"""The process that trains one real step of a model in PyTorch, and writes down what came of it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import worker_main
from memcli.engines.timed_steps import steps_to_time
from memcli.engines.torch.build import converted, loss_for, values_for
from memcli.engines.torch.executor import PlannedModule
from memcli.engines.torch.geometry import tensors_in
from memcli.engines.torch.parallel import Parallel, joined
from memcli.engines.torch.tracking import measure_step, measure_step_cuda, training_step
from memcli.errors import EngineFailed
from memcli.results.verified import SIMULATED_CARD


def handle(job: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Train a step for its results, some for their time, and one for its memory.

    The job has what :func:`memcli.engines.torch.build.converted` needs, ``marks`` ({step: mark}),
    ``device`` (``cpu`` or ``gpu:N``), ``repeat`` (steps that are timed; None: as many as a few
    seconds allow) and ``save`` (npz for outputs, gradients and states: ``out_i``, ``grad_i``,
    ``aux_i``). One of several workers has ``parallel`` (see
    :func:`memcli.engines.torch.parallel.joined`); inputs are then its own.

    Returns peaks in bytes, ``trace`` (peaks by step), ``step_seconds`` (median of ``repeat`` warm
    steps, None if 0), ``first_step_seconds``, ``names`` of gradients and states, ``nonfinite`` and
    ``repeatable``; ``exchange_bytes``: what a worker holds for the others all through.

    Raises:
        BadInput: as the converter does.
        EngineFailed: no such card, or another worker is gone.
    """
    device = device_of(str(job.get("device", "cpu")))
    make_deterministic(device)
    with joined(job.get("parallel"), device) as parallel:
        return trained(job, device, parallel, progress)


def trained(
    job: dict[str, Any], device: torch.device, parallel: Parallel | None, progress: Progress
) -> dict[str, Any]:
    """What :func:`handle` returns, of this process alone or as one of several workers."""
    progress("converting for PyTorch", 0.05)
    found = converted(job, fake=False)
    module = PlannedModule(found.module, job.get("marks") or {}).to(device)
    # Each worker has inputs and dropout masks of its own.
    seed = int(job.get("seed", 0)) + (parallel.rank if parallel else 0)
    inputs = [value.to(device) for value in values_for(found, {**job, "seed": seed})]
    loss = loss_for(found)
    buffers = dict(module.named_buffers())
    states = {name: buffers[name].clone() for name in found.states if name in buffers}
    run: Callable[..., Any] = module
    exchanged = 0

    def fresh() -> None:
        torch.manual_seed(seed)
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in states.items():
                buffers[name].copy_(value)
        if parallel:
            parallel.wait()

    if parallel:
        progress("training (alone)", 0.1)
        fresh()
        timed_step(module, inputs, loss, device)
        idle = [name for name, p in module.named_parameters() if p.grad is None]
        fresh()
        before = allocated(device)
        run = parallel.wrapped(module, idle, states, device)
        progress("training (with the others)", 0.1)
        # After its first step DistributedDataParallel puts gradients into other places, once.
        timed_step(run, inputs, loss, device)
        fresh()
        exchanged = allocated(device) - before
    progress("training (first step)", 0.1)
    fresh()
    outputs, seconds = timed_step(run, inputs, loss, device)
    parameters = [(name, p) for name, p in module.named_parameters() if p.grad is not None]

    def results(given: Any) -> dict[str, Tensor]:
        arrays = {f"out_{i}": t for i, t in enumerate(tensors_in(given))}
        arrays |= {f"grad_{i}": p.grad for i, (_, p) in enumerate(parameters) if p.grad is not None}
        return arrays | {f"aux_{i}": buffers[name] for i, name in enumerate(states)}

    progress("writing results", 0.4)
    arrays = results(outputs)
    plain = {key: plain_array(t) for key, t in arrays.items()}
    nonfinite = {"outputs": 0, "gradients": 0, "states": 0}
    for key, array in plain.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            nonfinite[_KINDS[key.partition("_")[0]]] += 1
    if job.get("save"):
        np.savez(str(job["save"]), **plain)  # type: ignore[arg-type]
    digests = {key: digest(array) for key, array in plain.items()}
    del outputs, arrays, plain
    times = []
    slowest = parallel.slowest(seconds, device) if parallel else seconds
    for number in range(steps_to_time(job.get("repeat", 0), slowest)):
        progress("training (timed)", 0.5 + 0.02 * number)
        fresh()
        _, taken = timed_step(run, inputs, loss, device)
        times.append(taken)

    progress("training (measured step)", 0.7)
    fresh()
    if device.type == "cuda":
        memory = measure_step_cuda(module, inputs, loss, run)
    else:
        memory = measure_step(module, inputs, loss, run)
    again = {k: digest(plain_array(t)) for k, t in results(()).items()}
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "peak_bytes": memory.peak,
        "all_peak_bytes": memory.all_peak,
        "kept_bytes": memory.kept,
        "reserved_bytes": memory.reserved_peak,
        "gradient_bytes": memory.gradient_bytes or sum(_held(p.grad) for _, p in parameters),
        "gradient_digest": digest_of([digests[k] for k in digests if k.startswith("grad_")]),
        "exchange_bytes": exchanged or memory.exchange_bytes,
        "trace": {"forward": memory.forward, "backward": memory.backward},
        "step_seconds": float(np.median(times)) if times else None,
        "first_step_seconds": seconds,
        "names": {
            "out": list(found.outputs),
            "grad": [found.parameters.get(name, name) for name, _ in parameters],
            "aux": [found.states[name] for name in states],
        },
        "nonfinite": nonfinite,
        "repeatable": all(digests[key] == value for key, value in again.items()),
        "method": "storages of tensors" if device.type == "cpu" else "the CUDA allocator's history",
    }


_KINDS = {"out": "outputs", "grad": "gradients", "aux": "states"}


def device_of(text: str, instead: str = "--cpu verifies on the CPU") -> torch.device:
    """The device of a job. ``instead``: what to do where there is no card.

    Raises:
        EngineFailed: PyTorch sees no such card.
    """
    if text == "cpu":
        return torch.device("cpu")
    number = int(text.partition(":")[2] or 0)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi numbers the cards
    if not torch.cuda.is_available():
        raise EngineFailed(
            "PyTorch sees no CUDA device here",
            f"memcli doctor says why; {instead}",
        )
    if number >= torch.cuda.device_count():
        raise EngineFailed(f"there is no GPU {number}: PyTorch sees {torch.cuda.device_count()}")
    return torch.device("cuda", number)


def device_name(device: torch.device) -> str:
    """A device in words; a simulated card is never called by the name of the one it is like."""
    if device.type == "cpu":
        return str(device)
    name = torch.cuda.get_device_name(device)
    return SIMULATED_CARD if name.startswith("Simulated ") else name


def make_deterministic(device: torch.device) -> None:
    """Kernels that give the same bits each time, as far as there are such."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # what fills new memory with NaN to find mistakes would only cost time here
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.cuda.set_device(device)


def timed_step(
    module: Callable[..., Any],
    inputs: list[Any],
    loss: Callable[[Any], Tensor],
    device: torch.device,
) -> tuple[Any, float]:
    """A forward and a backward pass, and the seconds that they took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    outputs = training_step(module, inputs, loss)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return outputs, time.perf_counter() - began


def allocated(device: torch.device) -> int:
    """Bytes that tensors hold on a card; 0 for the CPU, where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def plain_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's values; types that numpy lacks as float32, which holds them all."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.contiguous().numpy()


def digest(array: np.ndarray[Any, Any]) -> str:
    """Of an array's bytes."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def digest_of(digests: list[str]) -> str:
    """Of several digests, in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _held(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.untyped_storage().nbytes()


if __name__ == "__main__":
    worker_main(handle)
