"""Ctrl-C, wherever it comes; what a scheduler sends to end a process does the same.

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
_number = signal.SIGINT


def end_as_by_ctrl_c() -> None:
    """From now on SIGTERM and SIGHUP are interrupts, too: temporary files go, engines end."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        # what the caller ignores (nohup) stays ignored
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def exit_status() -> int:
    """Of a process that an interrupt ended, as shells count."""
    return 128 + _number


def _end(number: int, frame: object) -> None:
    global _number
    _number = signal.Signals(number)
    raise KeyboardInterrupt


def raise_lost_ones_again() -> None:
    """From now on an interrupt that was dropped is raised again until it arrives."""
    sys.unraisablehook = _hook


def lost() -> bool:
    """Whether an interrupt was dropped, so that what fails now may fail of it."""
    return _lost.is_set()


def take_no_more() -> None:
    """All is done, or on its way out: one more changes nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


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
