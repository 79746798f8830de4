"""How long a command may take, from its start on, and work that is given up when it is over."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A search that begins with no time left still looks for a plan for so long: better half a second
# over than no plan.
_GRACE_SECONDS = 0.5

_LOOK_SECONDS = 0.05
_EXIT_SECONDS = 30.0
# When the command that runs in this process began; None where memcli is used as a library.
_began: float | None = None
# Ends of work that was given up and may still be running.
_given_up: list[threading.Event] = []


def command_begins() -> None:
    """Count time limits from here on, not from where the work begins: importing counts, too."""
    global _began
    _began = time.monotonic()


def deadline(seconds: float | None) -> float | None:
    """When a time limit is over, by ``time.monotonic()``; None without one.

    Counted from the start of the command, in a program that uses memcli as a library from now.
    """
    if seconds is None:
        return None
    return seconds + (time.monotonic() if _began is None else _began)


def seconds_left(at: float | None) -> float:
    """Seconds to a deadline, negative behind it; infinite without one."""
    return float("inf") if at is None else at - time.monotonic()


def search_end(at: float | None, kept: float = 0.0) -> float | None:
    """When a search that begins now is to end, with ``kept`` seconds for what comes behind it."""
    return None if at is None else max(at - kept, time.monotonic() + _GRACE_SECONDS)


def finished_by(at: float | None, work: Callable[[], T], otherwise: T) -> T:
    """What ``work`` returns, unless it takes longer than a deadline.

    It is then left to itself in a thread of its own, so it must change nothing that others see.

    Args:
        at: the deadline, by ``time.monotonic()``; None: there is none.
        work: what to do.
        otherwise: the result where it has not ended by the deadline.
    """
    if at is None:
        return work()
    if seconds_left(at) <= 0:
        return otherwise
    ended = threading.Event()
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    _given_up.append(ended)
    threading.Thread(target=run, daemon=True).start()
    # in short waits, between which an interrupt arrives
    while not ended.wait(min(_LOOK_SECONDS, max(0.0, seconds_left(at)))):
        if seconds_left(at) <= 0:
            return otherwise
    _given_up.remove(ended)
    if failed:
        raise failed[0]
    return made[0]


def _wait_for_given_up() -> None:
    """Python must not be taken down under compiled code that runs in a thread."""
    for ended in _given_up:
        ended.wait(_EXIT_SECONDS)


atexit.register(_wait_for_given_up)


def left_behind() -> bool:
    """Whether work that was given up still runs: the process must end without a clean-up."""
    return not all(ended.is_set() for ended in _given_up)
