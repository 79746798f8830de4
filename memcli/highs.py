"""HiGHS, the solver of linear and integer programs, so set that it prints nothing."""

from __future__ import annotations

import os
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
