"""Sizes as people write and read them. Inside memcli every size is an ``int`` of bytes."""

from __future__ import annotations

import math
import re

from memcli.errors import BadInput

MIB = 1 << 20
_FACTORS = {
    "b": 1,
    # as GNU's tools have it: a letter alone is a power of 1024
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*|%)\s*\Z")
_ZERO = re.compile(r"\s*0+(?:\.0+)?\s*[a-zA-Z]*\s*\Z")
_LONGEST = 40  # of what is repeated of the user's text


def parse_size(text: str, *, whole: int | None = None) -> int:
    """The bytes that a text means: ``6GiB``, ``6G`` (the same), ``800MB`` or ``80%``.

    Args:
        text: as the user gives it.
        whole: bytes that a percentage is of; None: percentages are refused.

    Raises:
        BadInput: not a size, without a unit, not positive, or a percentage with nothing to be part
            of.
    """
    match = _SIZE.match(text)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if not match:
        raise BadInput(f"{text!r} is not a size", "write it like 6GiB, 800MB or 80%")
    number, unit = float(match[1]), match[2].lower()
    if not unit:
        raise BadInput(
            f"'{text}' is a size without a unit",
            f"write {match[1]}GiB (or {match[1]}G), {match[1]}MB, or {match[1]}B for bytes",
        )
    if unit == "%":
        if whole is None:
            raise BadInput(f"'{text}' is a percentage, but of what is not known here")
        size = number / 100 * whole
    elif unit in _FACTORS:
        size = number * _FACTORS[unit]
    else:
        raise BadInput(
            f"'{text}' has an unknown unit",
            "units: B, KB, MB, GB (powers of 1000), KiB, MiB, GiB or K, M, G (of 1024), %",
        )
    if size < 1:
        raise BadInput(f"'{text}' is less than one byte")
    if not math.isfinite(size):
        raise BadInput(f"'{text}' is more than any memory")
    return int(size)


def parse_size_or_zero(text: str) -> int:
    """As :func:`parse_size`; nothing at all may be meant as well, with or without a unit."""
    return 0 if _ZERO.match(text) else parse_size(text)


def format_size(size: int | float) -> str:
    """``1234567890`` as ``1177.4 MiB``; MiB throughout, so that a column compares at sight."""
    if abs(size) < 1024:
        return f"{int(size)} B"
    if abs(size) < 0.1 * MIB:
        return f"{size / 1024:.1f} KiB"
    return f"{size / MIB:,.1f} MiB"


def distinct_sizes(*sizes: int) -> list[str]:
    """Sizes for one message; all in bytes where two that differ would look alike."""
    shown = [format_size(size) for size in sizes]
    if len(set(shown)) < len(set(sizes)):
        return [f"{size:,} bytes" for size in sizes]
    return shown
