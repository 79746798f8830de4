"""Runs an engine in a process of its own.

An engine can crash (some graphs make MXNet fault), run out of memory, print to standard output
from C++, or leave a process that cannot exit. So it never runs in the CLI's own process:
``run_job`` starts ``python -m MODULE JOBFILE RESULTFILE``, and
:mod:`memcli.engines.processes.worker` is the other end.

The child's standard error, and what it prints to standard output, goes to a file; its progress
comes over a pipe as lines ``@progress {"text": ..., "fraction": ...}``; its result is a JSON file
(large arrays: files that the worker writes into the job's ``workdir``).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from memcli.engines.processes import forkserver
from memcli.engines.processes.forked import Forked
from memcli.engines.processes.limits import VARIABLE
from memcli.engines.processes.parent_side import (
    Child,
    EngineProcess,
    Progress,
    Spawned,
    Start,
    WorkerFailed,
    cannot_write,
    end_all,
    environment,
    listen,
    tail_of,
)


def run_job(
    module: str,
    job: Mapping[str, Any],
    *,
    workdir: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    timeout: float | None = None,
    on_progress: Progress | None = None,
    doing: str = "",
    preloaded: bool = False,
    here: bool = False,
) -> dict[str, Any]:
    """Run a job in ``python -m module``.

    No process is left behind, whatever happens, an interrupt by the user included.

    Args:
        module: has ``handle``, see :func:`memcli.engines.processes.worker.worker_main`.
        job: what to do, as JSON.
        workdir: the caller's folder for large files, given to the handler; None: a temporary one
            that is gone afterwards.
        env: laid over this process's environment; a value of None takes a variable away.
        timeout: seconds.
        on_progress: told what the job says of its progress.
        doing: in a few words what the job is, for messages ("training one step of planned.json");
            the last progress text is added.
        preloaded: in a fork of a process that has the module's engine loaded
            (:mod:`memcli.engines.processes.forkserver`).
        here: in a fork of this process, for what it alone knows
            (:mod:`memcli.engines.processes.forked`).

    Returns:
        What the job's handler returned.

    Raises:
        BadInput: the job says so.
        EngineFailed: the job says so, or as a WorkerFailed: it crashed, was killed, took longer
            than ``timeout`` or hangs (:mod:`memcli.engines.processes.limits`).
    """
    return run_jobs(
        module,
        [job],
        workdir=workdir,
        env=env,
        timeout=timeout,
        on_progress=on_progress,
        doing=doing,
        preloaded=preloaded,
        here=here,
    )[0]


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
    preloaded: bool = False,
    here: bool = False,
) -> list[dict[str, Any]]:
    """Run jobs in processes that work together; see :func:`run_job`.

    Progress is the first one's. As soon as one fails all are ended, and the error is of the one
    that began it, not of those that lost their connection to it.

    Args:
        module: as for :func:`run_job`.
        jobs: one for each process.
        labels: what messages call each.
        workdir: as for :func:`run_job`.
        env: as for :func:`run_job`.
        timeout: as for :func:`run_job`.
        on_progress: as for :func:`run_job`.
        doing: as for :func:`run_job`.
        preloaded: as for :func:`run_job`.
        here: as for :func:`run_job`.

    Returns:
        Results in the order of ``jobs``.

    Raises:
        BadInput: as for :func:`run_job`.
        EngineFailed: as for :func:`run_job`.
    """
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memcli-")))
        started = time.monotonic()
        start: Start = Forked if here else _start(environment(env), preloaded)
        children: list[Child] = []
        try:
            for number, job in enumerate(jobs):
                folder = _job_folder(workdir)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                label = labels[number] if labels else ""
                children.append(Child(module, job, folder, workdir, start, label))
            late = listen(children, on_progress, timeout, started)
        finally:
            end_all(children)
        where = doing or f"running {module.rsplit('.', 1)[-1]}"
        if late:
            slow = next(child for child in children if not child.ended)
            raise WorkerFailed(
                f"The engine's process {late}, and was ended: {slow.where(where)}.",
                "`memcli doctor` shows whether the engine works; a smaller batch takes less time"
                f" (--batch N); {VARIABLE}=SECONDS is the longest wait.",
                tail_of(slow.log_file),
            )
        failed = [child for child in children if child.failed]
        if failed:
            # who only lost the others is not who began it; without a word of its own it crashed
            first = min(failed, key=lambda child: (child.lost_peers, child.answer is not None))
            raise first.error(where)
        return [child.answer["result"] for child in children if child.answer is not None]


def _start(environ: dict[str, str], preloaded: bool) -> Start:
    """How a job's process is started."""

    def spawned(module: str, job_file: Path, result_file: Path, log: BinaryIO) -> EngineProcess:
        return Spawned(module, str(job_file), str(result_file), environ=environ, log=log)

    def forked(module: str, job_file: Path, result_file: Path, log: BinaryIO) -> EngineProcess:
        return forkserver.host(module, environ).start(job_file, result_file, log)

    return forked if preloaded and forkserver.AVAILABLE else spawned


def _job_folder(workdir: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="job-", dir=workdir))
    except OSError as error:
        raise cannot_write(workdir, error) from error
