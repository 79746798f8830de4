"""Which engines and devices work here, and what would mend those that do not.

Nothing is imported into this process that could crash it: each engine is tried in one of its own.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from memcli.engines.checks import Check, package_check
from memcli.engines.gpus import Gpu, list_gpus, visible_gpus
from memcli.engines.mxnet.shim import find_cuda_libs, is_cuda_build, library_path
from memcli.engines.processes.jobs import run_job
from memcli.engines.processes.worker import worker_main
from memcli.engines.torch.doctor_checks import TorchFound, mend_for, torch_checks
from memcli.errors import MemcliError
from memcli.units import format_size
from memcli.version import __version__

_TIMEOUT = 120.0  # seconds for one engine; a cold disk is slow
_INSTALL = "pip install 'memcli[mxnet]' (CPU) or 'memcli[cu112]' (CUDA); see the README for 3.13"


def check_all() -> list[Check]:
    """All checks; never raises for what it finds."""
    checks = [_python(), Check("memcli", True, __version__)]
    checks.append(package_check("numpy", needed=True))
    checks.append(package_check("numba", needed=True))
    checks += _mxnet()
    checks.append(package_check("onnx", needed=True))
    checks.append(package_check("onnxruntime", needed=False))
    gpus = list_gpus()
    torch, found = torch_checks(gpus)
    checks += torch
    checks += _gpus(gpus, found)
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


def _mxnet() -> list[Check]:
    path = library_path()
    if path is None:
        return [Check("mxnet", False, "not installed", _INSTALL)]
    build = "CUDA build" if is_cuda_build() else "CPU build"
    checks = []
    try:
        facts = run_job("memcli.engines.doctor", {}, timeout=_TIMEOUT, doing="trying mxnet")
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


def _gpus(gpus: list[Gpu], torch: TorchFound) -> list[Check]:
    if not gpus:
        return [Check("gpu", None, "none that nvidia-smi shows", "memcli verify --cpu needs none")]
    visible = [gpu.uuid for gpu in visible_gpus()]
    return [_gpu(gpu, torch, visible) for gpu in gpus]


def _gpu(gpu: Gpu, torch: TorchFound, visible: list[str]) -> Check:
    """A card, and which engine ``verify --gpu N`` takes on it for what kind of file."""
    has_mxnet = library_path() is not None and is_cuda_build()
    mxnet = gpu.runs_mxnet and has_mxnet
    why = torch.trains_on(gpu)
    number = visible.index(gpu.uuid) if gpu.uuid in visible else None
    detail = (
        f"{gpu.name}, {format_size(gpu.memory_bytes)}, compute capability "
        f"{gpu.capability_text}, driver {gpu.driver}"
    )
    name = f"gpu {gpu.index}"
    if number is None:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return Check(name, None, detail, f"CUDA_VISIBLE_DEVICES={shown} hides it")
    option = f"verify --gpu {number}"
    graphs = "MXNet" if mxnet else "PyTorch" if not why else "nothing"
    files = "nothing" if why else "PyTorch"
    detail += f"\n{option}: MXNet graphs in {graphs}, ONNX files in {files}"
    mends = []
    if not mxnet:
        mends.append(
            "no MXNet for it: 'memcli[cu112]' in place of 'memcli[mxnet]'"
            if gpu.runs_mxnet
            else "no MXNet for it: mxnet-cu112 runs on 5.0 to 8.6 only"
        )
    if why:
        mends += [f"no PyTorch for it: {why}", mend_for(gpu, torch)]
    mends += ["memcli verify --cpu needs no card"] if graphs == "nothing" else []
    return Check(name, mxnet or not why, detail, "; ".join(filter(None, mends)))


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
    """The worker: imports MXNet and trains a step with it."""
    from memcli.engines.mxnet.shim import import_mxnet

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
