"""What a process takes beside its training step, and so the room that ``fit`` leaves for it.

These are assumptions, stated with each answer; no graph tells them, and they differ by card, driver
and version. On a card:

- CUDA's context with the kernels of the engine. 300 to 400 MB were seen with PyTorch on a V100
  (pytorch/pytorch issue 20532), about 300 MB since kernels are loaded as they are needed (issue
  107667, CUDA 11.7), 320 MB without any framework on a Titan V (issue 28394).
- PyTorch: work space of cuBLAS, at most 32 MiB (NVIDIA's recommendation for Hopper in the
  documentation of ``cublasSetWorkspace``), and of cuDNN's convolutions.
- MXNet: 5% of the card, which its own pool leaves free "for things other than the GPU array, such
  as kernel launch or cudnn handle space" (MXNET_GPU_MEM_POOL_RESERVE in its documentation of
  environment variables).

On the CPU: the process that has the engine loaded and has run one operator, measured on Linux
(x86-64, Python 3.11): 205 MiB with MXNet 1.9.1, 298 MiB with PyTorch 2.13.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcli.units import MIB, format_size

_CONTEXT = 512 * MIB
_TORCH_WORKSPACES = 256 * MIB
_MXNET_POOL_RESERVE = 0.05
_MXNET_PROCESS = 256 * MIB
_TORCH_PROCESS = 384 * MIB


@dataclass(frozen=True)
class Reserve:
    """Memory that is left free. Bytes; ``assumed``: what for, where the user did not say."""

    bytes: int
    assumed: str = ""


NOTHING = Reserve(0)


def default_reserve(engine: str, *, cpu: bool, memory: int | None) -> Reserve:
    """What ``mxnet`` or ``torch`` is assumed to take for itself, of ``memory`` bytes in all.

    Of a card whose memory is not known (None) MXNet's part of it is left out.
    """
    if cpu:
        size = _MXNET_PROCESS if engine == "mxnet" else _TORCH_PROCESS
        name = "MXNet" if engine == "mxnet" else "PyTorch"
        return Reserve(size, f"the process with {name} loaded")
    context = f"{format_size(_CONTEXT)} for CUDA's context"
    if engine == "mxnet" and memory is None:
        return Reserve(_CONTEXT, context)
    if engine == "mxnet":
        share = int(_MXNET_POOL_RESERVE * (memory or 0))
        return Reserve(
            _CONTEXT + share,
            f"{context}, {_MXNET_POOL_RESERVE:.0%} of the card as MXNet's pool leaves for "
            "cuDNN and kernels",
        )
    return Reserve(
        _CONTEXT + _TORCH_WORKSPACES,
        f"{context}, {format_size(_TORCH_WORKSPACES)} for work space of cuBLAS and cuDNN",
    )


def reserve_or_default(asked: int | None, engine: str, *, cpu: bool, memory: int | None) -> Reserve:
    """What the user wants left free, or else the default."""
    if asked is not None:
        return Reserve(asked)
    return default_reserve(engine, cpu=cpu, memory=memory)
