"""Runs an engine in a process of its own.

An engine can crash (some graphs make MXNet fault), run out of memory, print to standard output
from C++, or leave a process that cannot exit. So it never runs in the CLI's own process:
``run_job`` starts ``python -m MODULE JOBFILE RESULTFILE``, and ``worker_main`` is the other end.

The child's standard error, and what it prints to standard output, goes to a file; its progress
comes over a pipe as lines ``@progress {"text": ..., "fraction": ...}``; its result is a JSON file
(large arrays: files that the worker writes into the job's ``workdir``).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from memcli.errors import BadInput, EngineFailed, MemcliError

Progress = Callable[[str, float | None], None]
Handler = Callable[[dict[str, Any], Path, Progress], dict[str, Any]]

PREFIX = b"@progress "
_TAIL_LINES = 30
_POLL_SECONDS = 0.2

# What the child runs before the module: -m would put the current folder first on the path, where
# a file of the user's named numpy.py would be found, and -P exists from Python 3.11 only.
_BOOTSTRAP = (
    "import sys; sys.path.pop(0); root = sys.argv[1]; "
    "root in sys.path or sys.path.insert(0, root); "
    "from memcli.engines.process import _boot; _boot()"
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


# --------------------------------------------------------------------------- the parent's side


def run_job(
    module: str,
    job: Mapping[str, Any],
    *,
    workdir: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    timeout: float | None = None,
    on_progress: Progress | None = None,
    doing: str = "",
) -> dict[str, Any]:
    """Runs ``job`` (JSON) in ``python -m module`` and returns what its handler returned.

    ``workdir`` is the caller's folder for large files, given to the handler; None: a temporary
    one that is gone afterwards. ``env`` is laid over this process's environment, a value of None
    takes a variable away. ``timeout`` in seconds. ``doing`` says in a few words what the job is,
    for error messages ("training one step of planned.json"); the last progress text is added.

    Raises BadInput or EngineFailed as the worker says, WorkerFailed (an EngineFailed) if it
    crashed, was killed or took longer than ``timeout``. No process is left behind, whatever
    happens, an interrupt by the user included.
    """
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memcli-")))
        try:
            folder = Path(tempfile.mkdtemp(prefix="job-", dir=workdir))
        except OSError as error:
            raise EngineFailed(
                f"Cannot write to {workdir}: {error.strerror}.",
                "Free some space there, or set TMPDIR to a folder with room.",
            ) from error
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return _run(module, job, folder, workdir, env, timeout, on_progress, doing)


def _run(
    module: str,
    job: Mapping[str, Any],
    folder: Path,
    workdir: Path,
    env: Mapping[str, str | None] | None,
    timeout: float | None,
    on_progress: Progress | None,
    doing: str,
) -> dict[str, Any]:
    job_file, result_file, log_file = folder / "job.json", folder / "result.json", folder / "log"
    job_file.write_text(json.dumps({"workdir": str(workdir), "job": job}, default=_plain))
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _BOOTSTRAP, root, str(os.getpid()), module]
    command += [str(job_file), str(result_file)]
    started = time.monotonic()
    with log_file.open("wb") as log:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(env),
                # A group of its own: Ctrl-C in the terminal goes to memcli alone, and
                # everything that the engine may have started can be ended with it.
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(
                f"Cannot start {sys.executable}: {error.strerror}.",
                "Is memory, or the number of processes, at its limit?",
            ) from error
        try:
            last = _listen(child, log, on_progress, timeout, started)
        finally:
            _end(child)
    where = doing or f"running {module.rsplit('.', 1)[-1]}"
    if last.text:
        where = f"{where} ({last.text})"
    if last.timed_out:
        raise WorkerFailed(
            f"The engine's process took longer than {timeout:g} s: {where}.",
            "A smaller batch (--batch N) takes less time.",
            _tail(log_file),
        )
    # A result counts even if the process crashed afterwards: engines do so when they shut down.
    answer = _read_result(result_file)
    if answer is None:
        raise _crash(child.returncode, where, _tail(log_file))
    if "error" in answer:
        raise _told_error(answer["error"], where, _tail(log_file))
    return answer["result"]


class _Heard:
    """What the pipe told: the last progress text, and whether time ran out."""

    def __init__(self) -> None:
        self.text = ""
        self.timed_out = False


def _listen(
    child: subprocess.Popen[bytes],
    log: BinaryIO,
    on_progress: Progress | None,
    timeout: float | None,
    started: float,
) -> _Heard:
    """Reads progress until the child has ended or ``timeout`` seconds since ``started`` are over.

    Waits for the child's end, not the pipe's: a process that the engine left behind may hold the
    pipe open for ever.
    """
    heard = _Heard()
    assert child.stdout is not None
    pipe = child.stdout
    os.set_blocking(pipe.fileno(), False)
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        open_pipe = True
        while True:
            ended = child.poll() is not None
            wait = _POLL_SECONDS
            if timeout is not None:
                left = started + timeout - time.monotonic()
                if left <= 0 and not ended:
                    heard.timed_out = True
                    break
                wait = max(0.0, min(wait, left))
            if not open_pipe:
                if ended:
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(wait)
                continue
            ready = selector.select(0 if ended else wait)
            if not ready:
                if ended:
                    break
                continue
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                open_pipe = False
                selector.unregister(pipe)
                continue
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                _hear(line, heard, log, on_progress)
        if pending:
            _hear(pending, heard, log, on_progress)
    return heard


def _hear(line: bytes, heard: _Heard, log: BinaryIO, on_progress: Progress | None) -> None:
    if not line.startswith(PREFIX):
        log.write(line + b"\n")
        log.flush()
        return
    try:
        said = json.loads(line[len(PREFIX) :])
        text, fraction = str(said["text"]), said.get("fraction")
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    heard.text = text
    if on_progress is not None:
        on_progress(text, fraction)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and all of its process group, and waits for it."""
    while True:
        try:
            # The group may outlive its first process, so it is sent to in any case.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
            return
        except KeyboardInterrupt:
            # A second Ctrl-C: the first one is on its way up already.
            continue


def _environment(env: Mapping[str, str | None] | None) -> dict[str, str]:
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


def _tail(path: Path) -> str:
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
    if kind == "engine":
        return EngineFailed(message, hint)
    return WorkerFailed(
        f"The engine's process failed while {where}: {message}", hint, error.get("trace") or tail
    )


_SIGNAL_HELP = {
    "SIGKILL": "It was probably out of memory: try a smaller --batch, or a machine with more.",
    "SIGSEGV": "The engine itself faults on this graph; see whether the original graph trains.",
    "SIGBUS": "Memory or the disk that temporary files are on may be full (see TMPDIR).",
    "SIGABRT": "The engine gave up; often memory is short: try a smaller --batch.",
    "SIGILL": "The engine was built for another kind of processor than this machine's.",
    "SIGFPE": "The engine divided by zero on this graph: a shape of size 0?",
    "SIGTERM": "Something outside memcli ended it.",
}


def _crash(code: int, where: str, tail: str) -> WorkerFailed:
    """The error for a child that ended without a result; ``code`` as Popen tells it."""
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
        return WorkerFailed(
            f"The engine's process was ended by {name} while {where}.{said}", hint, tail, -code
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


# --------------------------------------------------------------------------- the child's side


def _boot() -> None:
    """Entry of the child: argv = ["-c", root, parent's pid, module, job file, result file]."""
    import runpy

    _root, parent, module, *rest = sys.argv[1:]
    _die_with_parent(int(parent))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when memcli is gone (Linux; elsewhere nothing)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the call above
        os._exit(1)


def worker_main(handler: Handler) -> None:
    """The child: reads the job that argv names, runs ``handler``, writes its result, ends.

    MemcliErrors, errors of MXNet and want of memory are told to the parent as what they are. Does
    not return: engines are left without the tear-down in which they like to crash.
    """
    if len(sys.argv) != 3:
        print(f"usage: python -m {sys.argv[0]} JOBFILE RESULTFILE", file=sys.stderr)
        os._exit(2)
    job_file, result_file = Path(sys.argv[1]), Path(sys.argv[2])
    # Standard output becomes the progress pipe's private end; whatever prints goes to the log.
    pipe = os.dup(1)
    os.set_inheritable(pipe, False)
    os.dup2(2, 1)

    def progress(text: str, fraction: float | None = None) -> None:
        line = json.dumps({"text": text, "fraction": fraction})
        with contextlib.suppress(OSError):
            os.write(pipe, PREFIX + line.encode() + b"\n")

    answer: dict[str, Any]
    try:
        told = json.loads(job_file.read_text())
        answer = {"result": handler(told["job"], Path(told["workdir"]), progress)}
        text = json.dumps(answer, default=_plain)
    except BaseException as error:
        traceback.print_exc()
        text = json.dumps({"error": describe_error(error)})
    status = 0
    try:
        partial = result_file.with_suffix(".part")
        partial.write_text(text)
        os.replace(partial, result_file)
    except OSError:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def describe_error(error: BaseException) -> dict[str, str]:
    """{"kind", "message", "hint", "trace"} of an exception in a worker, for its parent."""
    if isinstance(error, MemcliError):
        kind = "bad-input" if error.exit_status == BadInput.exit_status else "engine"
        return {"kind": kind, "message": error.message, "hint": error.hint}
    text = str(error)
    if isinstance(error, MemoryError) or re.search(
        r"bad_alloc|out of memory|[Ff]ailed to allocate|[Cc]annot allocate memory", text
    ):
        return {
            "kind": "engine",
            "message": f"The engine ran out of memory: {engine_text(text) or 'no memory left'}",
            "hint": "Try a smaller --batch, or a machine or card with more memory.",
        }
    if any(c.__name__ == "MXNetError" for c in type(error).__mro__):
        return {"kind": "engine", "message": f"MXNet: {engine_text(text)}", "hint": ""}
    if isinstance(error, OSError) and error.filename:
        return {"kind": "engine", "message": f"{error.filename}: {error.strerror}", "hint": ""}
    return {
        "kind": "bug",
        "message": f"{type(error).__name__}: {text.splitlines()[0] if text else ''}",
        "hint": "",
        "trace": traceback.format_exc(),
    }


def engine_text(text: str) -> str:
    """The one line of an engine's error message that says what is wrong.

    MXNet's begin with a stack trace and with the place in its own sources.
    """
    lines = [line.strip() for line in text.splitlines()]
    lines = [
        line
        for line in lines
        if line and not re.match(r"(\[bt\]|Stack trace|Traceback|File \"|\(\d+\)|-+$)", line)
    ]
    # An error that went through Python on its way has the line that counts further down.
    for at, line in enumerate(lines):
        if re.match(r"MXNetError: |Error in operator", line) or "Check failed" in line:
            lines = lines[at:]
            break
    place = r"(^|(?<= ))(MXNetError: )?(\[[\d:]+\] )?([\w./-]+\.(cc|h|cu):\d+: )?"
    cleaned = [re.sub(place, "", line) for line in lines]
    return " ".join(cleaned[:2])[:400]


def _plain(value: Any) -> Any:
    """JSON for numpy's scalars and for paths."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go into JSON")
