"""Files that a command is making, told to the process that watches over it.

A command's own process may be ended at any moment, in compiled code that takes no notice. So the
process that ends it (:mod:`memcli.cli.supervisor`) must know which files to take away, and whether
the one that was asked for has its name. In the library nobody watches, and nothing is told.

Imports nothing but ``os``: it is there before signals are taken care of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

_pipe: int | None = None
_command = os.getpid()
_folder: str | None = None


def tell(pipe: int, command: int, folder: str | None) -> None:
    """From now on what is made is told to ``pipe``.

    Args:
        pipe: a file descriptor.
        command: the process that was started.
        folder: where its own temporary folder is.
    """
    global _pipe, _command, _folder
    _pipe, _command, _folder = pipe, command, folder


def command_pid() -> int:
    """The process that the user started, which this one works for."""
    return os.getpid() if _pipe is None else _command


def temporary_folder() -> str:
    """The folder for temporary files as the user knows it."""
    return _folder or os.environ.get("TMPDIR") or "/tmp"


def making(temporary: str | os.PathLike[str]) -> None:
    """A temporary file is about to be made."""
    _say("making", temporary)


def placing(temporary: str | os.PathLike[str], target: str | os.PathLike[str], shown: str) -> None:
    """It is whole and takes the name ``target`` now; ``shown``: that name in messages, or ""."""
    _say("placing", temporary, target, shown)


def reserved(temporary: str | os.PathLike[str]) -> None:
    """An empty file keeps the name that it was to be placed at."""
    _say("reserved", temporary)


def failed(temporary: str | os.PathLike[str]) -> None:
    """It will not be placed."""
    _say("failed", temporary)


def placed(temporary: str | os.PathLike[str]) -> None:
    """It has its name."""
    _say("placed", temporary)


def gone(temporary: str | os.PathLike[str]) -> None:
    """It was placed or taken away; nothing is left to do."""
    _say("gone", temporary)


def done(status: int) -> None:
    """The command is over: all is written and said, and an interrupt changes nothing."""
    _say("done", str(status))


def _say(kind: str, *fields: str | os.PathLike[str]) -> None:
    if _pipe is None:
        return
    line = " ".join([kind, *(os.fsencode(field).hex() or "-" for field in fields)]) + "\n"
    data = line.encode()
    try:
        while data:
            data = data[os.write(_pipe, data) :]
    except OSError:
        pass  # nobody listens any more


class Unfinished:
    """What was told, as the other end keeps it."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._rest = b""
        self._files: dict[bytes, tuple[bytes, str] | None] = {}
        self._reserved: set[bytes] = set()
        self._written: list[str] = []

    def hear(self, data: bytes) -> None:
        """Takes in what came over the pipe."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            kind, *fields = line.split(b" ")
            first, *more = [b"" if f == b"-" else bytes.fromhex(f.decode()) for f in fields]
            if kind == b"done":
                self.status = int(first)
            elif kind == b"making":
                self._files[first] = None
            elif kind == b"placing":
                self._files[first] = more[0], os.fsdecode(more[1])
            elif kind == b"reserved":
                self._reserved.add(first)
            elif kind == b"failed":
                self._files[first] = None
            elif kind == b"placed":
                self._has_name(first)
            elif kind == b"gone":
                self._files.pop(first, None)

    def settle(self) -> list[str]:
        """Takes away what is unfinished, and says which files have their names."""
        for temporary, told in list(self._files.items()):
            there = os.path.lexists(temporary)
            if told is not None and (not there or _same(temporary, told[0])):
                self._has_name(temporary)
            elif told is not None and temporary in self._reserved and _is_empty(told[0]):
                _remove(told[0])
            if there:
                _remove(temporary)
        self._files.clear()
        return self._written

    def _has_name(self, temporary: bytes) -> None:
        told = self._files.get(temporary)
        if told is not None and os.path.lexists(told[0]):
            self._files[temporary] = None
            if told[1]:
                self._written.append(told[1])


def outcome(written: Iterable[str]) -> str:
    """What an interrupted command has left, in words."""
    names = list(dict.fromkeys(written))
    if not names:
        return "nothing was written"
    return f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'} written"


def _same(one: bytes, other: bytes) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _is_empty(path: bytes) -> bool:
    try:
        return os.lstat(path).st_size == 0
    except OSError:
        return False


def _remove(path: bytes) -> None:
    try:  # noqa: SIM105, contextlib is not imported for it
        os.unlink(path)
    except OSError:
        pass  # somebody else has
