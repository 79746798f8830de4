"""An engine's process as its parent sees it: started, listened to, ended, its errors told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from memcli import unfinished
from memcli.engines.processes.limits import Limits, out_of_memory_kills
from memcli.errors import BadInput, EngineFailed, MemcliError
from memcli.request import Progress

PREFIX = b"@progress "
_TAIL_LINES = 30
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0
_END_SECONDS = 5.0  # for a process that was killed to be gone

# What the child runs before the module: -m would put the current folder first on the path, where
# a file of the user's named numpy.py would be found, and -P exists from Python 3.11 only.
_BOOTSTRAP = (
    "import sys; sys.path.pop(0); root = sys.argv[1]; "
    "root in sys.path or sys.path.insert(0, root); "
    "from memcli.engines.processes.worker import boot; boot()"
)


class WorkerFailed(EngineFailed):
    """The engine's process died or failed in a way it could not tell itself.

    ``log_tail``: the last lines it wrote; ``signal``: number of the signal that ended it, or None.
    """

    def __init__(
        self, message: str, hint: str = "", log_tail: str = "", signal_number: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.log_tail = log_tail
        self.signal = signal_number


class PeerLost(EngineFailed):
    """A process that this one works together with is gone."""


class EngineProcess(Protocol):
    """A process that runs one job, however it came to be. The part of Popen that is used."""

    @property
    def output(self) -> BinaryIO:
        """The pipe that its standard output goes to."""

    @property
    def status(self) -> int:
        """How it ended, as Popen's ``returncode``; once it has."""

    @property
    def leader(self) -> int:
        """The number of the process that leads its session; its host's while that loads."""

    @property
    def started(self) -> bool:
        """Whether it runs, and waits for no host that is still loading."""

    def poll(self) -> int | None:
        """Its status, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its status; subprocess.TimeoutExpired if it still runs after ``timeout`` seconds."""

    def end(self) -> None:
        """End it and all that it started, and wait for it, an interrupt in between or not."""


# Runs the module on a job file, a result file and a log that is open for writing.
Start = Callable[[str, Path, Path, BinaryIO], EngineProcess]


class Child:
    """A process that runs a job, and what it told: its last progress text, then its answer."""

    def __init__(
        self,
        module: str,
        job: Mapping[str, Any],
        folder: Path,
        workdir: Path,
        start: Start,
        label: str,
    ) -> None:
        self.label = label
        self.text = ""
        self.ended = False
        self.limits = Limits()
        self._kills_before = out_of_memory_kills()
        self.open = True  # the pipe may still tell something
        self.answer: dict[str, Any] | None = None
        self._pending = b""
        self._told: dict[str, Any] | None = None  # an answer that came over the pipe
        job_file, self.result_file = folder / "job.json", folder / "result.json"
        self.log_file = folder / "log"
        told = json.dumps({"workdir": str(workdir), "job": job}, default=plain_json)
        try:
            job_file.write_text(told)
        except OSError as error:
            raise cannot_write(folder, error) from error
        with self.log_file.open("ab") as log:  # appended to from both sides
            self.process = start(module, job_file, self.result_file, log)
        self.pipe = self.process.output
        os.set_blocking(self.pipe.fileno(), False)

    def read(self, on_progress: Progress | None) -> None:
        """What the pipe holds: progress, and anything else goes to the log."""
        chunk = os.read(self.pipe.fileno(), 65536)
        if not chunk:
            self.open = False
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if not self.open and self._pending:
            lines.append(self._pending)
        for line in lines:
            self._hear(line, on_progress)

    def _hear(self, line: bytes, on_progress: Progress | None) -> None:
        if not line.startswith(PREFIX):
            with contextlib.suppress(OSError), self.log_file.open("ab") as log:
                log.write(line + b"\n")
            return
        self.limits.heard()
        try:
            said = json.loads(line[len(PREFIX) :])
            if "error" in said:  # its result cannot be written
                self._told = {"error": dict(said["error"])}
                return
            text, fraction = str(said["text"]), said.get("fraction")
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        self.text = text
        if on_progress is not None:
            on_progress(text, fraction)

    def look(self) -> None:
        """Whether it has ended, and with what answer."""
        if not self.ended and self.process.poll() is not None:
            # A result counts even if the process crashed afterwards: engines do so when they
            # shut down.
            self.answer = _read_result(self.result_file)
            self.ended = True

    def hung(self) -> str:
        """Why it is taken for one that hangs, in words; "" while it is not."""
        return "" if self.ended else self.limits.passed(self.process.leader, self.loading)

    @property
    def loading(self) -> bool:
        """Whether it has not yet come to the job itself."""
        return not self.process.started or not self.text or self.text.startswith("loading ")

    @property
    def failed(self) -> bool:
        """Whether it ended without a result."""
        if self.ended and not self.open and self.answer is None:
            self.answer = self._told
        return self.ended and (self.answer is None or "error" in self.answer)

    @property
    def lost_peers(self) -> bool:
        """Whether it failed for want of those that it works with."""
        return self.answer is not None and self.answer.get("error", {}).get("kind") == "peer"

    def where(self, doing: str) -> str:
        """What it was at, in words."""
        text = f"{doing}, {self.label}" if self.label else doing
        at = self.text or ("loading the engine" if not self.ended else "")
        return f"{text} ({at})" if at else text

    def error(self, doing: str) -> MemcliError:
        """Why it failed."""
        tail = tail_of(self.log_file)
        if self.answer is None:
            starved = out_of_memory_kills() > self._kills_before
            return _crash(self.process.status, self.where(doing), tail, starved=starved)
        error = _told_error(self.answer["error"], self.where(doing), tail)
        if self.label and type(error) is EngineFailed:
            return EngineFailed(f"{self.label}: {error.message}", error.hint)
        return error


def listen(
    children: Sequence[Child],
    on_progress: Progress | None,
    timeout: float | None,
    started: float,
) -> str:
    """Read progress until all children have ended, or one has failed.

    Waits for the children's end, not their pipes': a process that the engine left behind may hold a
    pipe open for ever.

    Args:
        children: processes that work together.
        on_progress: told of the first one's progress.
        timeout: seconds; None: any.
        started: when they were, by ``time.monotonic()``.

    Returns:
        "", or why they are to be ended, in words: the time is over, or all that still run hang.
    """
    failed_at: float | None = None
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.pipe, selectors.EVENT_READ, child)
        while True:
            for child in children:
                child.look()
            running = [child for child in children if not child.ended]
            wait = _POLL_SECONDS
            if timeout is not None and running:
                left = started + timeout - time.monotonic()
                if left <= 0:
                    return f"took longer than {timeout:g} s"
                wait = min(wait, left)
            hung = [child.hung() for child in running]
            if hung and all(hung):  # one that waits for another is none
                return hung[0]
            drained = [child for child in children if child.ended and child.open]
            ready = []
            if any(child.open for child in children):
                ready = [key.data for key, _ in selector.select(0 if drained else wait)]
            elif running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running[0].process.wait(wait)
            for child in ready:
                child.read(on_progress if child is children[0] else None)
            for child in drained:
                child.open = child.open and child in ready
            for child in children:
                if not child.open and child.pipe in selector.get_map():
                    selector.unregister(child.pipe)
            if not running and not any(child.open for child in children):
                return ""
            failed = [child for child in children if child.failed and not child.open]
            if failed:
                now = time.monotonic()
                failed_at = now if failed_at is None else failed_at
                # the one that began it may take longer to end than those that it left alone
                if not all(c.lost_peers for c in failed) or now - failed_at > _GRACE_SECONDS:
                    return ""


def end_all(children: Sequence[Child]) -> None:
    """Ends all, an interrupt in between or not."""
    for child in children:
        child.process.end()


class Spawned(subprocess.Popen[bytes]):
    """A fresh process of ``python -m module arguments...``, its working folder not on its path.

    ``environ``: all of its environment. ``log``: where its standard error goes; ``piped``: whether
    its standard output can be read. ``keep``: descriptors that it inherits. It ends with the
    thread that started it, on Linux.

    Raises EngineFailed if it cannot be started.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environ: Mapping[str, str],
        log: BinaryIO,
        piped: bool = True,
        keep: Sequence[int] = (),
    ) -> None:
        root = str(Path(__file__).resolve().parents[3])
        # the second number is for whoever looks at a list of processes
        numbers = [str(os.getpid()), str(unfinished.command_pid())]
        command = [sys.executable, "-c", _BOOTSTRAP, root, *numbers, module, *arguments]
        try:
            super().__init__(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else subprocess.DEVNULL,
                stderr=log,
                env=environ,
                pass_fds=keep,
                # A group of its own: Ctrl-C in the terminal goes to memcli alone, and everything
                # that the engine may have started can be ended with it.
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(
                f"Cannot start {sys.executable}: {error.strerror}.",
                "Is memory, or the number of processes, at its limit?",
            ) from error

    @property
    def output(self) -> BinaryIO:
        """The pipe that its standard output goes to."""
        assert self.stdout is not None
        return self.stdout  # type: ignore[return-value]

    @property
    def leader(self) -> int:
        """Itself."""
        return self.pid

    @property
    def started(self) -> bool:
        """From the beginning."""
        return True

    @property
    def status(self) -> int:
        """How it ended."""
        return int(self.returncode)

    def end(self) -> None:
        """End it and all of its process group, and wait for it."""
        while True:
            try:
                # The group may outlive its first process, so it is sent to in any case.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                # the kernel may hold it, on a disk or a card that does not answer
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(_END_SECONDS)
                if self.stdout is not None:
                    self.stdout.close()
                return
            except KeyboardInterrupt:
                # A second Ctrl-C: the first one is on its way up already.
                continue


def environment(env: Mapping[str, str | None] | None) -> dict[str, str]:
    """This process's environment with ``env`` laid over it; None takes a variable away."""
    merged = dict(os.environ)
    for name, value in (env or {}).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged


def _read_result(path: Path) -> dict[str, Any] | None:
    try:
        answer = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if isinstance(answer, dict) and ("result" in answer or "error" in answer):
        return answer
    return None


def tail_of(path: Path) -> str:
    """The last lines of the log, at most 64 KiB of it read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _told_error(error: Mapping[str, Any], where: str, tail: str) -> MemcliError:
    """The exception for an error that the worker told of itself."""
    message, hint = str(error.get("message", "")), str(error.get("hint", ""))
    kind = error.get("kind")
    if kind == "bad-input":
        return BadInput(message, hint)
    if kind in ("engine", "peer"):
        return EngineFailed(message, hint)
    return WorkerFailed(
        f"The engine's process failed while {where}: {message}", hint, error.get("trace") or tail
    )


def cannot_write(folder: Path, error: OSError) -> EngineFailed:
    """The error for a temporary file that cannot be written."""
    return EngineFailed(
        f"Cannot write temporary files to {folder}: {error.strerror or error}.",
        "Free some space there, or set TMPDIR to a folder with room.",
    )


_STARVED = "The kernel ended it for want of memory: try a smaller --batch, or a machine with more."
_SIGNAL_HELP = {
    "SIGKILL": "Perhaps for want of memory: try a smaller --batch, or a machine with more.",
    "SIGSEGV": "The engine itself crashes on this graph; see whether the original graph trains.",
    "SIGBUS": "Memory or the disk that temporary files are on may be full (see TMPDIR).",
    "SIGABRT": "The engine gave up. Where its words tell of memory, try a smaller --batch.",
    "SIGILL": "The engine was built for another kind of processor than this machine's.",
    "SIGFPE": "The engine divided by zero on this graph: a shape of size 0?",
    "SIGTERM": "Something outside memcli ended it.",
}
_CRASHES = {"SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"}


def _crash(code: int, where: str, tail: str, *, starved: bool) -> WorkerFailed:
    """The error for a child that ended without a result; ``code`` as Popen tells it.

    ``starved``: the kernel has ended a process for want of memory meanwhile.
    """
    last = _last_words(tail)
    said = f" Its last words: {last}" if last else ""
    if code > 0 and re.search(r"^(Segmentation fault|Fatal Error: Segm)", tail, re.MULTILINE):
        code = -signal.SIGSEGV  # MXNet's handler prints this and exits
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = _SIGNAL_HELP.get(name, "`memcli doctor` shows whether the engine works at all.")
        if starved and name == "SIGKILL":
            hint = _STARVED
        how = "crashed with" if name in _CRASHES else "was ended by"
        return WorkerFailed(
            f"The engine's process {how} {name} while {where}.{said}", hint, tail, -code
        )
    return WorkerFailed(
        f"The engine's process ended with status {code} and no result while {where}.{said}",
        "`memcli doctor` shows whether the engine works at all.",
        tail,
    )


def _last_words(tail: str) -> str:
    """The line of the log that says most: the last one that is no stack frame."""
    for line in reversed(tail.splitlines()):
        line = line.strip()
        if line and not re.match(r"(\[bt\]|Stack trace|File \"|Fatal Python|Current thread)", line):
            return line[:200]
    return ""


def plain_json(value: Any) -> Any:
    """JSON for numpy's scalars and for paths."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")
