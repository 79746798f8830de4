"""Sizes as people write and read them. Inside memcli every size is an ``int`` of bytes."""

from __future__ import annotations

import math
import re

from memcli.errors import BadInput

MIB = 1 << 20
_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*\Z")


def parse_size(text: str, *, whole: int | None = None) -> int:
    """Bytes meant by ``6GiB``, ``800MB`` or ``80%`` (of ``whole`` bytes).

    Raises:
        BadInput: not a size, not positive, or a percentage with nothing to be part of.
    """
    match = _SIZE.match(text)
    if not match:
        raise BadInput(f"'{text}' is not a size", "write it like 6GiB, 800MB or 80%")
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if whole is None:
            raise BadInput(f"'{text}' is a percentage, but of what is not known here")
        size = number / 100 * whole
    elif unit in _FACTORS:
        size = number * _FACTORS[unit]
    else:
        raise BadInput(f"'{text}' has an unknown unit", "units: B, KB, MB, GB, KiB, MiB, GiB, %")
    if size < 1:
        raise BadInput(f"'{text}' is less than one byte")
    if not math.isfinite(size):
        raise BadInput(f"'{text[:20]}...' is more than any memory")
    return int(size)


def format_size(size: int | float) -> str:
    """``1234567890`` as ``1177.4 MiB``; MiB throughout, so that a column compares at sight."""
    if abs(size) < 1024:
        return f"{int(size)} B"
    if abs(size) < 0.1 * MIB:
        return f"{size / 1024:.1f} KiB"
    return f"{size / MIB:,.1f} MiB"
