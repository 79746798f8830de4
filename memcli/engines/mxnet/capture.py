"""Catches what C++ code writes to standard error, below Python's own stream."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# ``std::cerr`` writes a few bytes at a time, millions of times for a large graph's memory plan:
# into a pipe that takes half the time of a file.
_PIPE_BYTES = 1 << 20
_PAUSE_SECONDS = 0.005  # of the reader, so that it does not run for every few bytes


class Captured:
    """What was written; complete once the ``with`` block has ended."""

    def __init__(self) -> None:
        self._end, self._writer = os.pipe()
        with contextlib.suppress(OSError, AttributeError):  # Linux; a user may have less
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while part := os.read(self._end, _PIPE_BYTES):
            self._parts.append(part)
            if len(part) < _PIPE_BYTES // 4:
                time.sleep(_PAUSE_SECONDS)
        os.close(self._end)

    def fileno(self) -> int:
        """Where to write."""
        return self._writer

    def close(self) -> None:
        """Nothing more is to come: wait for the rest."""
        os.close(self._writer)
        self._reader.join()

    def data(self) -> bytes:
        """Everything that was written."""
        return b"".join(self._parts)


@contextmanager
def capture_stderr() -> Iterator[Captured]:
    """Point file descriptor 2 at a pipe that a thread reads, for the length of the block.

    What writes more than fits into the pipe must not hold Python's lock; MXNet's library does not.
    """
    sys.stderr.flush()
    captured = Captured()
    saved = os.dup(2)
    os.dup2(captured.fileno(), 2)
    try:
        yield captured
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        captured.close()
