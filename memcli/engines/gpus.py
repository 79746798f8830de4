"""NVIDIA's graphics cards in this machine, and whether MXNet's CUDA build can use one."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from memcli.errors import EngineFailed
from memcli.quoting import whole_number

# mxnet-cu112 1.9.1 holds machine code for these and no PTX. Machine code for 8.6 could run on 8.9,
# but MXNet's CUDA libraries are older than those cards, and nobody has tried.
OLDEST_CAPABILITY = (5, 0)
NEWEST_CAPABILITY = (8, 6)

_INSTEAD = "Use `memcli verify --cpu`, or an older card (compute capability 5.0 to 8.6)."


@dataclass
class Gpu:
    """One card as nvidia-smi shows it; ``capability`` is None where the driver does not tell."""

    index: int
    name: str
    capability: tuple[int, int] | None
    memory_bytes: int
    driver: str
    uuid: str

    @property
    def capability_text(self) -> str:
        """Like ``8.6``; ``unknown`` where the driver does not tell."""
        return "unknown" if self.capability is None else "{}.{}".format(*self.capability)

    @property
    def runs_mxnet(self) -> bool:
        """Whether MXNet 1.9.1's CUDA build has machine code for this card."""
        if self.capability is None:
            return True  # the engine will tell
        return OLDEST_CAPABILITY <= self.capability <= NEWEST_CAPABILITY


def list_gpus(timeout: float = 20.0) -> list[Gpu]:
    """All cards that nvidia-smi shows, in the order of the PCI bus; [] where there is none.

    Never raises: a driver that does not answer is no driver.

    Args:
        timeout: seconds.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    # Drivers before 2022 do not know compute_cap, and then refuse the whole question.
    for fields in (
        ("index", "name", "compute_cap", "memory.total", "driver_version", "uuid"),
        ("index", "name", "memory.total", "driver_version", "uuid"),
    ):
        try:
            asked = subprocess.Popen(
                [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError:
            return []
        try:
            answer, _ = asked.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            asked.kill()  # not waited for: a driver that hangs does not let go of it
            return []
        if asked.returncode == 0:
            return [g for line in answer.splitlines() if (g := _parse(fields, line))]
    return []


def visible_gpus() -> list[Gpu]:
    """The cards that CUDA will number 0, 1, ... in this environment (CUDA_VISIBLE_DEVICES).

    Holds for a process that runs with CUDA_DEVICE_ORDER=PCI_BUS_ID, as memcli's engines do.
    """
    gpus = list_gpus()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not gpus:
        return gpus
    visible = []
    for item in (part.strip() for part in wanted.split(",")):
        found = [
            gpu
            for gpu in gpus
            if item == str(gpu.index) or (item.startswith("GPU-") and gpu.uuid.startswith(item))
        ]
        if not found:
            break  # CUDA stops at the first one that it does not know
        visible.append(found[0])
    return visible


def visible_gpu(number: int, instead: str) -> Gpu:
    """The card that CUDA gives a number.

    Args:
        number: as CUDA counts visible cards.
        instead: what the user can do where there is none.

    Raises:
        EngineFailed: there is no such card.
    """
    gpus = visible_gpus()
    if not gpus:
        hidden = list_gpus() if "CUDA_VISIBLE_DEVICES" in os.environ else []
        why = (
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides all cards"
            if hidden
            else "nvidia-smi shows none"
        )
        raise EngineFailed(f"No GPU here: {why}.", instead)
    if not 0 <= number < len(gpus):
        known = ", ".join(f"{i}: {gpu.name}" for i, gpu in enumerate(gpus))
        raise EngineFailed(f"There is no GPU {number} here.", f"Choose one of these: {known}.")
    return gpus[number]


def check_gpu(number: int) -> Gpu:
    """The card that ``--gpu number`` means, if MXNet as installed here can train on it.

    Whether the CUDA libraries load is seen when the engine's process imports MXNet.

    Args:
        number: as CUDA counts visible cards.

    Raises:
        EngineFailed: says why not: no card, no such card, a compute capability that the CUDA build
            has no machine code for, no MXNet, or its CPU build.
    """
    from memcli.engines.mxnet.shim import INSTALL_HINT, is_cuda_build, library_path

    gpu = visible_gpu(number, "Use `memcli verify --cpu`.")
    if not gpu.runs_mxnet:
        raise EngineFailed(
            f"GPU {number} ({gpu.name}) has compute capability {gpu.capability_text}, and "
            "mxnet-cu112 1.9.1 holds machine code for 5.0 to 8.6 and no PTX: it cannot run there.",
            _INSTEAD,
        )
    if library_path() is None:
        raise EngineFailed(
            f"GPU {number} ({gpu.name}) could be used, but MXNet is not installed.",
            INSTALL_HINT.replace("[mxnet]", "[cu112]"),
        )
    if not is_cuda_build():
        raise EngineFailed(
            f"GPU {number} ({gpu.name}) could be used, but MXNet here is the CPU build.",
            "Replace it: pip uninstall mxnet && pip install 'memcli[cu112]'; or use "
            "`memcli verify --cpu`.",
        )
    return gpu


def _parse(fields: tuple[str, ...], line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != len(fields):
        return None
    row = dict(zip(fields, parts, strict=True))
    try:
        return Gpu(
            index=int(row["index"]),
            name=row["name"],
            capability=_capability(row.get("compute_cap", "")),
            memory_bytes=_mebibytes(row["memory.total"]),
            driver=row["driver_version"],
            uuid=row["uuid"],
        )
    except ValueError:
        return None


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    version = whole_number(major), whole_number(minor)
    return None if None in version else version  # type: ignore[return-value]


def _mebibytes(text: str) -> int:
    """Bytes of ``24576 MiB``; 0 for ``[N/A]``."""
    number = text.split(maxsplit=1)[0] if text.split() else ""
    return (whole_number(number) or 0) << 20
