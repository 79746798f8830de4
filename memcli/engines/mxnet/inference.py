"""What a planned graph takes where nothing is trained.

Save barriers and marks cost nothing there; reserved blocks, which are sized for training, and
activation functions in pieces are in the forward pass and stay. A file says in its record what that
comes to, so that nobody runs inference, or trains the last layer alone, on a graph that takes more
than its original.
"""

from __future__ import annotations

from memcli.engines.mxnet.record import Analysis, analyze
from memcli.errors import MemcliError
from memcli.formats.symbol.file import SymbolFile
from memcli.graph.cost import DEFAULT_MATCH_RANGE
from memcli.results.planned import Inference

# A graph of more nodes takes MXNet seconds to bind once more.
_LARGEST = 50_000


def inference(
    source: SymbolFile, before: Analysis, planned: SymbolFile, after: Analysis, match_range: int
) -> Inference | None:
    """What both graphs take in inference, from MXNet's own graph of each, bound without gradients.

    None where the graph is too large to ask, or MXNet does not bind it so.

    Args:
        source: the file of the baseline.
        before: how the baseline trains, for its shapes.
        planned: the file with the plan.
        after: how the plan trains, for its shapes.
        match_range: the plan's.
    """
    if planned.node_count > _LARGEST:
        return None
    try:
        sizes = [
            _forward_bytes(source, before, DEFAULT_MATCH_RANGE),
            _forward_bytes(planned, after, match_range),
        ]
    except MemcliError:
        return None
    return Inference(*sizes)


def _forward_bytes(file: SymbolFile, analysis: Analysis, match_range: int) -> int:
    variables = [p for p, node in enumerate(file.nodes) if node.is_variable]
    forward = analyze(file.raw, analysis.request(), no_gradient=variables)
    return forward.model.evaluate(forward.model.none(), (match_range,)).pool_bytes
