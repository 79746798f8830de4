"""A process that ends when the one that started it is gone, whatever it is doing."""

from __future__ import annotations

import os
import signal
import sys

_LOOK_SECONDS = 0.5
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl


def die_with_parent(parent: int) -> None:
    """Has this process end when ``parent``, which started it, is gone.

    Linux ends it with the thread that started it, in whatever code it is; elsewhere a thread of
    its own looks now and then.
    """
    if sys.platform.startswith("linux"):
        _prctl(_SET_PDEATHSIG, int(signal.SIGKILL))
    else:
        _look_for(parent)
    if os.getppid() != parent:  # it was gone before the call above
        os._exit(1)


def adopt_orphans() -> None:
    """Has what this process's children leave behind become children of its own (Linux)."""
    if sys.platform.startswith("linux"):
        _prctl(_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # a C library of another kind: the check of the parent is all there is


def _look_for(parent: int) -> None:
    import threading
    import time

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
