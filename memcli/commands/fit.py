"""``memcli fit``: the largest batch that trains in a given memory."""

from __future__ import annotations

import dataclasses
import time

from memcli.commands.about import about
from memcli.engine import PlanRequest, engine_of
from memcli.engines.runtime import Reserve, reserve_or_default
from memcli.errors import AnswerIsNo
from memcli.formats.detect import Model, read_source
from memcli.request import Devices, Progress, ShapeRequest
from memcli.results.fitted import Fitted
from memcli.search.base import Settings
from memcli.search.registry import AS_PUBLISHED
from memcli.units import distinct_sizes


def fit(
    model: Model,
    request: ShapeRequest,
    memory: int,
    settings: Settings,
    *,
    strategy: str = "auto",
    optimizer: str = "sgd",
    reserve: int | None = None,
    cpu: bool = False,
    gpu: int | None = None,
    training: bool = False,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Fitted:
    """The largest batch that trains in ``memory`` bytes, and with ``out`` its planned model.

    Counted are parameters, their gradients, the optimizer's copies, auxiliary states, inputs and
    (MXNet) their gradients, and feature maps; not what the engine and its libraries take for
    themselves (context, workspaces, rounding of blocks).

    Each batch that is looked at is recorded by the engine itself. The baseline's answer was seen to
    fit and the next batch seen not to. The planned answer was seen to fit under the plan that is
    returned, and the next batch seen not to fit under any plan that was found, one that was
    searched for at that very batch among them (unless ``rounds`` such searches in a row went
    further). That no plan at all, or no larger batch, fits is not proven.

    Args:
        model: its path, or what was read.
        request: shapes and types, at any batch.
        memory: bytes.
        settings: of the searches; the time limit is of each.
        strategy: the name of one of ``STRATEGIES``.
        optimizer: one of ``OPTIMIZERS``.
        reserve: bytes to leave free; None: what the engine is assumed to take for itself
            (:mod:`memcli.engines.runtime`).
        cpu: the memory is the CPU's, and not a card's.
        gpu: the card to time operators on if ``settings.cost`` says so; by default the first where
            memory is a card's and differs by device, else the CPU.
        training: put the model back into training mode first.
        out: file for the planned model.
        force: replace ``out`` where it exists.
        on_progress: told what is being done.

    Raises:
        BadInput: bad file, shapes or output, or a graph whose batch cannot be changed.
        AnswerIsNo: not even batch 1 fits.
        EngineFailed: the engine or the card is missing, or it crashed.
    """
    source = read_source(model)
    engine = engine_of(source)
    devices = Devices() if gpu is None else Devices((gpu,))
    if engine.plans_for_devices and not cpu and gpu is None:
        devices = Devices((0,))
    engine.check_request(source, request, devices, training=training, cpu=cpu)
    with about(source):
        engine.check_output(source, out, force)
        started = time.monotonic()
        kept = reserve_or_default(reserve, engine.name, cpu=cpu, memory=memory)
        settings = dataclasses.replace(settings, on_progress=on_progress)
        plan_request = PlanRequest(None, strategy in AS_PUBLISHED, devices, training)
        search = engine.fit_search(
            source,
            request,
            settings,
            plan_request,
            room(memory, kept),
            strategy,
            optimizer,
            on_progress,
        )
        found = search.answer()
        finished = search.finished(found)
        fitted = Fitted(
            source=search.source,
            sha256=search.original[1],
            engine=engine.title,
            memory=memory,
            reserve=kept.bytes,
            reserve_assumed=kept.assumed,
            optimizer=optimizer,
            strategy=strategy,
            baseline=found.baseline,
            planned=dataclasses.replace(
                found.planned, cost=finished.cost, breakdown=finished.breakdown
            ),
            analysis=finished.analysis,
            operator_count=finished.operator_count,
            form=finished.form,
            plan=finished.plan,
            environment=finished.environment,
            notes=[*search.notes, *finished.notes],
            searches=search.searches,
            batches=search.looked_at,
            seconds=time.monotonic() - started,
            device=search.device,
            restored=search.restored,
            cost_of=settings.cost,
        )
        if out is not None:
            search.write(fitted, out, force)
            fitted.output = out
        fitted.seconds = time.monotonic() - started
        return fitted


def room(memory: int, kept: Reserve) -> int:
    """Bytes that a step may take.

    Args:
        memory: bytes of the device.
        kept: what of it is left free.

    Raises:
        AnswerIsNo: the engine alone is assumed to take everything.
    """
    if kept.bytes < memory:
        return memory - kept.bytes
    have, most = distinct_sizes(memory, kept.bytes)
    raise AnswerIsNo(
        f"nothing fits {have}: {most} are assumed to be taken before training ({kept.assumed})",
        "--reserve SIZE says what is; --reserve 0 counts none of it",
    )
