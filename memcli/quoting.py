"""How values from an untrusted file are quoted in messages: one line, bounded length."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The name of standard input, and of standard output, on the command line.
STANDARD = "-"
_LONGEST = 60
# What an error message, and a path in it, is cut to: readable, and whole where anyone wrote it.
_LONGEST_MESSAGE = 700
_LONGEST_PATH = 300
_DIGITS = re.compile("[0-9]+", re.ASCII)


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
    if isinstance(value, str):
        value = value[: 2 * _LONGEST]  # quoting megabytes takes time
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def first_of(texts: Iterable[str], most: int = 3) -> str:
    """The first ``most`` of some texts, with commas, and whether there are more."""
    listed = list(texts)
    return ", ".join([*listed[:most], "..."] if len(listed) > most else listed)


def printable(text: str) -> str:
    """``text`` with what a terminal would obey, or cannot show, escaped; on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown_path(path: object) -> str:
    """A path for the start of a message; line breaks and the like in it are escaped."""
    text = str(path)
    if text == STANDARD:
        return "standard input"
    return cut(printable(text), _LONGEST_PATH)


def shown_message(text: str) -> str:
    """A whole message on one line, nothing unprintable in it, cut in the middle where it is long.

    It begins with the file, and ends with the reason.
    """
    return cut(printable(" ".join(text.split())), _LONGEST_MESSAGE)


def cut(text: str, most: int) -> str:
    """``text`` with its middle left out where it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    head = (most - 5) * 2 // 3
    return f"{text[:head]} ... {text[len(text) - (most - 5 - head) :]}"


def whole_number(text: str, most: int = 2**63 - 1) -> int | None:
    """The number that ``text`` writes in ASCII digits alone; None where it is none, or too large.

    ``str.isdigit`` is no check for this: ``int`` refuses a superscript two, which is a digit, and
    takes digits of other scripts, and thousands of them.
    """
    if len(text) > 20 or not _DIGITS.fullmatch(text):
        return None
    number = int(text)
    return number if number <= most else None
