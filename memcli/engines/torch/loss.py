"""The loss that a graph trains under."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memcli.engines.torch.geometry import tensors_in
from memcli.engines.torch.tracking import total


def training_loss(outputs: Any) -> Tensor:
    """The sum of the graph's own losses, its outputs of one number; else of all its outputs.

    Outputs beside a loss (logits, the last states) are not trained on, as in the user's script.

    Raises:
        ValueError: no output depends on anything that requires a gradient.
    """
    losses = [t for t in tensors_in(outputs) if t.requires_grad and t.numel() == 1 and t.dim() <= 1]
    return total(losses or outputs)
