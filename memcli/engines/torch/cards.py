"""What of a card's hardware says how much memory PyTorch's operators take on it.

Streaming multiprocessors, and the threads that each runs at once, say into how many blocks a
reduction is cut; the compute capability, how much work space cuBLAS takes. From NVIDIA's data
sheets and the table of compute capabilities in the CUDA C++ Programming Guide.
"""

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


_CARDS = [
    Card("H200", (9, 0), 132, 2048),
    Card("H100 PCIe", (9, 0), 114, 2048),
    Card("H100", (9, 0), 132, 2048),
    Card("A100", (8, 0), 108, 2048),
    Card("A30", (8, 0), 56, 2048),
    Card("V100", (7, 0), 80, 2048),
    Card("T4", (7, 5), 40, 1024),
    Card("L40S", (8, 9), 142, 1536),
    Card("L4", (8, 9), 58, 1536),
    Card("A10G", (8, 6), 80, 1536),
    Card("A10", (8, 6), 72, 1536),
    Card("A40", (8, 6), 84, 1536),
    Card("RTX A6000", (8, 6), 84, 1536),
    Card("RTX 3060", (8, 6), 28, 1536),
    Card("RTX 3080", (8, 6), 68, 1536),
    Card("RTX 3090", (8, 6), 82, 1536),
    Card("RTX 4080", (8, 9), 76, 1536),
    Card("RTX 4090", (8, 9), 128, 1536),
]
# What is taken where nobody says which card it is.
USUAL = _CARDS[0]


def card_named(name: str | None) -> Card:
    """The card of a name such as ``NVIDIA A100-SXM4-80GB``; a usual one where it is not known."""
    words = (name or "").replace("-", " ").split()
    for card in _CARDS:
        if set(card.name.split()) <= set(words):
            return card
    return USUAL


def card_here() -> Card:
    """The card that PyTorch sees first; a usual one where it sees none.

    Asks CUDA, which a process that is forked later must not have done.
    """
    if not torch.cuda.is_available():
        return USUAL
    found = torch.cuda.get_device_properties(0)
    return Card(
        found.name,
        (found.major, found.minor),
        found.multi_processor_count,
        found.max_threads_per_multi_processor,
    )
