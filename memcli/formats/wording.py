"""How values from an untrusted file are quoted in messages: one line, bounded length."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 60


def shown(value: object) -> str:
    """``value`` for an error message: JSON's own words for the simple ones, cut where long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        if len(value) > 6 or any(isinstance(item, (dict, list)) for item in value):
            return "a list"
        return "[" + ", ".join(map(shown, value)) + "]"
    # Python refuses to print integers of over 4300 digits.
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer of over 38 digits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def first_of(texts: Iterable[str], most: int = 3) -> str:
    """The first ``most`` of some texts, with commas, and whether there are more."""
    listed = list(texts)
    return ", ".join([*listed[:most], "..."] if len(listed) > most else listed)


def shown_path(path: object) -> str:
    """A path for the start of a message; line breaks and the like in it are escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]
