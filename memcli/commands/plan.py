"""``memcli plan``: search for a plan, and write the model with it."""

from __future__ import annotations

import dataclasses
import time

from memcli.commands.about import about
from memcli.engine import Engine, PlanRequest, engine_of
from memcli.engines.plan_search import WholeStep, plan_network
from memcli.engines.runtime import reserve_or_default
from memcli.errors import BadInput
from memcli.formats.detect import Model, read_source
from memcli.frameworks.cards import CARDS
from memcli.request import CPU, Devices, Progress, ShapeRequest
from memcli.results.planned import Planned
from memcli.search.base import Settings
from memcli.search.registry import AS_PUBLISHED
from memcli.time_limit import deadline
from memcli.units import parse_size


def make_plan(
    model: Model,
    request: ShapeRequest,
    strategy: str,
    settings: Settings,
    *,
    budget: str | None = None,
    memory: int | None = None,
    card: str = "",
    optimizer: str = "sgd",
    reserve: int | None = None,
    cpu: bool = False,
    devices: Devices = CPU,
    training: bool = False,
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Planned:
    """Plans a model and, with ``out``, writes it with its plan.

    Args:
        model: its path, or what was read.
        request: shapes and types.
        strategy: the name of one of ``STRATEGIES``.
        settings: of the search; ``time_limit`` counts from the start of the command.
        budget: most memory, as ``6GiB`` or ``50%``. What fits as it is gets no plan.
        memory: most bytes of all that a training step takes, in place of ``budget``: with
            parameters, gradients, what the optimizer keeps, inputs, and what the engine takes
            for itself.
        card: the kind of card that the memory is of, one of ``CARDS``; says ``memory`` too.
        optimizer: one of ``OPTIMIZERS``, for what is told of the whole step.
        reserve: bytes that the engine takes for itself; None: what is assumed
            (:mod:`memcli.engines.runtime`).
        cpu: ``memory`` is the CPU's, and not a card's.
        devices: to plan for, and to time operators on where ``settings.cost`` says so.
        training: put the model back into training mode first.
        out: file for the planned model.
        force: replace ``out`` where it exists.
        on_progress: told what is being done.

    Raises:
        BadInput: bad file, shapes, options or output.
        AnswerIsNo: no plan fits the budget, or the limit on recomputation.
        EngineFailed: the engine or a device is missing, or it crashed.
    """
    source = read_source(model)
    engine = engine_of(source)
    if memory is None and card:
        memory = CARDS[card].bytes
    if memory is not None and budget is not None:
        raise BadInput(
            "--memory and --card say what a whole training step may take, --budget what its "
            "activations may: give one of them"
        )
    devices = devices_of(engine, devices, on_card=memory is not None and not cpu)
    engine.check_request(source, request, devices, training=training)
    with about(source):
        engine.check_output(source, out, force)
        if budget is not None and not budget.strip().endswith("%"):
            parse_size(budget)
        on_card = bool(devices.gpus) or (memory is not None and not cpu)
        whole = WholeStep(
            optimizer=optimizer,
            reserve=reserve_or_default(reserve, engine.name, cpu=not on_card, memory=memory),
            on_card=on_card,
            memory=memory,
            card=CARDS[card].title if card else "",
        )
        started = time.monotonic()
        settings = dataclasses.replace(settings, deadline=deadline(settings.time_limit))
        plan_request = PlanRequest(budget, strategy in AS_PUBLISHED, devices, training)
        network = engine.network(source, request, settings, plan_request, on_progress)
        if on_progress:
            on_progress("compiling the memory model (first run only)", None)
        planned = plan_network(
            network,
            strategy,
            settings,
            budget=budget,
            whole=whole,
            engine=engine.name,
            started=started,
            on_progress=on_progress,
        )
        if out is not None:
            network.write(planned, out, force)
        return planned


def devices_of(engine: Engine, devices: Devices, *, on_card: bool) -> Devices:
    """What is planned for: a card where the memory is a card's and figures differ by device."""
    wanted = on_card and engine.plans_for_devices
    return Devices((0,)) if wanted and devices == CPU else devices
