"""The side of an engine's process that runs the job.

The other side is :mod:`memcli.engines.processes.jobs`. The job comes as a JSON file, the result
goes into another one. What the engine prints goes to standard error, which is a log; standard
output is for progress.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from memcli.engines.processes.parent_side import PREFIX, PeerLost, Progress, plain_json
from memcli.errors import BadInput, MemcliError
from memcli.parent_process import die_with_parent

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
Handler = Callable[[dict[str, Any], Path, Progress], dict[str, Any]]


def boot() -> None:
    """Entry of the child: argv = ["-c", root, parent, command, module, job file, result file].

    ``parent`` and ``command`` are numbers of processes: that which started it, and the command's.
    """
    import runpy

    _root, parent, _command, module, *rest = sys.argv[1:]
    die_with_parent(int(parent))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def worker_main(handler: Handler) -> NoReturn:
    """The child: reads the job that argv names, runs ``handler``, writes its result, ends.

    MemcliErrors, errors of MXNet and want of memory are told to the parent as what they are. Does
    not return: engines are left without the tear-down in which they like to crash.
    """
    if len(sys.argv) != 3:
        print(f"usage: python -m {sys.argv[0]} JOBFILE RESULTFILE", file=sys.stderr)
        os._exit(2)
    answer_job(handler, Path(sys.argv[1]), Path(sys.argv[2]))


def answer_job(handler: Handler, job_file: Path, result_file: Path) -> NoReturn:
    """:func:`worker_main` for a job that is told by arguments."""
    # Standard output becomes the progress pipe's private end; whatever prints goes to the log.
    pipe = os.dup(1)
    os.set_inheritable(pipe, False)
    os.dup2(2, 1)

    def say(told: dict[str, Any]) -> None:
        data = PREFIX + json.dumps(told).encode() + b"\n"
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(pipe, data) :]

    def progress(text: str, fraction: float | None = None) -> None:
        say({"text": text, "fraction": fraction})

    answer: dict[str, Any]
    try:
        told = json.loads(job_file.read_text())
        answer = {"result": handler(told["job"], Path(told["workdir"]), progress)}
        text = json.dumps(answer, default=plain_json)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            traceback.print_exc()
        text = json.dumps({"error": describe_error(error)})
    status = 0
    try:
        partial = result_file.with_suffix(".part")
        partial.write_text(text)
        os.replace(partial, result_file)
    except OSError as error:
        say({"error": describe_error(error)})
        with contextlib.suppress(OSError):
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
    if "larger than 2^31 elements" in text:
        return {
            "kind": "bad-input",
            "message": "MXNet has no tensors of more than 2^31 elements, and the graph would have",
            "hint": "give a smaller --batch or --shape",
        }
    if any(c.__name__ == "MXNetError" for c in type(error).__mro__):
        half = re.search(r"FP16 .* on cpu|float16 .* CuDNN", text)
        hint = "--engine torch trains it in PyTorch, which has float16 on the CPU" if half else ""
        return {"kind": "engine", "message": f"MXNet: {engine_text(text)}", "hint": hint}
    if isinstance(error, OSError) and error.errno in _FULL:
        where = error.filename or f"temporary files in {os.environ.get('TMPDIR', '/tmp')}"
        return {
            "kind": "engine",
            "message": f"Cannot write {where}: {error.strerror}",
            "hint": "Free some space there, or set TMPDIR to a folder with room.",
        }
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
