"""The process that tries PyTorch: what build it is, which cards it sees, and whether it trains."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from memcli.engines.processes.parent_side import Progress
from memcli.engines.processes.worker import worker_main


def handle(job: dict[str, Any], workdir: Path, progress: Progress) -> dict[str, Any]:
    """Import PyTorch, train a step on the CPU and one on each card.

    Returns ``version``, ``trains`` ("" or why not), ``cuda`` and ``rocm`` (of the build; None: it
    has none), ``archs`` (that the build has code for), ``trouble`` (why CUDA does not start) and
    ``cards``: name, capability, uuid and ``trains`` of each, in the order of the PCI bus.
    """
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi numbers them
    import torch

    built = torch.version.cuda is not None or torch.version.hip is not None
    trouble, cards = "", []
    if built:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if not torch.cuda.is_available():
                trouble = _why_not(torch, caught)
            else:
                cards = [_card(torch, i) for i in range(torch.cuda.device_count())]
    return {
        "version": str(torch.__version__),
        "trains": _trains(torch, torch.device("cpu")),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "archs": _archs(torch) if built else [],
        "trouble": trouble,
        "cards": cards,
    }


def _why_not(torch: Any, caught: list[warnings.WarningMessage]) -> str:
    """What PyTorch says where CUDA does not start; an old driver is told by a warning."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        said = str(error)
    else:
        said = "torch.cuda.is_available() is false"
    texts = [str(w.message) for w in caught if "CUDA" in str(w.message)]
    return " ".join((texts[0] if texts else said).split("(Triggered")[0].split())


def _archs(torch: Any) -> list[str]:
    found = torch.cuda.get_arch_list()
    if not found and hasattr(torch._C, "_cuda_getArchFlags"):
        # the public function gives nothing where no card can be used
        found = (torch._C._cuda_getArchFlags() or "").split()
    return list(found)


def _card(torch: Any, number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "uuid": f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else "",
        "trains": _trains(torch, torch.device("cuda", number)),
    }


def _trains(torch: Any, device: Any) -> str:
    """Empty where a small step runs; else what PyTorch says."""
    try:
        x = torch.ones(4, 4, device=device, requires_grad=True)
        torch.relu(x @ x).sum().backward()
        float(x.grad.sum())
    except RuntimeError as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


if __name__ == "__main__":
    worker_main(handle)
