"""Catches what C++ code writes to standard error, below Python's own stream."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


class Captured:
    """What was written; complete once the ``with`` block has ended."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this call

    def fileno(self) -> int:
        return self._file.fileno()

    def data(self) -> bytes:
        """Everything written so far."""
        self._file.seek(0)
        return self._file.read()


@contextmanager
def capture_stderr() -> Iterator[Captured]:
    """Point file descriptor 2 at a temporary file for the length of the block."""
    captured = Captured()
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(captured.fileno(), 2)
    try:
        yield captured
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
