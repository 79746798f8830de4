"""What it costs to run an operator again: FLOPs, a roofline, or times measured on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from memcli.engines.timing import argument_dtypes, measure_operator_seconds
from memcli.graph.roofline import roofline_seconds
from memcli.workflow.variants import Variant

Progress = Callable[[str, float | None], None]

COSTS = ("roofline", "flops", "measured")


def set_costs(
    graphs: Sequence[Variant], cost: str, device: str, on_progress: Progress | None = None
) -> list[str]:
    """Give all variants of a network the cost that searches minimize; notes on how it was had.

    Operators are timed on the first variant, the graph as saved; what a rewrite put in or changed
    is estimated by the roofline, scaled to what was timed.

    Raises:
        EngineFailed: MXNet or the device is missing, where operators are to be timed.
    """
    if cost == "flops":
        return []
    notes: list[str] = []
    known: dict[tuple[str, int], float] = {}
    scale = 1.0
    for number, variant in enumerate(graphs):
        graph, model = variant.analysis.graph, variant.analysis.model
        seconds = roofline_seconds(graph)
        if cost == "measured" and number == 0:
            times = measure_operator_seconds(
                graph, device, dtypes=argument_dtypes(variant.analysis), on_progress=on_progress
            )
            notes += times.notes
            both = times.measured & (seconds > 0)
            if both.any():
                scale = float(np.median(times.seconds[both] / seconds[both]))
            for v in range(graph.n_forward):
                inputs = int(graph.in_ptr[v + 1] - graph.in_ptr[v])
                known[graph.names[v], inputs] = float(times.seconds[v])
            seconds = times.seconds
        elif cost == "measured":
            seconds = np.array(
                [
                    known.get(
                        (graph.names[v], int(graph.in_ptr[v + 1] - graph.in_ptr[v])),
                        scale * seconds[v],
                    )
                    for v in range(graph.n_forward)
                ]
            )
        model.set_seconds(seconds)
    return notes
