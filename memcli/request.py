"""What a user asks of a command: shapes, where it trains, and how progress is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

# Told what is being done, and which part of it is done, 0 to 1; None where that is not known.
Progress = Callable[[str, "float | None"], None]


@dataclass
class ShapeRequest:
    """What the user says of shapes: by name, for the one free input, the batch, the dtypes."""

    shapes: dict[str, list[int]] = field(default_factory=dict)
    unnamed: list[int] | None = None
    batch: int | None = None
    dtype: str | None = None  # of the inputs; None: float32
    dtypes: dict[str, str] = field(default_factory=dict)  # of single arguments, before dtype
    # Globs of parameters that are not trained. With any, the inputs have no gradient either.
    frozen: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()  # the user's Python files, run first: they register operators

    @property
    def asks_shapes(self) -> bool:
        """Whether it says anything of shapes or types."""
        known = self.shapes or self.dtypes or self.unnamed or self.batch or self.dtype
        return bool(known)


@dataclass(frozen=True)
class Devices:
    """What trains: the CPU, or cards.

    Args:
        gpus: numbers of the cards, none for the CPU. On several there is a worker on each.
        workers: how many train together on the CPU, each with its part of the batch.
    """

    gpus: tuple[int, ...] = ()
    workers: int = 1

    @property
    def kind(self) -> str:
        """``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"

    @property
    def first(self) -> str:
        """``gpu:N`` or ``cpu``: where operators are timed."""
        return f"gpu:{self.gpus[0]}" if self.gpus else "cpu"

    @property
    def each(self) -> list[str]:
        """A device for each worker: the cards, or the CPU as often as there are workers."""
        return [f"gpu:{number}" for number in self.gpus] or ["cpu"] * self.workers

    @property
    def count(self) -> int:
        """How many workers train together."""
        return len(self.each)

    @property
    def gpu(self) -> int | None:
        """The first card's number; None for the CPU."""
        return self.gpus[0] if self.gpus else None


CPU = Devices()
