"""Memory models by name: what a network takes to train under another framework's buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.choices import MEMORY_MODELS
from memcli.frameworks.buffers import COPIES, GRADIENTS, OUTPUTS, Buffer, module_buffers
from memcli.frameworks.sharing import Storage, by_liveness, by_type, unshared
from memcli.graph.training import Ints, TrainingGraph


@dataclass(frozen=True)
class MemoryModel:
    """Who owns which buffer: as modules have them, or joined and recomputed, and what is shared."""

    share: Callable[[list[Buffer]], tuple[list[Storage], int]]
    joined: bool = False
    rerun: bool = False


@dataclass(frozen=True)
class ModelFigure:
    """What a memory model says of a network, bytes.

    ``copies``: parts of gradients that had to be copied, masks, what BatchNorm saves. ``moved``:
    buffers that could not be where the scheme has them, because two would be in use at once.
    """

    name: str
    description: str
    outputs: int
    gradients: int
    copies: int
    moved: int

    @property
    def total(self) -> int:
        """All buffers; no parameters."""
        return self.outputs + self.gradients + self.copies


_MODELS = {
    "torch7-0": MemoryModel(lambda b: (unshared(b), 0)),
    "torch7-1": MemoryModel(lambda b: (by_liveness(b), 0)),
    "torch7-2": MemoryModel(by_type),
    "torch7-3": MemoryModel(by_type, joined=True),
    "torch7-4": MemoryModel(by_type, joined=True, rerun=True),
}
MODELS = {name: _MODELS[name] for name in MEMORY_MODELS}


def model_figures(
    graph: TrainingGraph,
    names: Sequence[str],
    with_gradient: NDArray[np.bool_],
    statistics: Ints,
) -> list[ModelFigure]:
    """What each of the memory models says of a graph; arguments as of :func:`module_buffers`."""
    result = []
    for name in names:
        model = MODELS[name]
        buffers = module_buffers(
            graph, with_gradient, statistics, joined=model.joined, rerun=model.rerun
        )
        storages, moved = model.share(buffers)
        parts = dict.fromkeys((OUTPUTS, GRADIENTS, COPIES), 0)
        for storage in storages:
            parts[storage.part] += storage.size
        result.append(
            ModelFigure(
                name, MEMORY_MODELS[name], parts[OUTPUTS], parts[GRADIENTS], parts[COPIES], moved
            )
        )
    return result
