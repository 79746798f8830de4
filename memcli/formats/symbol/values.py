"""Numbers and tuples of numbers in a symbol's attributes, whose values are all text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

# Elements of one tensor: more is a slip or an attack, not a network.
LARGEST_TENSOR = 1 << 40

_NUMBER = r"(?:None|[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?[lL]?)"
_TUPLE = re.compile(rf"\s*[(\[]?\s*(?:{_NUMBER}\s*(?:,\s*{_NUMBER}\s*)*,?)?\s*[)\]]?\s*", re.ASCII)
_PART = re.compile(_NUMBER, re.ASCII)
_LONGEST = 4096  # characters of a tuple
_LARGEST = 1 << 63


def tuple_of(text: str | None) -> tuple[int | None, ...] | None:
    """``(3, 3)``, ``[3,3]`` or ``3`` as whole numbers; None where the text is anything else.

    Only what MXNet itself writes is read: no expression of Python's is evaluated.
    """
    if text is None or len(text) > _LONGEST or not _TUPLE.fullmatch(text):
        return None
    found: list[int | None] = []
    for part in _PART.findall(text):
        if part == "None":
            found.append(None)
            continue
        digits = part.rstrip("lL")
        number = float(digits)
        if not math.isfinite(number) or abs(number) > _LARGEST:
            return None
        found.append(int(digits) if re.fullmatch("[-+]?[0-9]+", digits) else int(number))
    return None if text.strip() == "None" else tuple(found)


def impossible(sizes: Iterable[int | None]) -> bool:
    """Whether no tensor has this shape; 0 and below, or None, leaves a size open."""
    return math.prod(max(1, size or 0) for size in sizes) > LARGEST_TENSOR
