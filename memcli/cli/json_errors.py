"""The object that ``--json`` promises where a command ends with status 1, 2 or 3.

Imports nothing heavy: the process that watches over a command prints it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is among a command line's options, even where click cannot parse it."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def error_entry(
    status: int, message: str, mend: str = "", nearest: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The value of ``error`` in a command's object.

    Args:
        status: the exit status, 1 to 3.
        message: what is wrong, as standard error says it.
        mend: what would help, or "" where that is not known.
        nearest: with status 1, the nearest answer that was found, with the keys of the object that
            the command prints of an answer.

    Returns:
        Values that :mod:`json` writes.
    """
    entry = {"status": status, "message": message, "mend": mend}
    return entry if nearest is None else {**entry, "nearest": dict(nearest)}


def error_object(
    status: int, message: str, mend: str = "", nearest: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The whole object of a command that has nothing else to print; see :func:`error_entry`."""
    return {"schema": 1, "ok": False, "error": error_entry(status, message, mend, nearest)}
