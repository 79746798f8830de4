"""Where a command's result goes: a file that appears whole, or ``-``, standard output."""

from __future__ import annotations

import os
import sys

from memcli.errors import BadInput
from memcli.formats.atomic import check_target, write_atomically
from memcli.formats.detect import Model, model_path
from memcli.quoting import STANDARD, shown_path


def check_output(model: Model, out: str | None, force: bool) -> None:
    """Refuse an output that could not, or must not, be written, before any work is done.

    Raises:
        BadInput: OUT is MODEL, exists without ``force``, its folder cannot be written to, or it is
            standard output and that is a terminal.
    """
    if out is None:
        return
    if out == STANDARD:
        if sys.stdout.isatty():
            raise BadInput("-o -: standard output is a terminal", "redirect it to a file or a pipe")
        return
    path = model_path(model)
    if path != STANDARD:
        try:
            same = os.path.samefile(path, out)
        except (OSError, ValueError):  # one of them is not there
            same = False
        if same:
            raise BadInput(
                f"{shown_path(out)}: the output is the model itself, which is never overwritten"
            )
    check_target(out, overwrite=force)


def write_output(out: str | os.PathLike[str], data: bytes, *, overwrite: bool) -> None:
    """Write the whole result to a file, all at once, or to standard output.

    Raises:
        BadInput: as :func:`memcli.formats.atomic.write_atomically`.
    """
    if os.fspath(out) != STANDARD:
        write_atomically(out, data, overwrite=overwrite)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
