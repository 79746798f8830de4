"""``memcli verify``: train a step of both graphs for real, and compare."""

from __future__ import annotations

from memcli.commands.about import about
from memcli.engine import engine_of
from memcli.errors import BadInput
from memcli.formats.detect import Model, read_source
from memcli.quoting import STANDARD
from memcli.request import CPU, Devices, Progress, ShapeRequest
from memcli.results.verified import Verified


def verify(
    planned: Model,
    *,
    original: Model | None = None,
    engine: str = "auto",
    devices: Devices = CPU,
    seed: int = 0,
    steps: int | None = None,
    kernels: str | None = None,
    request: ShapeRequest | None = None,
    on_progress: Progress | None = None,
) -> Verified:
    """Trains a step of a planned model and of its original, and compares everything.

    Args:
        planned: its path, or what was read.
        original: the model without the plan; None: found by name and SHA-256, or the plan taken
            off.
        engine: what trains an MXNet symbol: ``auto``, ``mxnet`` or ``torch``.
        devices: that train.
        seed: of parameters and inputs.
        steps: how many are timed after a warm-up step, of which the median counts; None: 5 on a
            card, on the CPU as many as a few seconds allow.
        kernels: for MXNet on the CPU: ``plain``, ``default`` or ``both``.
        request: shapes in place of those of the plan.
        on_progress: told what is being done.

    Raises:
        BadInput: no plan, no original, or what the engine cannot do.
        EngineFailed: the engine or a device is missing, or a step crashed.
    """
    if planned == original == STANDARD:
        raise BadInput(
            "standard input cannot be both the planned graph and the original",
            "give one of them as a file",
        )
    source = read_source(planned)
    trained_by = engine_of(source)
    if request is not None:
        trained_by.check_request(source, request, CPU)
    with about(source, original):
        return trained_by.verify(
            source,
            original=original,
            devices=devices,
            seed=seed,
            steps=steps,
            engine=engine,
            kernels=kernels,
            request=request,
            on_progress=on_progress,
        )
