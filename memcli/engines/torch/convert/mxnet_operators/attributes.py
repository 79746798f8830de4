"""Operator attributes as MXNet writes them: every value is text."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from memcli.engines.torch.convert.values import Unsupported

Ints = tuple[int, ...]

TYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
    "bfloat16": torch.bfloat16,
}
_NONE = ("None", "none", "")
# Old files write Python 2's long integers.
_PART = re.compile(r"None|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def type_of(name: str) -> torch.dtype:
    """PyTorch's type for MXNet's name of one.

    Raises:
        Unsupported: no such type.
    """
    if name not in TYPES:
        raise Unsupported(f"type {name!r}")
    return TYPES[name]


class Attributes:
    """A node's attributes; every question names the default that the operator registers."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table

    def has(self, key: str) -> bool:
        """Whether the attribute is there and is not ``None``."""
        return self._table.get(key, "None").strip() not in _NONE

    def text(self, key: str, default: str = "") -> str:
        """As it stands."""
        return self._table[key].strip() if self.has(key) else default

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false, in the ways that MXNet reads."""
        return self.text(key, str(default)).lower() in ("true", "1")

    def number(self, key: str, default: float) -> float:
        """A real number.

        Raises:
            Unsupported: it is none.
        """
        text = self.text(key, repr(default))
        try:
            return float(text)
        except ValueError:
            raise Unsupported(f"{key}={text}") from None

    def integer(self, key: str, default: int) -> int:
        """A whole number.

        Raises:
            Unsupported: it is none.
        """
        return int(self.number(key, default))

    def optional(self, key: str) -> int | None:
        """A whole number, or None."""
        return self.integer(key, 0) if self.has(key) else None

    def open_ints(self, key: str) -> tuple[int | None, ...]:
        """A tuple of whole numbers, any of which may be None."""
        parts = _PART.findall(self._table.get(key, ""))
        return tuple(None if part == "None" else int(float(part)) for part in parts)

    def ints(self, key: str, default: Ints = ()) -> Ints:
        """A tuple of whole numbers; a single number counts as a tuple of one."""
        if not self.has(key):
            return default
        return tuple(0 if part is None else part for part in self.open_ints(key))

    def numbers(self, key: str, default: tuple[float, ...] = ()) -> tuple[float, ...]:
        """A tuple of real numbers."""
        if not self.has(key):
            return default
        return tuple(float(part) for part in _PART.findall(self._table[key]))

    def dtype(self, key: str = "dtype", default: str = "float32") -> torch.dtype:
        """A type by its name.

        Raises:
            Unsupported: no such type.
        """
        return type_of(self.text(key, default))
