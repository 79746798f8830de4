"""Whether a plan keeps every bit on oneDNN's kernels, by a training step on MXNet itself.

On MXNet's plain kernels plans are exact by construction. oneDNN chooses layouts by what surrounds
an operator, and may round by the layout: what it makes of a plan is only seen by running it. Where
it has no layouts to choose, recomputation repeats the same kernels on the same layouts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from memcli.engines.live_memory import available_bytes
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.rewrites.gradients import without_gradient
from memcli.engines.mxnet.rewrites.reserved_blocks import reservation, scaled_reservation
from memcli.engines.mxnet.runs import (
    USABLE,
    GraphRun,
    RunConditions,
    compare_sides,
    train_sides,
)
from memcli.engines.mxnet.step_size import batch_of, needed_bytes
from memcli.engines.mxnet.variables import onednn_chooses_layouts
from memcli.engines.verification import scaled_request
from memcli.errors import MemcliError
from memcli.formats.symbol.file import SymbolFile
from memcli.request import Progress, ShapeRequest
from memcli.results.verified import BASELINE, PLANNED, all_equal
from memcli.units import format_size

# Bits are compared at this batch, or at the plan's own where that is smaller.
_BATCH = 2


def may_change_layouts(analysis: Analysis, environment: str, kernels: str) -> bool:
    """Whether training on the CPU may use oneDNN under a plan, with layouts that it may change.

    Args:
        analysis: of the planned graph.
        environment: ``best`` where the plan names variables, ``default`` where it names none.
        kernels: that run the plan: ``plain``, or ``any`` where it needs oneDNN or cuDNN.
    """
    operators = {kind.op for kind in analysis.graph.kinds}
    return onednn_chooses_layouts(operators) and (kernels == "any" or environment == "default")


def problem_on_onednn(
    source: SymbolFile,
    planned: SymbolFile,
    request: ShapeRequest,
    batch: int,
    on_progress: Progress | None = None,
) -> str:
    """What is wrong with a plan on oneDNN's kernels; '' where every bit is equal.

    Args:
        source: the graph without the plan.
        planned: the graph with it.
        request: shapes and types that the plan is for.
        batch: the leading dimension of its first input.
        on_progress: told what is being done.
    """
    small = min(batch, _BATCH)
    try:
        sides = []
        for name, file in ((BASELINE, source), (PLANNED, planned)):
            if reservation(file.raw) and small != batch:
                file = file.with_content(scaled_reservation(file.raw, small, batch))
            analysis = analyze(
                file.raw,
                scaled_request(request, batch, small),
                no_gradient=without_gradient(file.raw),
                on_progress=on_progress,
            )
            if batch_of(analysis) != small:
                return f"the graph does not take batch {small}, at which it would be run"
            sides.append(GraphRun(name, file, analysis))
        free = int(available_bytes() * USABLE)
        needed = needed_bytes(sides[0].analysis)
        if needed > free:
            return (
                f"a step at batch {small} takes {format_size(needed)}, and {format_size(free)} "
                "are free"
            )
        under = RunConditions("cpu", seed=0, steps=0, onednn=True, memory_limit=free)
        with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
            results = train_sides(sides, under, Path(folder), on_progress)
            compared = compare_sides(Path(folder), under, lambda kind, index: f"{kind} {index}")
    except MemcliError as error:
        return error.message
    if all_equal(compared.values()):
        return ""
    if not all(result["repeatable"] for result in results):
        return ""  # the graph differs from itself
    part = compared["gradients"]
    return f"{part.compared - part.bit_equal} of {part.compared} gradients differ at batch {small}"
