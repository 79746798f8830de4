"""What a network would take to train under other frameworks' buffers, for ``memcli inspect``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.engines.analysis import Analysis
from memcli.engines.torch_analysis import TorchAnalysis
from memcli.graph.training import TrainingGraph
from memcli.memory.modules.behaviour import behaviour_of
from memcli.memory.modules.models import MODELS, ModelFigure, model_figures
from memcli.memory.torch_model import storage_steps

ALL = "all"


@dataclass(frozen=True)
class ModelRequest:
    """Which models to show, by name, and bytes that the user adds to each of them."""

    names: tuple[str, ...] = ()
    overhead: int = 0

    @property
    def chosen(self) -> list[str]:
        """Each model once; those of ``all`` in their own order."""
        return list(MODELS) if ALL in self.names else list(dict.fromkeys(self.names))


NO_MODELS = ModelRequest()


@dataclass(frozen=True)
class UnderModels:
    """What each model says, and what comes on top of it whatever the model; bytes.

    ``overhead``: what the user adds for what no model knows (CUDA's context, libraries,
    convolutions' work space).
    """

    figures: list[ModelFigure]
    parameter_bytes: int
    state_bytes: int
    input_bytes: int
    overhead: int

    @property
    def beside(self) -> int:
        """All that is not buffers: parameters, their gradients, states, inputs, overhead."""
        return 2 * self.parameter_bytes + self.state_bytes + self.input_bytes + self.overhead

    @property
    def notes(self) -> list[str]:
        """Where a scheme would not have been sound."""
        return [
            f"{f.name}: {f.moved} buffers that its scheme would share are in use at the same time "
            "in this network; they are counted with memory of their own"
            for f in self.figures
            if f.moved
        ]


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
        graph, request.chosen, exact.timeline(exact.none()).backward >= 0,
        np.where(_normalises(graph), saved, 0),
    )  # fmt: skip
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
    figures = model_figures(
        graph, request.chosen, passes, np.where(_normalises(graph), saved, 0)
    )
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
