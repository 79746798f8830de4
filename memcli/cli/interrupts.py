"""Ctrl-C, wherever it comes.

Python raises it in whatever runs. In a function that compiled code calls back (numba's compiler
does) it cannot be passed on: it is dropped there, and the compiled code goes on with half a result
or fails in words of its own.
"""

from __future__ import annotations

import signal
import sys
import threading

_SOON = 0.05  # seconds: by then the call that lost an interrupt is over, or loses the next one, too
_lost = threading.Event()


def raise_lost_ones_again() -> None:
    """From now on an interrupt that was dropped is raised again until it arrives."""
    sys.unraisablehook = _hook


def lost() -> bool:
    """Whether an interrupt was dropped, so that what fails now may fail of it."""
    return _lost.is_set()


def take_no_more() -> None:
    """All is done, or on its way out: one more changes nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _hook(caught: sys.UnraisableHookArgs) -> None:
    if not issubclass(caught.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(caught)
        return
    _lost.set()
    # a real signal, which ends a wait, too
    main = threading.main_thread().ident
    again = threading.Timer(_SOON, signal.pthread_kill, (main, signal.SIGINT))
    again.daemon = True
    again.start()
