"""HiGHS, the solver of linear and integer programs, so set that it prints nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def silent_solver(**options: Any) -> Any:
    """A ``highspy.Highs`` of one thread and a fixed seed; ``options`` are HiGHS's own.

    Since 1.16 it prints its name while it is being made, before any option could forbid it.
    """
    import highspy

    with _silent_stdout():
        solver = highspy.Highs()
    settings = {"output_flag": False, "threads": 1, "random_seed": 0} | options
    for option, setting in settings.items():
        solver.setOptionValue(option, setting)
    return solver


# Solvers at work, with their threads' ends. Python must not take one down under its thread.
_at_work: list[tuple[Any, threading.Event]] = []
_LOOK_SECONDS = 0.1


def run(solver: Any) -> None:
    """Solve. An interrupt arrives meanwhile: the solver is left behind (see :func:`left_behind`).

    HiGHS's own way to be interrupted calls Python back at every iteration.
    """
    if threading.current_thread() is not threading.main_thread():
        solver.run()
        return
    ended = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            solver.run()
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    _at_work.append((solver, ended))
    threading.Thread(target=work, daemon=True).start()
    # a thread's join that is interrupted takes the thread for one that ended
    while not ended.wait(_LOOK_SECONDS):
        pass
    _at_work.remove((solver, ended))
    if failed:
        raise failed[0]


def left_behind() -> bool:
    """Whether a solver is still at work, so that the process must end without a clean-up."""
    return not all(ended.is_set() for _, ended in _at_work)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """The process's standard output, as compiled code sees it, goes nowhere in this context."""
    try:
        kept = os.dup(1)
    except OSError:  # the process has none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)
