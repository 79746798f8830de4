"""One of several workers that train together: torch.distributed, DistributedDataParallel.

Each worker is a process with a device of its own. Parameters are the same in all; each has its own
part of the batch, and gradients are the mean of all workers'. Where it differs from training alone
is written down here: DistributedDataParallel copies gradients into buckets (as many bytes again,
there all through), sends worker 0's states to all before each forward pass (its default), and
leaves it to each worker to update them from its own part of the batch (BatchNorm's statistics).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from memcli.engines.processes.parent_side import PeerLost
from memcli.engines.torch.executor import PlannedModule
from memcli.errors import EngineFailed

# Longer than any step; a worker that is gone is noticed at once, by the connection or by memcli.
_PATIENCE = timedelta(hours=1)
_GONE = re.compile(
    r"[Cc]onnection (was )?(closed|reset|refused)|closed by (remote )?peer|[Bb]roken pipe|"
    r"ncclRemoteError|remote process exited|Timed out waiting|wait timeout",
)


class Parallel:
    """This process among the workers: ``rank`` from 0, ``workers`` of them."""

    def __init__(self, rank: int, workers: int) -> None:
        self.rank = rank
        self.workers = workers

    def wrapped(
        self,
        module: PlannedModule,
        idle: Collection[str],
        states: Collection[str],
        device: torch.device,
    ) -> DistributedDataParallel:
        """The module in DistributedDataParallel with its defaults.

        ``idle``: names of parameters that get no gradient, for which it would wait. ``states``:
        names of buffers that training updates; the others are constants, and not sent around.
        """
        constants = [name for name, _ in module.named_buffers() if name not in states]
        # The module's own parameters go by ``.name`` in one place of it and ``name`` in others.
        left_out = [*idle, *(f".{name}" for name in idle), *constants]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, left_out)
        with _peers():
            return DistributedDataParallel(
                module, device_ids=None if device.type == "cpu" else [device]
            )

    def slowest(self, seconds: float, device: torch.device) -> float:
        """The most of what the workers give; the same number in all of them."""
        value = torch.tensor([seconds], dtype=torch.float64, device=device)
        with _peers():
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return float(value.item())

    def wait(self) -> None:
        """Until all workers are here."""
        with _peers():
            dist.barrier()


@contextlib.contextmanager
def joined(job: dict[str, Any] | None, device: torch.device) -> Iterator[Parallel | None]:
    """Among the workers of a job for the time of the block; None where the job has one alone.

    ``job``: ``rank``, ``workers`` and ``store``, a path in a folder of the job's own by which they
    find one another (no port that could be taken). NCCL between cards, gloo between CPUs.

    Raises:
        EngineFailed: this PyTorch cannot do it.
        PeerLost: another worker is gone.
    """
    if job is None:
        yield None
        return
    rank, workers = int(job["rank"]), int(job["workers"])
    backend = "gloo" if device.type == "cpu" else "nccl"
    if not dist.is_available() or not dist.is_backend_available(backend):
        raise EngineFailed(
            f"PyTorch here was built without torch.distributed's {backend}, which several "
            "workers need",
            "verify on one device, or install a build that has it (pytorch.org)",
        )
    if backend == "gloo":
        # All are on this machine; its name may well stand for no address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    with _peers():
        store = dist.FileStore(str(job["store"]), workers)
        store.set_timeout(_PATIENCE)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=workers,
            timeout=_PATIENCE,
            device_id=None if device.type == "cpu" else device,
        )
    parallel = Parallel(rank, workers)
    with _peers():
        yield parallel
    parallel.wait()  # nobody leaves while another still listens
    dist.destroy_process_group()


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """What goes wrong inside because another worker is gone is told as that."""
    try:
        yield
    except RuntimeError as error:
        if _GONE.search(str(error)):
            raise PeerLost("it lost its connection to another worker") from error
        raise


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), "lo")
