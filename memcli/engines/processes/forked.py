"""A job in a fork of the caller's own process, which knows operators that no other process does.

For :mod:`memcli.memonger`: user operators are Python classes that the training script registers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import BinaryIO, NoReturn

from memcli.engines.processes.worker import answer_job
from memcli.parent_process import die_with_parent

_PAUSE = 0.01  # seconds between two looks at a process that is waited for


class Forked:
    """A fork that runs one job (:class:`memcli.engines.processes.parent_side.EngineProcess`)."""

    def __init__(self, module: str, job_file: Path, result_file: Path, log: BinaryIO) -> None:
        reads, writes = os.pipe()
        parent = os.getpid()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # MXNet ends its threads itself
            self.pid = os.fork()
        if not self.pid:
            os.close(reads)
            _run(module, job_file, result_file, log.fileno(), writes, parent)
        os.close(writes)
        self.output: BinaryIO = os.fdopen(reads, "rb", buffering=0)
        self._status: int | None = None

    @property
    def status(self) -> int:
        """How it ended."""
        assert self._status is not None
        return self._status

    @property
    def leader(self) -> int:
        """Itself."""
        return self.pid

    @property
    def started(self) -> bool:
        """From the beginning."""
        return True

    def poll(self) -> int | None:
        """Its status, or None while it runs."""
        if self._status is None:
            ended, how = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._status = os.waitstatus_to_exitcode(how)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Its status; TimeoutExpired if it still runs after ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired("a job", timeout or 0.0)
            time.sleep(_PAUSE)
        return status

    def end(self) -> None:
        """End it and wait for it."""
        while True:
            try:
                if self.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGKILL)
                    self.wait()
                self.output.close()
                return
            except KeyboardInterrupt:
                # A second Ctrl-C: the first one is on its way up already.
                continue


def _run(
    module: str, job_file: Path, result_file: Path, log: int, pipe: int, parent: int
) -> NoReturn:
    """In the fork: run the job."""
    try:
        os.setsid()
        die_with_parent(parent)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(pipe, 1)
        os.dup2(log, 2)
        answer_job(importlib.import_module(module).handle, job_file, result_file)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
