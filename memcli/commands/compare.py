"""``memcli compare``: all strategies, and several budgets, on one recorded step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from memcli.choices import DEFAULT_BUDGETS
from memcli.commands.about import about
from memcli.engine import PlanRequest, engine_of
from memcli.errors import MemcliError
from memcli.formats.detect import Model, read_source
from memcli.graph.cost import Found
from memcli.request import CPU, Devices, Progress, ShapeRequest
from memcli.results.compared import Comparison, Row, mark_frontier
from memcli.search import none
from memcli.search.base import Settings
from memcli.search.registry import GENERAL
from memcli.units import parse_size

_BUDGET_STRATEGY = "auto"


def compare(
    model: Model,
    request: ShapeRequest,
    settings: Settings,
    *,
    strategies: Sequence[str] = (),
    budgets: Sequence[str] = (),
    devices: Devices = CPU,
    training: bool = False,
    on_progress: Progress | None = None,
) -> Comparison:
    """Searches with every strategy, and within every budget, on one analysis of a model.

    Args:
        model: its path, or what was read.
        request: shapes and types.
        settings: of the searches; the time limit is of each row.
        strategies: names, by default all that are for any graph.
        budgets: texts such as ``6GiB`` or ``50%`` (of the baseline), by default a ladder of
            percentages. They are searched for by ``auto``, or by the first of ``strategies`` where
            ``auto`` is not among them.
        devices: to plan for, and to time operators on where ``settings.cost`` says so.
        training: put the model back into training mode first.
        on_progress: told what is being done.

    Raises:
        BadInput: bad file, shapes or budgets.
        EngineFailed: the engine or a device is missing, or it crashed.
        MemcliError: none of the strategies could be run; the first one's reason.
    """
    check_budgets(budgets)
    source = read_source(model)
    engine = engine_of(source)
    engine.check_request(
        source, request, devices, training=training, timed=settings.cost == "measured"
    )
    with about(source):
        plan_request = PlanRequest(devices=devices, training=training)
        network = engine.network(source, request, settings, plan_request, on_progress)
        if on_progress:
            on_progress("compiling the memory model (first run only)", None)
        notes = [*network.notes, *network.set_costs(settings.cost, on_progress)]
        baseline = network.baseline()
        found: list[Found] = []

        def search(strategy: str, budget: str | None, mine: Settings) -> Row:
            plan, environment = network.estimate(strategy, mine)
            found.append(plan)
            return row_of(plan, strategy, budget, mine, environment)

        rows = search_rows(search, strategies, budgets, baseline.pool_bytes, settings, on_progress)
        return Comparison(
            source=network.source,
            sha256=network.original[1],
            analysis=network.analysis,
            operator_count=network.operator_count,
            engine=engine.name,
            baseline=baseline,
            lower_bound=network.lower_bound([baseline, *(plan.cost for plan in found)]),
            rows=rows,
            notes=notes,
            device=network.device,
            restored=network.restored,
            cost_of=settings.cost,
        )


def check_budgets(budgets: Sequence[str]) -> None:
    """Raises BadInput where one is no size at all, before any work."""
    for budget in budgets:
        parse_size(budget, whole=1 << 60)


def search_rows(
    search: Callable[[str, str | None, Settings], Row],
    strategies: Sequence[str],
    budgets: Sequence[str],
    whole: int,
    settings: Settings,
    on_progress: Progress | None,
) -> list[Row]:
    """A row for every strategy and every budget, with those on the frontier marked.

    Args:
        search: called with a strategy's name, the budget as asked for, and settings; gives its row.
        strategies: names; none: all that have a plan for every graph.
        budgets: sizes, as the user gives them; none: a ladder of percentages.
        whole: bytes of the baseline, which percentages are of.
        settings: what the user asks for.
        on_progress: told what is going on.

    Raises:
        MemcliError: none of the strategies could be run; the first one's reason.
    """
    names = list(dict.fromkeys(strategies)) or list(GENERAL)
    within = _BUDGET_STRATEGY if _BUDGET_STRATEGY in names else names[0]
    # the frontier begins at the graph as it is
    shown = names if none.NAME in names else [none.NAME, *names]
    rows_asked: list[tuple[str, str | None]] = [(name, None) for name in shown]
    rows_asked += [(within, text) for text in dict.fromkeys(budgets or DEFAULT_BUDGETS)]
    rows: list[Row] = []
    problems: list[MemcliError] = []
    for number, (name, wanted) in enumerate(rows_asked):
        report = _row_progress(on_progress, number, len(rows_asked), name, wanted)
        size = None if wanted is None else parse_size(wanted, whole=whole)
        mine = dataclasses.replace(settings, budget=size, on_progress=report)
        started = time.monotonic()
        met = size is not None and whole <= size
        try:
            # of a budget that is met without a plan there is nothing to search for
            row = search(none.NAME if met else name, wanted, mine)
            row.strategy = name
            rows.append(row)
        except MemcliError as error:
            problems.append(error)
            row = Row(name, wanted, size, None, None, None, None, None, None, 0.0, {}, False)
            row.problem = error.message
            rows.append(row)
        rows[-1].seconds = time.monotonic() - started
    if len(problems) == len(rows_asked) - (none.NAME in shown and none.NAME not in names):
        raise problems[0]
    mark_frontier(rows)
    return rows


def row_of(
    found: Found,
    strategy: str,
    budget: str | None,
    settings: Settings,
    environment: dict[str, str],
) -> Row:
    """The row of a plan; how long its search took is filled in by :func:`search_rows`.

    Args:
        found: the plan, with its cost.
        strategy: that found it.
        budget: that it was found for, as the user gives it.
        settings: of the search.
        environment: variables that the plan needs.
    """
    cost = found.cost
    return Row(
        strategy=strategy,
        budget=budget,
        budget_bytes=settings.budget,
        found_by=found.plan.strategy,
        planned_bytes=cost.pool_bytes,
        live_peak_bytes=cost.live_peak_bytes,
        recompute_flops=cost.recompute_flops,
        recompute_fraction=cost.recompute_fraction,
        time_fraction=cost.time_fraction,
        seconds=0.0,
        environment=environment,
        feasible=settings.budget is None or cost.pool_bytes <= settings.budget,
    )


def _row_progress(
    on_progress: Progress | None, number: int, total: int, name: str, budget: str | None
) -> Progress | None:
    """Progress of one row as a part of the whole."""
    if on_progress is None:
        return None
    what = name if budget is None else f"{name} within {budget}"

    def report(text: str, fraction: float | None = None) -> None:
        on_progress(f"{number + 1}/{total} {what}", (number + (fraction or 0.0)) / total)

    return report
