"""All strategies, and several budgets, on one graph: analyzed once, a row for each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memcli.engines.analysis import Analysis, ShapeRequest
from memcli.engines.torch_analysis import TorchAnalysis
from memcli.errors import MemcliError
from memcli.formats.detect import Model
from memcli.formats.mxnet_symbol import SymbolFile
from memcli.formats.onnx_file import OnnxFile
from memcli.memory.bounds import plan_bound
from memcli.memory.mxnet_model import Cost
from memcli.planners import none
from memcli.planners.base import Found, Settings
from memcli.planners.over_forms import search_variants
from memcli.planners.registry import GENERAL
from memcli.units import parse_size
from memcli.workflow.costs import set_costs
from memcli.workflow.planning import (
    environment_of,
    kernels_of,
    read_symbol,
    shape_notes,
    unplanned,
    without_needless_variables,
)
from memcli.workflow.reserving import allow_reservation
from memcli.workflow.variants import Variant, analyze_variants

Progress = Callable[[str, float | None], None]

# Parts of the unplanned memory, from what costs little to what few graphs reach.
DEFAULT_BUDGETS = ("80%", "60%", "50%", "40%", "30%", "25%", "20%")
_BUDGET_STRATEGY = "auto"


@dataclass
class Row:
    """What one search found. Sizes in bytes, ``seconds`` of the search alone.

    Where a budget is not met (``feasible`` is false) the figures are those of the plan that came
    nearest to it. They are None where the strategy could not be run at all: ``problem`` says why.
    """

    strategy: str
    budget: str | None  # as asked for
    budget_bytes: int | None
    found_by: str | None
    planned_bytes: int | None
    live_peak_bytes: int | None
    recompute_flops: float | None
    recompute_fraction: float | None  # of one forward pass
    time_fraction: float | None  # the same in time, by the cost that searches minimize
    seconds: float
    environment: dict[str, str]
    feasible: bool
    on_frontier: bool = False
    problem: str = ""

    @property
    def label(self) -> str:
        """The row's name: the strategy, and its budget where it has one."""
        return self.strategy if self.budget is None else f"{self.strategy} ≤{self.budget}"


@dataclass
class Comparison:
    """The rows, and the graph that all of them are about. Sizes in bytes."""

    source: SymbolFile | OnnxFile
    sha256: str  # of the graph without any plan
    analysis: Analysis | TorchAnalysis
    baseline: Cost
    lower_bound: int
    rows: list[Row]
    notes: list[str]
    device: str = ""  # that PyTorch's figures are of: cpu or cuda
    restored: list[str] = field(default_factory=list)  # what --as-training did
    cost_of: str = "roofline"  # what stands for the cost of an operator: see Settings.cost


def compare(
    model: Model,
    request: ShapeRequest,
    settings: Settings,
    *,
    strategies: Sequence[str] = (),
    budgets: Sequence[str] = (),
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> Comparison:
    """Search with every strategy, and within every budget, on one analysis of ``model``.

    ``strategies``: names, by default all that are for any graph. ``budgets``: texts such as
    ``6GiB`` or ``50%`` (of the unplanned graph), by default a ladder of percentages; they are
    searched for by ``auto``, or by the first of ``strategies`` where ``auto`` is not among them.
    The time limit of ``settings`` is of each row. ``device``: ``cpu`` or ``gpu:N``, where operators
    are timed if ``settings.cost`` says so.

    Raises:
        BadInput: bad file, shapes or budgets.
        EngineFailed: MXNet is missing or crashed.
        MemcliError: none of the strategies could be run; the first one's reason.
    """
    check_budgets(budgets)
    notes: list[str] = []
    given = read_symbol(model)
    earlier = given.plan()
    source = unplanned(given, notes)
    graphs = analyze_variants(
        source, request, rewrite=settings.rewrite, environment=settings.environment,
        kernels=settings.kernels, on_progress=on_progress,
    )  # fmt: skip
    analysis = graphs[0].analysis
    notes += shape_notes(analysis)
    if on_progress:
        on_progress("compiling the memory model (first run only)", None)
    notes += set_costs(graphs, settings.cost, device, on_progress)
    baseline = analysis.model.evaluate(analysis.model.none())

    if settings.rewrite:
        for graph in graphs:
            for each in filter(None, (graph.analysis, graph.without_variables)):
                allow_reservation(each)

    def search(strategy: str, budget: str | None, mine: Settings) -> Row:
        return _search(graphs, strategy, budget, mine)

    rows = search_rows(search, strategies, budgets, baseline.pool_bytes, settings, on_progress)
    return Comparison(
        source=source,
        sha256=earlier.original_sha256 if earlier else given.sha256,
        analysis=analysis,
        baseline=baseline,
        lower_bound=min(plan_bound(v.analysis.graph, v.analysis.model, baseline) for v in graphs),
        rows=rows,
        notes=notes,
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

    ``search``: of a strategy's name, the budget as asked for, and settings. ``whole``: bytes of
    the unplanned graph, which percentages are of. For the rest see :func:`compare`.

    Raises:
        MemcliError: none of the strategies could be run; the first one's reason.
    """
    names = list(dict.fromkeys(strategies)) or list(GENERAL)
    within = _BUDGET_STRATEGY if _BUDGET_STRATEGY in names else names[0]
    # the frontier begins at the graph as it is
    shown = names if none.NAME in names else [none.NAME, *names]
    asked: list[tuple[str, str | None]] = [(name, None) for name in shown]
    asked += [(within, text) for text in dict.fromkeys(budgets or DEFAULT_BUDGETS)]
    rows: list[Row] = []
    problems: list[MemcliError] = []
    for number, (name, wanted) in enumerate(asked):
        report = _row_progress(on_progress, number, len(asked), name, wanted)
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
    if len(problems) == len(asked) - (none.NAME in shown and none.NAME not in names):
        raise problems[0]
    mark_frontier(rows)
    return rows


def _search(
    graphs: Sequence[Variant], strategy: str, budget: str | None, settings: Settings
) -> Row:
    # without a plan the network is as it came
    forms = graphs[:1] if strategy == none.NAME else graphs
    spaces = [v.analysis.search_space() for v in forms]
    found, chosen, _ = search_variants(spaces, strategy, settings)
    variant, found = without_needless_variables(graphs[chosen], found, settings.budget)
    kernels = kernels_of(found.plan, variant.analysis)
    environment = environment_of(found.plan, variant.analysis, settings.environment, kernels)
    return row_of(found, strategy, budget, settings, environment)


def row_of(
    found: Found,
    strategy: str,
    budget: str | None,
    settings: Settings,
    environment: dict[str, str],
) -> Row:
    """The row of a plan; how long its search took is filled in by :func:`search_rows`."""
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


def mark_frontier(rows: Sequence[Row]) -> None:
    """Mark the feasible rows that no other feasible row dominates.

    One row dominates another where it is no worse in memory and in what is recomputed, by the cost
    that searches minimize, and better in one of them; rows that are equal in both are marked alike.
    """
    points = [_point(row) if row.feasible else None for row in rows]
    real = [point for point in points if point is not None]
    for row, mine in zip(rows, points, strict=True):
        row.on_frontier = mine is not None and not any(
            other[0] <= mine[0] and other[1] <= mine[1] and other != mine for other in real
        )


def _point(row: Row) -> tuple[int, float] | None:
    if row.planned_bytes is None or row.time_fraction is None:
        return None
    return row.planned_bytes, row.time_fraction
