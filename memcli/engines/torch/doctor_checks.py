"""Whether PyTorch works here, on which cards, and what would mend it where it does not."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from typing import Any

from memcli.engines.checks import Check
from memcli.engines.gpus import Gpu
from memcli.engines.processes.jobs import run_job
from memcli.errors import MemcliError

_TIMEOUT = 180.0  # seconds; a cold disk is slow, and so is a card's first use
_INSTALL = "for ONNX files: pip install torch"
_CUDA_BUILD = "install PyTorch's CUDA build: choose your CUDA version on pytorch.org, Get Started"
_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)$")


@dataclass
class TorchFound:
    """What PyTorch's own process found; ``cards``: see :mod:`memcli.engines.torch.doctor`."""

    works: bool = False
    cuda: str | None = None
    archs: list[str] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""  # why CUDA does not start

    def card_of(self, gpu: Gpu) -> int | None:
        """The number by which PyTorch knows a card of nvidia-smi's; None where it does not."""
        for number, card in enumerate(self.cards):
            if card["uuid"] and card["uuid"] == gpu.uuid:
                return number
        same = [
            n for n, card in enumerate(self.cards) if not card["uuid"] and card["name"] == gpu.name
        ]
        return same[0] if same else None

    def trains_on(self, gpu: Gpu) -> str:
        """Empty where PyTorch trains on a card; else why not."""
        if not self.works:
            return "PyTorch does not work here"
        if self.cuda is None:
            return "PyTorch here is the CPU build"
        if self.trouble:
            return f"PyTorch's CUDA does not start: {self.trouble}"
        if gpu.capability is not None and self.archs and not has_code(gpu.capability, self.archs):
            return (
                f"this build of PyTorch has no code for compute capability {gpu.capability_text} "
                f"(it has {' '.join(self.archs)})"
            )
        number = self.card_of(gpu)
        if number is None:
            return "PyTorch does not see this card (CUDA_VISIBLE_DEVICES?)"
        return str(self.cards[number]["trains"])


def has_code(capability: tuple[int, int], archs: list[str]) -> bool:
    """Whether a build runs on a card.

    Machine code (``sm_86``) runs on cards of its generation that are not older, PTX
    (``compute_90``) on all that are not older; code with a letter (``sm_90a``) on that card alone.
    See NVIDIA's "CUDA C++ Programming Guide", section on binary compatibility.
    """
    for arch in archs:
        found = _ARCH.match(arch)
        if found is None:
            continue
        has = int(found[2]), int(found[3])
        if found[4]:
            fits = has == capability if found[4] == "a" else _same_generation(has, capability)
        elif found[1] == "sm":
            fits = _same_generation(has, capability)
        else:
            fits = has <= capability
        if fits:
            return True
    return False


def _same_generation(code: tuple[int, int], card: tuple[int, int]) -> bool:
    return code[0] == card[0] and code[1] <= card[1]


def torch_checks(gpus: list[Gpu]) -> tuple[list[Check], TorchFound]:
    """The lines about PyTorch, and what it found; ``gpus``: that nvidia-smi shows."""
    if importlib.util.find_spec("torch") is None:
        return [Check("torch", None, "not installed", _INSTALL)], TorchFound()
    try:
        facts = run_job("memcli.engines.torch.doctor", {}, timeout=_TIMEOUT, doing="trying PyTorch")
    except MemcliError as error:
        mend = error.hint or "pip install --force-reinstall torch"
        return [Check("torch", False, error.message, mend)], TorchFound()
    found = TorchFound(
        works=not facts["trains"],
        cuda=facts["cuda"],
        archs=facts["archs"],
        cards=facts["cards"],
        trouble=facts["trouble"],
    )
    build = f"CUDA {facts['cuda']} build" if facts["cuda"] else "CPU build"
    if facts["rocm"]:
        build = f"ROCm {facts['rocm']} build"
    if not found.works:
        detail = f"{facts['version']}, {build}: cannot train: {facts['trains']}"
        return [Check("torch", False, detail, "pip install --force-reinstall torch")], found
    checks = [Check("torch", True, f"{facts['version']}, {build}: trained a step")]
    checks.append(_cuda(found, facts, gpus))
    return checks, found


def _cuda(found: TorchFound, facts: dict[str, Any], gpus: list[Gpu]) -> Check:
    """What PyTorch can do on cards."""
    name = "torch cuda"
    if facts["rocm"]:
        return Check(name, None, "a ROCm build: memcli's memory is that of CUDA", _CUDA_BUILD)
    if found.cuda is None:
        mend = f"to train on the card: {_CUDA_BUILD}" if gpus else ""
        return Check(name, None, "not in this build", mend)
    code = f"has code for {' '.join(found.archs)}" if found.archs else "its code is not known"
    if not found.trouble:
        cards = "1 card" if len(found.cards) == 1 else f"{len(found.cards)} cards"
        return Check(name, True, f"CUDA {found.cuda}, {cards} visible; {code}")
    if not gpus:
        return Check(name, None, f"CUDA {found.cuda}, no card; {code}")
    return Check(name, False, f"CUDA {found.cuda}: {found.trouble}", _mend(found, gpus[0]))


def _mend(found: TorchFound, gpu: Gpu) -> str:
    if "driver" in found.trouble.lower():
        return (
            f"the driver here is {gpu.driver}: update it, or install a PyTorch built for an older "
            f"CUDA than {found.cuda}"
        )
    return "nvidia-smi sees a card: is it hidden (CUDA_VISIBLE_DEVICES), or in use by another?"


def mend_for(gpu: Gpu, found: TorchFound) -> str:
    """What would let PyTorch train on a card."""
    if not found.works or found.cuda is None:
        return _CUDA_BUILD
    if found.trouble:
        return _mend(found, gpu)
    if gpu.capability is not None and found.archs and not has_code(gpu.capability, found.archs):
        newest = max(
            ((int(m[2]), int(m[3])) for a in found.archs if (m := _ARCH.match(a))), default=(0, 0)
        )
        which = "a newer" if gpu.capability > newest else "an older"
        return f"install {which} version of PyTorch, with code for {gpu.capability_text}"
    return ""
