"""What a network would take to train under other frameworks' buffers, for ``memcli inspect``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memcli.engines.mxnet.record import Analysis
from memcli.engines.torch.memory.model import storage_steps
from memcli.engines.torch.record import TorchAnalysis
from memcli.frameworks.behaviour import behaviour_of
from memcli.frameworks.figures import ModelRequest, UnderModels
from memcli.frameworks.models import model_figures
from memcli.graph.training import TrainingGraph


def under_models_in_torch(analysis: TorchAnalysis, request: ModelRequest) -> UnderModels | None:
    """The figures for a graph that PyTorch recorded; None where no models are asked for."""
    if not request.names:
        return None
    graph, trace = analysis.graph, analysis.trace
    exact = analysis.model.exact
    saved = np.bincount(
        storage_steps(trace)[trace.auxiliary],
        trace.storage_bytes[trace.auxiliary],
        trace.n_steps,
    ).astype(np.int64)
    figures = model_figures(
        graph,
        request.chosen,
        exact.timeline(exact.none()).backward >= 0,
        np.where(_normalises(graph), saved, 0),
    )
    return UnderModels(
        figures, trace.parameter_bytes, trace.state_bytes, trace.input_bytes, request.overhead
    )


def under_models_in_mxnet(analysis: Analysis, request: ModelRequest) -> UnderModels | None:
    """The figures for an MXNet symbol; None where no models are asked for."""
    if not request.names:
        return None
    graph = analysis.graph
    hidden = np.where(graph.visible == 0, graph.entry_bytes, 0)[: int(graph.first[graph.n_forward])]
    saved = np.bincount(graph.entry_node[: len(hidden)], hidden, graph.n_forward).astype(np.int64)
    passes = np.zeros(graph.n_forward, bool)
    passes[graph.owner[graph.owner >= 0]] = True
    for v in range(graph.n_forward):  # through operators whose gradient needs no node
        passes[v] |= passes[graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]].any()
    figures = model_figures(graph, request.chosen, passes, np.where(_normalises(graph), saved, 0))
    inputs = [a for a in analysis.arguments if a["role"] != "parameter"]
    sizes = [int(np.prod(a["shape"])) * np.dtype(a["dtype"]).itemsize for a in inputs]
    return UnderModels(
        figures, analysis.parameter_bytes, analysis.state_bytes, sum(sizes), request.overhead
    )


def _normalises(graph: TrainingGraph) -> NDArray[np.bool_]:
    """Over forward nodes: whether it is a BatchNorm."""
    return np.array(
        [
            not graph.variable[v]
            and behaviour_of(graph.op(v), graph.kinds[graph.kind[v]].attrs).normalises
            for v in range(graph.n_forward)
        ],
        bool,
    )
