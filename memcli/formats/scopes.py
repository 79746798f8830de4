"""Where in the user's model each node of a file stands: the path of modules or layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["torch", "tensorflow", "other"]
Path = tuple[str, ...]


@dataclass(frozen=True)
class Scopes:
    """``paths``: of each node of the file, in order; empty where nothing is known of it.

    ``called``: paths of modules that are called themselves (a list of modules is not).
    ``sequences``: those that call their children one after the other, as far as the file says so.
    """

    origin: Origin
    paths: list[Path]
    called: frozenset[Path]
    sequences: frozenset[Path]


def dotted(name: str) -> Path:
    """The parts of a module's name; what PyTorch adds for a second call (``@1``) is left out."""
    return tuple(part for part in name.partition("@")[0].split(".") if part)
