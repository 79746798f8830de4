"""Which engines and devices work here, and what would mend those that do not.

Nothing is imported into this process that could crash it: each engine is tried in one of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli import __version__
from memcli.engines.gpus import list_gpus
from memcli.engines.mxnet_shim import find_cuda_libs, is_cuda_build, library_path
from memcli.engines.process import run_job, worker_main
from memcli.errors import MemcliError
from memcli.units import format_size

_TIMEOUT = 120.0  # seconds for one engine; a cold disk is slow
_INSTALL = "pip install 'memcli[mxnet]' (CPU) or 'memcli[cu112]' (CUDA); see the README for 3.13"


@dataclass(frozen=True)
class Check:
    """One line: ``ok`` is None where something optional is not here."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


def check_all() -> list[Check]:
    """All checks; never raises for what it finds."""
    checks = [_python(), Check("memcli", True, __version__)]
    checks.append(_package("numpy", needed=True))
    checks.append(_package("numba", needed=True))
    checks += _mxnet()
    checks.append(_package("onnx", needed=True))
    checks.append(_package("onnxruntime", needed=False))
    checks.append(_torch())
    checks += _gpus()
    checks += _machine()
    return checks


def _python() -> Check:
    version = platform.python_version()
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Check(
        "python",
        good,
        f"{version} ({platform.system()} {platform.machine()})",
        "" if good else "use Python 3.10 to 3.12, or 3.13 (see the README)",
    )


def _package(name: str, *, needed: bool) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False if needed else None, "not installed", f"pip install {name}")


def _try(what: str) -> dict[str, Any]:
    """The facts that this module's worker finds about an engine."""
    return run_job("memcli.engines.doctor", {"try": what}, timeout=_TIMEOUT, doing=f"trying {what}")


def _mxnet() -> list[Check]:
    path = library_path()
    if path is None:
        return [Check("mxnet", False, "not installed", _INSTALL)]
    build = "CUDA build" if is_cuda_build() else "CPU build"
    checks = []
    try:
        facts = _try("mxnet")
    except MemcliError as error:
        checks.append(Check("mxnet", False, f"{build}: {error.message}", error.hint or _INSTALL))
    else:
        onednn = "with oneDNN" if facts["onednn"] else "without oneDNN"
        checks.append(
            Check("mxnet", True, f"{facts['version']}, {build} {onednn}: bound and trained a step")
        )
    if is_cuda_build():
        for name, found in find_cuda_libs().items():
            checks.append(
                Check(
                    f"cuda {name}",
                    found is not None,
                    str(found or "not found"),
                    "" if found else "it comes with the driver, or with 'memcli[cu112]'",
                )
            )
    return checks


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("torch", None, "not installed", "optional: pip install torch")
    try:
        facts = _try("torch")
    except MemcliError as error:
        return Check("torch", False, error.message, error.hint)
    cuda = f"CUDA {facts['cuda']}" if facts["cuda"] else "no CUDA"
    return Check("torch", True, f"{facts['version']}, {cuda}")


def _gpus() -> list[Check]:
    gpus = list_gpus()
    if not gpus:
        return [Check("gpu", None, "none that nvidia-smi shows", "memcli verify --cpu needs none")]
    checks = []
    for gpu in gpus:
        can = gpu.runs_mxnet
        detail = (
            f"{gpu.name}, {format_size(gpu.memory_bytes)}, compute capability "
            f"{gpu.capability_text}, driver {gpu.driver}"
        )
        mend = "" if can else "mxnet-cu112 runs on 5.0 to 8.6 only; use memcli verify --cpu"
        checks.append(Check(f"gpu {gpu.index}", can, detail, mend))
    return checks


def _machine() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    checks = [Check("cores", True, str(cores))]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
        checks.append(Check("memory", True, f"{format_size(free)} free"))
    except (OSError, ValueError, StopIteration):
        checks.append(Check("memory", None, "unknown"))
    try:
        space = shutil.disk_usage(".").free
        checks.append(
            Check(
                "disk",
                space > 1 << 30,
                f"{format_size(space)} free in this folder",
                "" if space > 1 << 30 else "verify needs room for gradients: free some",
            )
        )
    except OSError as error:
        checks.append(Check("disk", False, str(error), "go to a folder that can be written to"))
    return checks


def handle(job: dict[str, Any], workdir: Path, progress: Any) -> dict[str, Any]:
    """The worker: imports one engine and trains a step with it."""
    if job["try"] == "torch":
        import torch

        x = torch.ones(2, requires_grad=True)
        x.sum().backward()
        return {
            "version": torch.__version__,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        }
    from memcli.engines.mxnet_shim import import_mxnet

    mx = import_mxnet()
    data = mx.sym.var("data")
    loss = mx.sym.MakeLoss(mx.sym.sum(mx.sym.FullyConnected(data, num_hidden=2)))
    executor = loss.simple_bind(mx.cpu(), data=(2, 3), grad_req="write")
    executor.forward(is_train=True)
    executor.backward()
    mx.nd.waitall()
    features = mx.runtime.Features()
    return {"version": mx.__version__, "onednn": features.is_enabled("MKLDNN")}


if __name__ == "__main__":
    worker_main(handle)
