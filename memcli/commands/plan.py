"""``memcli plan``: search for a plan, and write the model with it."""

from __future__ import annotations

import dataclasses
import time

from memcli.commands.about import about
from memcli.engine import PlanRequest, engine_of
from memcli.engines.plan_search import plan_network
from memcli.formats.detect import Model, read_source
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
    engine.check_request(source, request, devices, training=training)
    with about(source):
        engine.check_output(source, out, force)
        if budget is not None and not budget.strip().endswith("%"):
            parse_size(budget)
        started = time.monotonic()
        settings = dataclasses.replace(settings, deadline=deadline(settings.time_limit))
        asked = PlanRequest(budget, strategy in AS_PUBLISHED, devices, training)
        network = engine.network(source, request, settings, asked, on_progress)
        if on_progress:
            on_progress("compiling the memory model (first run only)", None)
        planned = plan_network(
            network,
            strategy,
            settings,
            budget=budget,
            engine=engine.name,
            started=started,
            on_progress=on_progress,
        )
        if out is not None:
            network.write(planned, out, force)
        return planned
