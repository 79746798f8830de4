"""The process that watches over a command's, and ends it when a signal says so.

A command spends its time in compiled code: numba's compiler and what it compiled, HiGHS, readers of
files. An exception that Python raises there on Ctrl-C comes late, is dropped, or becomes an error
of another kind. So the command runs in a fork, and the process that the user started does nothing
but wait. On SIGINT, SIGTERM or SIGHUP it ends the fork and all that this has started, takes away
their files, says so in one line, and ends with 128 + the signal's number.

Both processes have the handlers below, which do nothing. What counts is the number that Python's
handler in C writes into a pipe at once, whichever of the two the signal came to.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from memcli import unfinished
from memcli.parent_process import adopt_orphans, die_with_parent

_ENDING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
_END_SECONDS = 1.0  # for processes that were killed to be gone
_FOLDERS = ("TMPDIR", "TEMP", "TMP")
_CRASHED = 3

_HINTS = {
    "SIGKILL": "It may have been out of memory: try a smaller graph, or a machine with more.",
    "SIGTERM": "Something outside memcli ended it.",
}


def start_command(early: Callable[[int, object], None]) -> None:
    """Returns in the process that is to do the command's work.

    The process that was started stays in here and ends as the other one does. ``early`` is what
    handles signals so far. Where the system cannot fork there is one process alone, and signals
    are a KeyboardInterrupt in it.
    """
    taken = [number for number in _ENDING if signal.getsignal(number) is early]
    if not hasattr(os, "fork"):
        _be_alone(taken)
        return
    _open_standard_streams()
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in taken:
        signal.signal(number, _nothing)
    signal.signal(signal.SIGCHLD, _nothing)
    told, tells = os.pipe()
    folder = _own_folder()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no more processes
        signal.set_wakeup_fd(-1)
        _be_alone(taken)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _remove_folder(folder)
        return
    if child:
        os.close(tells)
        _watch(child, wake, told, folder)
    os.close(wake)
    os.close(told)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent(parent)
    unfinished.tell(tells, parent, folder and os.path.dirname(folder))
    if folder is not None:
        os.environ["TMPDIR"] = folder  # for engines, too
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].__dict__["tempdir"] = None


def _be_alone(taken: list[signal.Signals]) -> None:
    for number in taken:
        signal.signal(number, signal.default_int_handler)


def _open_standard_streams() -> None:
    """Those that the caller has closed go nowhere, and no pipe below takes their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _nothing(number: int, frame: object) -> None:
    """The number in the pipe is all that is wanted."""


def _watch(child: int, wake: int, told: int, folder: str | None) -> NoReturn:
    """Until the command's process ends, or is to end."""
    adopt_orphans()
    os.set_blocking(told, False)
    files = unfinished.Unfinished()
    ended: int | None = None  # as waitpid tells it
    number = 0
    waited = [wake, told]
    while ended is None and not number:
        ready, _, _ = select.select(waited, [], [])
        if told in ready and not _read(told, files):
            waited.remove(told)
        if wake in ready:
            came = os.read(wake, 4096)
            ended = _reap(child)
            number = next((n for n in came if n in _ENDING), 0)
    if ended is None:
        _kill(child)
        ended = _reap(child, time.monotonic() + _END_SECONDS)
    _read(told, files)
    _end_orphans()
    written = files.settle()
    _remove_folder(folder)
    if files.status is not None:  # all was said: what came later changes nothing
        os._exit(files.status)
    if number:
        name = signal.Signals(number).name
        by = "" if number == signal.SIGINT else f" by {name}"
        _say([f"interrupted{by}; {unfinished.outcome(written)}"])
        os._exit(128 + number)
    assert ended is not None
    code = os.waitstatus_to_exitcode(ended)
    if code >= 0:
        os._exit(code)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    message = f"memcli's own process was ended by {name}; {unfinished.outcome(written)}"
    hint = _HINTS.get(name, "This is a fault of memcli, or of a library that it uses.")
    _print_crash(message, hint)
    _say([message, hint])
    os._exit(_CRASHED)


def _read(pipe: int, files: unfinished.Unfinished) -> bool:
    """Everything that was told so far; whether more may come."""
    while True:
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        files.hear(data)


def _reap(child: int, until: float = 0.0) -> int | None:
    """Takes leave of all that have ended; how the command's process did, if it has."""
    while True:
        try:
            pid, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == child:
            return how
        if not pid:
            if time.monotonic() >= until:
                return None
            time.sleep(0.002)


def _end_orphans() -> None:
    """Ends what the command's process has left behind, and what those leave behind in turn."""
    until = time.monotonic() + _END_SECONDS
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            _kill(pid)
        time.sleep(0.002)


def _children() -> list[int]:
    """This process's children, those that it was left with included."""
    me = str(os.getpid()).encode()
    found = []
    try:
        numbers = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []
    for name in numbers:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if len(fields) > 1 and fields[1] == me:
            found.append(int(name))
    return found


def _kill(pid: int) -> None:
    try:  # noqa: SIM105, contextlib is not imported for it
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _own_folder() -> str | None:
    """A temporary folder for all of the command's files; None where none can be made."""
    given = [os.environ.get(name, "") for name in _FOLDERS]
    for parent in [*given, "/tmp", "/var/tmp"]:
        if not parent:
            continue
        path = os.path.join(os.path.abspath(parent), f"memcli-{os.urandom(6).hex()}")
        try:
            os.mkdir(path, 0o700)
        except (OSError, ValueError):
            continue
        return path
    return None


def _remove_folder(path: str | None) -> None:
    if path is None:
        return
    try:
        os.rmdir(path)
    except OSError:
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def _say(lines: list[str]) -> None:
    """To standard error, in place of the bar that shows progress."""
    text = f"memcli: {lines[0]}\n" + "".join(f"  {line}\n" for line in lines[1:])
    try:
        if os.isatty(2) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
            text = f"\r\x1b[2K\x1b[?25h{text}"  # the cursor was hidden
        os.write(2, text.encode(errors="backslashreplace"))
    except OSError:
        pass


def _print_crash(message: str, hint: str) -> None:
    """The object that ``--json`` promises, where it is asked for."""
    import json

    from memcli.cli.json_errors import asks_for_json, error_object

    if not asks_for_json(sys.argv):
        return
    text = json.dumps(error_object(_CRASHED, message, hint))
    try:  # noqa: SIM105
        os.write(1, text.encode() + b"\n")
    except OSError:
        pass
