"""One stage of a plan, as tables show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stage:
    """One stage of a plan. Sizes in bytes.

    ``forward_bytes`` and ``peak_bytes``: the pool at the end of the stage's forward and of its
    backward. ``live_forward_bytes`` and ``live_backward_bytes``: of the tensors alive, the most
    while they run; None where the former are that already (PyTorch).
    """

    index: int
    first: str
    last: str
    operators: int
    kept_bytes: int
    forward_bytes: int
    peak_bytes: int
    recompute_flops: float
    live_forward_bytes: int | None = None
    live_backward_bytes: int | None = None
