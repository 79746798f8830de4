"""``--shapes FILE.json``: the shapes of many inputs at once."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from memcli.errors import BadInput
from memcli.quoting import shown, shown_path

_MOST_BYTES = 16 << 20
_LARGEST = (1 << 31) - 1
_FORM = 'it should hold {"NAME": [32, 3, 224, 224], ...}'


def read_shape_file(path: str) -> dict[str, list[int]]:
    """Shapes by name of the input, in the file's order.

    Raises:
        BadInput: unreadable, no JSON object, or what it says of a name is no shape.
    """
    where = f"--shapes {shown_path(path)}"
    try:
        found = json.loads(_read(path, where), object_pairs_hook=lambda pairs: _once(pairs, where))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        place = f" (line {line})" if line else ""
        raise BadInput(f"{where}: is not JSON{place}", _FORM) from None
    if not isinstance(found, dict):
        raise BadInput(f"{where}: is no JSON object", _FORM)
    for name, shape in found.items():
        if not isinstance(shape, list) or not shape:
            raise BadInput(f"{where}: the shape of {shown(name)} is {shown(shape)}", _FORM)
        for size in shape:
            # true is an integer to Python
            if type(size) is not int or not 0 < size <= _LARGEST:
                raise BadInput(
                    f"{where}: a dimension of {shown(name)} is {shown(size)}",
                    f"dimensions are whole numbers from 1 to {_LARGEST}",
                )
    return found


def _read(path: str, where: str) -> bytes:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadInput(f"{where}: is not a file")
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{where}: cannot be read: {why}") from None
    if len(data) > _MOST_BYTES:
        raise BadInput(f"{where}: is larger than {_MOST_BYTES >> 20} MiB", _FORM)
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadInput(f"{where}: {shown(name)} is given twice")
        found[name] = value
    return found
