"""When an engine is taken for one that hangs.

How long a job takes depends on the graph and the machine, and may be hours. One that hangs is told
by what it does: no processor time at all for a minute (it waits for something that will not come),
an engine that is still not loaded after minutes, not a word of progress for an hour. The user's
variable ``MEMCLI_ENGINE_LIMIT`` gives other seconds for the last two, and half of that for the
first.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "MEMCLI_ENGINE_LIMIT"
_IDLE_SECONDS = 60.0
_IDLE_WORK = 0.05  # seconds of processor time: less is a wait that looks up now and then
_LOAD_SECONDS = 300.0
_SILENT_SECONDS = 3600.0
_LOOK_SECONDS = 1.0


class Limits:
    """Of one engine's process.

    Counts time in which this process ran: one that was stopped (Ctrl-Z) has seen nothing.
    """

    def __init__(self) -> None:
        self._silent = 0.0
        self._idle = 0.0
        self._work: float | None = None
        self._looked = time.monotonic()
        given = _given_seconds()
        self.most_idle = given / 2 if given else _IDLE_SECONDS
        self.most_loading = given or _LOAD_SECONDS
        self.most_silent = given or _SILENT_SECONDS

    def heard(self) -> None:
        """It has told of progress."""
        self._silent = self._idle = 0.0
        self._work = None

    def passed(self, pid: int, loading: bool) -> str:
        """Which limit is over, in words; "" for none.

        Args:
            pid: the leader of the session.
            loading: whether the engine is still being loaded.
        """
        now = time.monotonic()
        gone = now - self._looked
        if gone < _LOOK_SECONDS:
            return ""
        self._looked = now
        gone = min(gone, 2 * _LOOK_SECONDS)
        self._silent += gone
        self._idle += gone
        work = processor_seconds(pid)
        if work is None or self._work is None or abs(work - self._work) > _IDLE_WORK:
            self._work, self._idle = work, 0.0
        if self._idle >= self.most_idle:
            return f"did nothing for {self.most_idle:g} s"
        if loading and self._silent >= self.most_loading:
            return f"was not ready after {self.most_loading:g} s"
        if self._silent >= self.most_silent:
            return f"told of no progress for {self.most_silent:g} s"
        return ""


def _given_seconds() -> float | None:
    """What the user's variable says, where it is a number of seconds."""
    text = os.environ.get(VARIABLE, "")
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 9):
        return None
    return float(int(text)) or None


def processor_seconds(pid: int) -> float | None:
    """Of all processes of the session that ``pid`` leads; None where the system does not tell."""
    session, total, found = str(pid).encode(), 0.0, False
    try:
        entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    except OSError:
        return None
    for entry in entries:
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        # state, parent, group, session, ...; utime and stime are the 14th and 15th field of all
        if len(fields) > 12 and fields[3] == session:
            total += int(fields[11]) + int(fields[12])
            found = True
    return total / os.sysconf("SC_CLK_TCK") if found else None


def out_of_memory_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started (Linux)."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
