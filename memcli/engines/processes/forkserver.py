"""An engine that is loaded once, and a process of its own for each job all the same.

Importing MXNet takes longer than most of what it is asked, and planning asks several times. So a
*host* process imports it and waits; each job runs in a fork of the host, which has everything
loaded, nothing yet run, and crashes alone. Linux only: elsewhere every job loads the engine anew.

The host gets a message for each job over a socket, with three descriptors: the job's own socket
(the host tells its number there, later its exit status; closed on the other side, the job is
ended), the pipe for its standard output and the log for its standard error. It ends when the first
socket is closed, and the kernel ends it with the process that started it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NoReturn

from memcli.engines.processes.parent_side import EngineProcess, Spawned
from memcli.engines.processes.worker import answer_job
from memcli.parent_process import die_with_parent

AVAILABLE = sys.platform.startswith("linux") and hasattr(socket, "send_fds")
_MOST_BYTES = 65536
_NUMBER = b"pid "
_LOAD_SECONDS = 1.0  # for a host to have loaded, once a job is to be ended
_END_SECONDS = 5.0  # for a job that was killed to be gone, and a host that takes no more jobs
_hosts: dict[str, _Host] = {}
_lock = threading.Lock()
# Starts all hosts: the kernel ends a process with the thread that started it, and this one stays.
_starter: ThreadPoolExecutor | None = None


def _forget() -> None:
    """In a fork of a program that uses memcli: hosts, and the thread, are the other process's."""
    global _lock, _starter
    _hosts.clear()
    _lock, _starter = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# --------------------------------------------------------------------------- the parent's side


class _Host:
    """A process that has ``module`` imported, and runs jobs in forks of itself.

    ``environ`` is its environment, and that of all its jobs. ``starter``: a thread that stays.
    """

    def __init__(self, module: str, environ: dict[str, str], starter: ThreadPoolExecutor) -> None:
        self.environ = environ
        self._owner = os.getpid()
        self._ended = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this call
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            keep = theirs.fileno()
            self.process = starter.submit(
                Spawned,
                "memcli.engines.processes.forkserver",
                module,
                str(keep),
                environ=environ,
                log=self._log,
                piped=False,
                keep=[keep],
            ).result()

    @property
    def alive(self) -> bool:
        """Whether it still takes jobs."""
        return self.process.poll() is None

    def start(self, job_file: Path, result_file: Path, log: BinaryIO) -> EngineProcess:
        """Fork for a job. One that the host cannot take any more ends as the host did."""
        told = json.dumps([str(job_file), str(result_file)]).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reads, writes = os.pipe()
        try:
            with self._lock, contextlib.suppress(OSError):
                socket.send_fds(self._socket, [told], [theirs.fileno(), writes, log.fileno()])
        finally:
            theirs.close()
            os.close(writes)
        return _Fork(self, ours, os.fdopen(reads, "rb", buffering=0), log.name)

    def last_words(self) -> bytes:
        """What it wrote to its standard error, the end of it."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), _MOST_BYTES, max(0, size - _MOST_BYTES))

    def ended(self) -> int:
        """How it ended; 1 where it was ended from here, as is one that takes jobs no more."""
        try:
            status = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
        return 1 if self._ended else status

    def end(self) -> None:
        """End it, and with it all its jobs."""
        if self._ended or os.getpid() != self._owner:
            return
        self._ended = True
        self._socket.close()
        self.process.end()
        self._log.close()


class _Fork:
    """A job's process as its parent sees it (see ``parent_side.EngineProcess``)."""

    def __init__(self, host: _Host, told: socket.socket, output: BinaryIO, log: str) -> None:
        self.output = output
        self._host = host
        self._socket = told
        self._log = log
        self._pid: int | None = None
        self._status: int | None = None

    @property
    def leader(self) -> int:
        """Itself, or the host while that loads."""
        return self._host.process.pid if self._pid is None else self._pid

    @property
    def started(self) -> bool:
        """Whether the host has told its number."""
        return self._pid is not None

    @property
    def status(self) -> int:
        """How it ended."""
        assert self._status is not None
        return self._status

    def poll(self) -> int | None:
        """Its status, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Its status; TimeoutExpired if it still runs after ``timeout`` seconds."""
        while self._status is None:
            self._socket.settimeout(timeout)
            try:
                told = self._socket.recv(64)
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired("a job", timeout or 0.0) from None
            except ConnectionError:
                told = b""
            if told.startswith(_NUMBER):
                self._pid = int(told[len(_NUMBER) :])
            elif told:
                self._status = int(told)
            else:
                self._status = self._host.ended()  # and the job with it
                with contextlib.suppress(OSError, ValueError), open(self._log, "ab") as log:
                    log.write(self._host.last_words())
        return self._status

    def end(self) -> None:
        """End it and all that it started, and wait for it."""
        while True:
            try:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
                try:
                    self.wait(_END_SECONDS if self.started else _LOAD_SECONDS)
                except subprocess.TimeoutExpired:
                    # a host that hangs while it loads sees nothing
                    self._host.end()
                self._socket.close()
                self.output.close()
                return
            except KeyboardInterrupt:
                # A second Ctrl-C: the first one is on its way up already.
                continue


def host(module: str, environ: Mapping[str, str]) -> _Host:
    """The host of a module, started if there is none; one at a time is kept for each module.

    Args:
        module: has ``handle``, as for :func:`memcli.engines.processes.worker.worker_main`, and
            ``load``, which imports its engine.
        environ: the process's environment.

    Raises:
        EngineFailed: no process can be started.
    """
    global _starter
    with _lock:
        if _starter is None:
            _starter = ThreadPoolExecutor(1, "memcli-hosts")
        kept = _hosts.get(module)
        if kept is None or not kept.alive or kept.environ != environ:
            # the one before may have jobs of another thread's: it stays until memcli ends
            kept = _hosts[module] = _Host(module, dict(environ), _starter)
            atexit.register(kept.end)
        return kept


# --------------------------------------------------------------------------- the host's side


class _Jobs:
    """The host's loop, and its jobs by process number."""

    def __init__(self, module: str, control: socket.socket) -> None:
        self.module = module
        self.control = control
        self.running: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ)
        # an ended job wakes the loop
        self.wake, ended = socket.socketpair()
        self.wake.setblocking(False)
        ended.setblocking(False)
        self._ended = ended
        self.selector.register(self.wake, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ended.fileno(), warn_on_full_buffer=False)

    def loop(self) -> None:
        """Until the parent is gone."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.control:
                    message, given, _, _ = socket.recv_fds(self.control, _MOST_BYTES, 3)
                    if not message:
                        for pid in list(self.running):
                            _kill(pid)
                        return
                    self.fork(json.loads(message), given)
                elif key.fileobj is self.wake:
                    with contextlib.suppress(BlockingIOError):
                        self.wake.recv(4096)
                else:
                    self.selector.unregister(key.fileobj)
                    _kill(key.data)
            self.reap()

    def fork(self, told: list[str], given: list[int]) -> None:
        """A job's process."""
        own, output, log = given
        job = socket.socket(fileno=own)
        me = os.getpid()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the engine's threads are idle
            pid = os.fork()
        if not pid:
            job.close()
            self.become(told, output, log, me)
        os.close(output)
        os.close(log)
        with contextlib.suppress(OSError):  # who asked is gone already
            job.send(_NUMBER + str(pid).encode())
        self.running[pid] = job
        self.selector.register(job, selectors.EVENT_READ, pid)

    def become(self, told: list[str], output: int, log: int, host_pid: int) -> NoReturn:
        """In the fork: run the job."""
        try:
            os.setsid()
            die_with_parent(host_pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.selector.close()
            for other in (self.control, self.wake, self._ended, *self.running.values()):
                other.close()
            os.dup2(output, 1)
            os.dup2(log, 2)
            os.close(output)
            os.close(log)
            answer_job(importlib.import_module(self.module).handle, Path(told[0]), Path(told[1]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def reap(self) -> None:
        """Tell of jobs that have ended."""
        for pid in list(self.running):
            ended, how = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            _kill(pid, alone=False)  # what it left behind
            job = self.running.pop(pid)
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(job)
            with contextlib.suppress(OSError):
                job.send(str(os.waitstatus_to_exitcode(how)).encode())
            job.close()


def _kill(pid: int, *, alone: bool = True) -> None:
    """Ends a job's process group; ``alone``: and the process, which may have none yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if alone:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def main(module: str, control: str) -> None:
    """Import the module and its engine, then serve."""
    try:
        importlib.import_module(module).load()
    except BaseException:
        # each job tries again, and says why it cannot
        traceback.print_exc()
    _Jobs(module, socket.socket(fileno=int(control))).loop()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
