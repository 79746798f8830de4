"""``memcli strip``: take the plan off a file, rewrites undone."""

from __future__ import annotations

from memcli.formats.detect import Model, read_source
from memcli.formats.output import check_output, write_output
from memcli.formats.stripped import Stripped


def strip(planned: Model, out: str, *, force: bool = False) -> Stripped:
    """Writes the model of a planned file, in its format, without the plan.

    Args:
        planned: its path, or what was read; ``-`` is standard input.
        out: file for the model; ``-`` is standard output.
        force: replace ``out`` where it exists.

    Raises:
        BadInput: unreadable, without a plan, changed since it was planned so that a rewrite cannot
            be undone, or an output that cannot or must not be written.
    """
    check_output(planned, out, force)
    source = read_source(planned)
    found = source.kind.strip(source, out)
    write_output(out, found.data, overwrite=force)
    found.output = out
    return found
