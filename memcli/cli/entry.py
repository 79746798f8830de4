"""Where ``memcli`` starts: signals are taken care of before anything else is imported."""

from __future__ import annotations

import os
import signal


def run(arguments: list[str] | None = None) -> None:
    """Entry point: errors that the user can mend are one or two lines, never a traceback."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # what the caller ignores (nohup) stays ignored
        if number is not None and signal.getsignal(number) in _DEFAULT:
            signal.signal(number, _leave)
    from memcli.cli import supervisor

    supervisor.start_command(_leave)
    from memcli.cli.main import work

    work(arguments)


_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)


def _leave(number: int, frame: object) -> None:
    """Until somebody watches, which is some milliseconds."""
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    os.write(2, f"memcli: interrupted{by}; nothing was written\n".encode())
    os._exit(128 + number)
