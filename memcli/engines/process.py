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
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memcli.engines.child import (
    PREFIX,
    Child,
    PeerLost,
    Progress,
    WorkerFailed,
    end_all,
    listen,
    plain_json,
    tail_of,
)
from memcli.errors import BadInput, EngineFailed, MemcliError

__all__ = ["Handler", "PeerLost", "Progress", "WorkerFailed", "run_job", "run_jobs", "worker_main"]

Handler = Callable[[dict[str, Any], Path, Progress], dict[str, Any]]


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
    return run_jobs(
        module, [job], workdir=workdir, env=env, timeout=timeout, on_progress=on_progress,
        doing=doing,
    )[0]  # fmt: skip


def run_jobs(
    module: str,
    jobs: Sequence[Mapping[str, Any]],
    *,
    labels: Sequence[str] = (),
    workdir: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    timeout: float | None = None,
    on_progress: Progress | None = None,
    doing: str = "",
) -> list[dict[str, Any]]:
    """:func:`run_job` for processes that work together; their results in the order of ``jobs``.

    Progress is the first one's. As soon as one fails all are ended, and the error is of the one
    that began it, not of those that lost their connection to it; it names that one by ``labels``.
    """
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memcli-")))
        started = time.monotonic()
        children: list[Child] = []
        try:
            for number, job in enumerate(jobs):
                folder = _job_folder(workdir)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                label = labels[number] if labels else ""
                children.append(Child(module, job, folder, workdir, env, label))
            timed_out = listen(children, on_progress, timeout, started)
        finally:
            end_all(children)
        where = doing or f"running {module.rsplit('.', 1)[-1]}"
        if timed_out:
            slow = next(child for child in children if not child.ended)
            raise WorkerFailed(
                f"The engine's process took longer than {timeout:g} s: {slow.where(where)}.",
                "A smaller batch (--batch N) takes less time.",
                tail_of(slow.log_file),
            )
        failed = [child for child in children if child.failed]
        if failed:
            # who only lost the others is not who began it; without a word of its own it crashed
            first = min(failed, key=lambda child: (child.lost_peers, child.answer is not None))
            raise first.error(where)
        return [child.answer["result"] for child in children if child.answer is not None]


def _job_folder(workdir: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="job-", dir=workdir))
    except OSError as error:
        raise EngineFailed(
            f"Cannot write to {workdir}: {error.strerror}.",
            "Free some space there, or set TMPDIR to a folder with room.",
        ) from error


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
        text = json.dumps(answer, default=plain_json)
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
        if isinstance(error, PeerLost):
            kind = "peer"
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
