"""Standard output that says of itself when it cannot be written to.

Elsewhere a full disk raises the same error, and nothing in it tells which file it was.
"""

from __future__ import annotations

import io
import sys
from typing import Any


class OutputFailed(OSError):
    """Standard output cannot be written to."""


class _Output(io.FileIO):
    before: Any

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:  # the reader has enough, which is no failure
            raise
        except OSError as error:
            raise OutputFailed(error.errno, error.strerror) from error


def watch_output() -> None:
    """From now on what standard output fails with is an OutputFailed."""
    stream = sys.stdout
    try:
        raw = _Output(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):
        return  # none, or one of a program that runs memcli within itself
    stream.flush()
    raw.before = stream  # which would close the descriptor
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
    )
