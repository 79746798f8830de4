"""Functions that numba compiles, with their machine code kept in the user's cache folder.

numba's own choice is a folder beside the source. What it puts there is not in the list of an
installed package's files: uninstalling leaves it behind, and the folders that are left pass for
the package where another copy of memcli is to be found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config as _numba_config

# Settings are attributes that numba gives the module at run time; its types know none of them.
config: Any = _numba_config

Function = TypeVar("Function", bound=Callable[..., Any])


def cache_folder() -> Path | None:
    """Where machine code is kept: ``memcli/kernels`` in XDG_CACHE_HOME, or in ``~/.cache``.

    None where the user has no folder of their own: numba then chooses.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "memcli" / "kernels" if os.path.isabs(base) else None


def compiled(function: Function | None = None, **options: Any) -> Any:
    """Decorator: compile a function at its first call, and load what was compiled from then on.

    NUMBA_CACHE_DIR, where it is set, is the folder all the same.

    Args:
        function: of numbers, arrays and tuples of these.
        options: numba's; with ``nogil=True`` other threads run meanwhile.

    Returns:
        The function, compiled.
    """
    if function is None:
        return lambda later: compiled(later, **options)
    folder = None if config.CACHE_DIR else cache_folder()
    if folder is None:
        return numba.njit(cache=True, **options)(function)
    # numba reads the folder when it decorates a function; other users of numba keep their own
    config.CACHE_DIR = str(folder)
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        config.CACHE_DIR = ""


@compiled
def lower_bound(keys, size, count):
    """The first index in ``keys[:count]`` (sorted) that is not less than ``size``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < size:
            low = middle + 1
        else:
            high = middle
    return low
