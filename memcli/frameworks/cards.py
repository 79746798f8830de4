"""What some graphics cards hold, so that a plan can be made for a card that is not here.

Sizes are the totals that ``nvidia-smi`` shows, which is what CUDA can give out; advertised
gigabytes are other units. Where drivers show different totals the smaller one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcli.units import MIB

# Issue modal-labs/modal-client#2797 lists them side by side.
_LISTED = "modal-labs/modal-client#2797"


@dataclass(frozen=True)
class Card:
    """A kind of card.

    Args:
        title: as its maker calls it.
        bytes: its memory.
        source: a public page that shows the figure.
    """

    title: str
    bytes: int
    source: str


CARDS = {
    "rtx3060": Card("RTX 3060", 12_288 * MIB, "geerlingguy/raspberry-pi-pcie-devices#790"),
    "rtx3090": Card("RTX 3090", 24_576 * MIB, "noonghunna/club-3090#390"),
    "rtx4090": Card("RTX 4090", 24_564 * MIB, "RLinf/RLinf#255"),
    "rtx5090": Card("RTX 5090", 32_607 * MIB, "noonghunna/club-3090#1229"),
    "titan-rtx": Card("Titan RTX", 24_219 * MIB, "lambdal/lambda-tensorflow-benchmark#11"),
    "t4": Card("T4", 15_360 * MIB, _LISTED),
    "l4": Card("L4", 23_034 * MIB, _LISTED),
    "l40s": Card("L40S", 46_068 * MIB, _LISTED),
    "a10": Card("A10", 23_028 * MIB, _LISTED),
    "a100-40": Card("A100 40GB", 40_536 * MIB, "nanopool/phoenix-miner#17"),
    "a100-80": Card("A100 80GB", 81_920 * MIB, _LISTED),
    "h100": Card("H100 80GB", 81_559 * MIB, _LISTED),
}
