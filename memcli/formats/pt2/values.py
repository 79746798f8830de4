"""Reading JSON that has passed through other hands: each value is what it should be, or refused."""

from __future__ import annotations

import json
import math
from typing import Any

from memcli.errors import BadInput
from memcli.quoting import shown

DAMAGED = "save it again with torch.export.save"
LARGEST_NUMBER = 1 << 63
# torch.export writes these as texts.
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


class Reader:
    """``where``: begins the messages, the file and the member that is read."""

    def __init__(self, where: str) -> None:
        self.where = where

    def wrong(self, place: str, wanted: str, found: Any) -> BadInput:
        """The error to raise."""
        return BadInput(f"{self.where}: {place} is {shown(_short(found))}, not {wanted}", DAMAGED)

    def parsed(self, data: bytes) -> dict[str, Any]:
        """A JSON object."""
        try:
            found = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{self.where}: is not JSON", DAMAGED) from error
        except MemoryError as error:
            raise BadInput(f"{self.where}: does not fit in memory") from error
        return self.table(found, "it")

    def table(self, value: Any, place: str) -> dict[str, Any]:
        """An object."""
        if not isinstance(value, dict):
            raise self.wrong(place, "an object", value)
        return value

    def rows(self, value: Any, place: str) -> list[Any]:
        """A list."""
        if not isinstance(value, list):
            raise self.wrong(place, "a list", value)
        return value

    def text(self, value: Any, place: str) -> str:
        """A string that can be printed and encoded."""
        if not isinstance(value, str) or (not value.isascii() and not _encodes(value)):
            raise self.wrong(place, "a text", value)
        return value

    def name(self, value: Any, place: str) -> str:
        """A text of at least one character, none of them a control character."""
        found = self.text(value, place)
        if not found or not found.isprintable() or len(found) > 4096:
            raise self.wrong(place, "a name", value)
        return found

    def flag(self, value: Any, place: str) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            raise self.wrong(place, "true or false", value)
        return value

    def whole(self, value: Any, place: str) -> int:
        """A whole number of 64 bits."""
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST_NUMBER:
            raise self.wrong(place, "a whole number", value)
        return value

    def size(self, value: Any, place: str) -> int:
        """A whole number from 0."""
        if self.whole(value, place) < 0:
            raise self.wrong(place, "a size", value)
        return int(value)

    def number(self, value: Any, place: str) -> float:
        """A float."""
        if isinstance(value, str) and value in _FLOATS:
            return _FLOATS[value]
        if isinstance(value, float):
            return value
        return float(self.whole(value, place))

    def union(self, value: Any, place: str) -> tuple[str, Any]:
        """(tag, value) of an object that has one field."""
        found = self.table(value, place)
        if len(found) != 1:
            raise self.wrong(place, "an object of one field", value)
        return next(iter(found.items()))


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    return value if isinstance(value, str) else str(value)[:60]


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
