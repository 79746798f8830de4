"""The classic threshold pass and its search over thresholds.

Source: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", arXiv
1604.06174, section 4.3 (Algorithm 3 without budget search over ``b`` replaced by a grid), in the
form of the well-known MXNet planner: feature maps are summed up along the graph; at the first
marked cut after more than ``threshold`` bytes a cut is kept and the sum starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_PARAMETER_ENDINGS = ("weight", "bias", "beta", "gamma")


@dataclass
class ClassicRow:
    """One internal output in the order of the graph, as the classic pass sees it."""

    position: int
    bytes: int  # counted as 4 bytes an element
    is_parameter: bool
    stage: str | None  # its ``mirror_stage`` mark


@dataclass
class ClassicPass:
    """One threshold's outcome: positions to recompute, and the sizes that steer the search."""

    mark: dict[int, bool]
    kept: list[list[int]]  # positions of the cuts that are kept, several nodes for one cut
    max_size: int  # bytes of the largest stage that a cut closes
    save_size: int  # bytes of all kept cuts


def is_parameter_name(name: str) -> bool:
    """Whether the classic search takes a variable for a parameter: by the end of its name."""
    return name != "data" and name.endswith(_PARAMETER_ENDINGS)


def classic_pass(rows: Sequence[ClassicRow], threshold: int) -> ClassicPass:
    """Marks for one ``threshold`` in bytes.

    A mark ``True`` is a possible cut of its own; several nodes in a row with one other mark are
    one cut, kept or recomputed together.

    Args:
        rows: in depth-first order of the graph.
        threshold: bytes that are summed up before a cut is kept.
    """
    mark: dict[int, bool] = {}
    kept: list[list[int]] = []
    local = max_size = save = 0
    last_stage = ""
    keeping = False
    for row in rows:
        if row.is_parameter:
            continue
        local += row.bytes
        mark[row.position] = True
        if row.stage is None:
            continue
        if row.stage == "True" or row.stage != last_stage:
            keeping = local > threshold
            if keeping:
                save += row.bytes
                max_size = max(max_size, local)
                local = 0
                mark[row.position] = False
                kept.append([row.position])
            last_stage = row.stage
        elif keeping:
            save += row.bytes
            mark[row.position] = False
            if row.position not in kept[-1]:
                kept[-1].append(row.position)
    return ClassicPass(mark, kept, max_size, save)


def classic_thresholds(outcome: Callable[[int], tuple[int, int]], trials: int) -> Iterator[int]:
    """The thresholds, in MB, that the classic search tries, in its order.

    Three steps of ``sqrt(saved * largest / 2)`` from 0, then ``trials`` even steps from the
    smallest largest stage up to ``sqrt(2)`` times the last guess.

    Args:
        outcome: of a threshold in MB, ``save_size`` and ``max_size`` in bytes of its pass.
        trials: how many even steps.
    """
    threshold = 0
    smallest: int | None = None
    for _ in range(3):
        yield threshold
        save, largest = (size >> 20 for size in outcome(threshold))
        if smallest is None or largest < smallest:
            smallest = largest
        threshold = int(math.sqrt(save * largest / 2))
    assert smallest is not None
    if trials < 1:
        return
    step = int((threshold * math.sqrt(2) - smallest) / trials)
    if step > 0:
        for k in range(trials):
            yield smallest + step * (k + 1)
