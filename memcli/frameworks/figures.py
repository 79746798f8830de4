"""What a network would take to train under other frameworks' buffers, in figures."""

from __future__ import annotations

from dataclasses import dataclass

from memcli.choices import ALL
from memcli.frameworks.models import MODELS, ModelFigure


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
