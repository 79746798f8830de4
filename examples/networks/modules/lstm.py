"""An LSTM over a sequence with a cross entropy at each step, unrolled or fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import sizes
from networks.modules.base import Network


class LSTM(Network):
    """Unrolled, each step of each layer is a graph of small operators that a plan can tell apart.

    Fused, a layer is one operator over the whole sequence, and all losses are one.
    """

    def __init__(self, size: sizes.LSTM) -> None:
        super().__init__()
        self.size = size
        hidden = size.hidden
        self.embed = nn.Linear(size.inputs, hidden, bias=False)
        if size.fused:
            self.layers: nn.Module = nn.LSTM(hidden, hidden, size.layers, batch_first=True)
        else:
            self.layers = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(size.layers))
        self.head = nn.Linear(hidden, size.classes)

    def forward(self, data: Tensor, label: Tensor) -> Tensor:
        """``data``: N x steps x inputs; ``label``: N x steps. The sum of all losses."""
        if not self.size.fused:
            return self._unrolled(data, label)
        tops, _ = self.layers(self.embed(data))
        return F.cross_entropy(self.head(tops).flatten(0, 1), label.flatten(), reduction="sum")

    def _unrolled(self, data: Tensor, label: Tensor) -> Tensor:
        zeros = data.new_zeros(data.shape[0], self.size.hidden)
        states = [(zeros, zeros)] * self.size.layers
        losses = []
        for step, target in zip(data.unbind(1), label.unbind(1), strict=True):
            x = self.embed(step)
            for index, cell in enumerate(self.layers):  # type: ignore[arg-type]  # a ModuleList
                states[index] = cell(x, states[index])
                x = states[index][0]
            losses.append(F.cross_entropy(self.head(x), target, reduction="sum"))
        return torch.stack(losses).sum()
