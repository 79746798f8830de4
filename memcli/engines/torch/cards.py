"""What of a card's hardware says how much memory PyTorch's operators take on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Card:
    """``processors``: streaming multiprocessors; ``threads``: the most that each runs at once;
    ``capability``: major and minor compute capability."""

    name: str
    capability: tuple[int, int]
    processors: int
    threads: int


# What is taken where nobody says which card it is.
USUAL = Card("NVIDIA H200", (9, 0), 132, 2048)


def card_here() -> Card:
    """The card that PyTorch sees first; a usual one where it sees none."""
    if not torch.cuda.is_available():
        return USUAL
    found = torch.cuda.get_device_properties(0)
    return Card(
        found.name,
        (found.major, found.minor),
        found.multi_processor_count,
        found.max_threads_per_multi_processor,
    )
