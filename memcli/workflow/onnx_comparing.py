"""All strategies, and several budgets, on one recorded step of an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memcli.engines.analysis import ShapeRequest
from memcli.formats.detect import Model
from memcli.memory.torch_bound import torch_bound
from memcli.planners.base import Search, Settings
from memcli.planners.registry import STRATEGIES
from memcli.workflow.comparing import Comparison, Row, check_budgets, row_of, search_rows
from memcli.workflow.costs import Costs
from memcli.workflow.onnx_planning import (
    analyze_file,
    kind_of,
    limited,
    read_for_training,
    shape_notes,
)

Progress = Callable[[str, float | None], None]


def compare_onnx(
    model: Model,
    request: ShapeRequest,
    settings: Settings,
    *,
    strategies: Sequence[str] = (),
    budgets: Sequence[str] = (),
    device: str = "cpu",
    training: bool = False,
    on_progress: Progress | None = None,
) -> Comparison:
    """``memcli compare MODEL`` of an ONNX file; see :func:`memcli.workflow.comparing.compare`.

    ``device``: ``cpu`` or ``gpu:N``, which saves other things; no card is needed for it, unless
    operators are to be timed on it. ``training``: put BatchNorm and Dropout back into training mode
    first.

    Raises:
        BadInput: bad file, shapes or budgets.
        EngineFailed: PyTorch or the card is missing, or it crashed.
        MemcliError: none of the strategies could be run; the first one's reason.
    """
    check_budgets(budgets)
    notes: list[str] = []
    file, original, restored = read_for_training(model, training, request, notes)
    kind = kind_of(device)
    costs = Costs(settings.cost, device, on_progress)
    analysis = analyze_file(file, request, kind, on_progress)
    notes += shape_notes(analysis)
    if on_progress:
        on_progress("compiling the memory model (first run only)", None)
    planner = analysis.model
    costs.give(analysis)
    notes += costs.notes
    baseline = planner.evaluate(planner.none())

    def search(strategy: str, budget: str | None, mine: Settings) -> Row:
        searched = Search(analysis.search_space(), limited(mine))
        STRATEGIES[strategy].run(searched)
        return row_of(searched.answer(), strategy, budget, mine, {})

    rows = search_rows(search, strategies, budgets, baseline.pool_bytes, settings, on_progress)
    sizes = [row.planned_bytes for row in rows if row.planned_bytes is not None]
    return Comparison(
        source=file,
        sha256=original[1],
        analysis=analysis,
        baseline=baseline,
        lower_bound=torch_bound(planner.exact, min(sizes, default=baseline.pool_bytes)).bytes,
        rows=rows,
        notes=notes,
        device=kind,
        cost_of=settings.cost,
        restored=restored,
    )
