"""Signals at any moment, engines that hang, disks that are full: how a command ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memcli.engines.processes.jobs import run_job
from memcli.engines.processes.parent_side import WorkerFailed
from memcli.errors import EngineFailed

from ..conftest import ROOT, needs_mxnet, start_memcli
from .test_engine_mxnet import assert_gone

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

SMALL = {
    "nodes": [
        {"op": "null", "name": "data", "attrs": {"__shape__": "(4, 3)"}, "inputs": []},
        {"op": "Activation", "name": "act", "attrs": {"act_type": "tanh"}, "inputs": [[0, 0, 0]]},
    ],
    "arg_nodes": [0],
    "heads": [[1, 0, 0]],
    "attrs": {"mxnet_version": ["int", 10901]},
}


# --------------------------------------------------------------------------- the command

# A command that is interrupted at the moment at which its file takes its name.
PLACING = """
import os, signal, sys, click
from memcli.cli import main as cli
from memcli.formats.atomic import write_atomically

when, call, number, out = sys.argv[1:]

@click.command()
def command():
    real = getattr(os, call)
    def placed(*arguments):
        if when == "before":
            signal.raise_signal(int(number))
            signal.pause()
        real(*arguments)
        signal.raise_signal(int(number))
        signal.pause()
    setattr(os, call, placed)
    write_atomically(out, b"whole", overwrite=call == "replace")

cli.LazyGroup.get_command = lambda *_: command
cli.run(["plan"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("call", ["link", "replace"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_has_its_name_is_said_to_be_written(
    tmp_path: Path, when: str, call: str, number: signal.Signals
) -> None:
    out = tmp_path / "out.json"
    if call == "replace":
        out.write_bytes(b"old")
    ran = subprocess.run(
        [sys.executable, "-c", PLACING, when, call, str(int(number)), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 128 + number, ran.stderr
    by = "" if number == signal.SIGINT else f" by {number.name}"
    if when == "before":
        assert ran.stderr == f"memcli: interrupted{by}; nothing was written\n"
        assert not out.exists() if call == "link" else out.read_bytes() == b"old"
    else:
        assert ran.stderr == f"memcli: interrupted{by}; {out} was written\n"
        assert out.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == ([out] if out.exists() else [])


CRASHES = """
import os, sys, click
from memcli.cli import main as cli

@click.command()
def command():
    os.kill(os.getpid(), int(sys.argv[1]))

cli.LazyGroup.get_command = lambda *_: command
cli.run(["plan"])
"""


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "may have been out of"), (signal.SIGSEGV, "fault")]
)
def test_a_command_that_crashes_says_so(tmp_path: Path, number: int, words: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CRASHES, str(int(number)), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 3
    assert signal.Signals(number).name in ran.stderr and words in ran.stderr
    assert "nothing was written" in ran.stderr and len(ran.stderr.splitlines()) == 2
    assert json.loads(ran.stdout)["error"]["status"] == 3


# What was started within a command, and started again by that: a process that heeds no signal.
ORPHANS = """
import subprocess, sys, time, click
from memcli.cli import main as cli

@click.command()
def command():
    code = ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "print('up', flush=True); time.sleep(100)")
    again = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}]).wait()"
    started = subprocess.Popen(
        [sys.executable, "-c", again], start_new_session=True, stdout=subprocess.PIPE
    )
    started.stdout.readline()
    if sys.argv[1] == "wait":
        print("up", flush=True)
        time.sleep(100)

cli.LazyGroup.get_command = lambda *_: command
cli.run(["plan"])
"""


@linux
@pytest.mark.parametrize("how", ["wait", "end"])
def test_what_a_command_started_ends_with_it(tmp_path: Path, how: str) -> None:
    mark = f"MEMCLI_MARK={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MEMCLI_MARK": str(tmp_path)},
    )
    assert process.stdout is not None
    if how == "wait":
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == (143 if how == "wait" else 0)
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    for pid in found:
        assert_gone(pid)
    process.communicate()


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    code = CRASHES.replace(
        "os.kill(os.getpid(), int(sys.argv[1]))",
        ("os.kill(os.getpid(), int(sys.argv[1])); import time; time.sleep(0.5); print('went on')"),
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(int(signal.SIGHUP))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=30,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "went on\n", "")


def test_the_library_takes_no_signals(tmp_path: Path) -> None:
    code = (
        "import signal; before = [signal.getsignal(n) for n in (2, 15, 1)]\n"
        "import memcli, memcli.memonger, memcli.cli.main, memcli.engines.mxnet.planning\n"
        "assert [signal.getsignal(n) for n in (2, 15, 1)] == before\n"
        "assert signal.set_wakeup_fd(-1) == -1"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_streams_that_the_caller_has_closed(tmp_path: Path, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    process = subprocess.Popen(
        [sys.executable, "-m", "memcli", "--version"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        preexec_fn=close,
    )
    assert process.wait(30) == 0
    assert process.stderr is not None and process.stderr.read() == b""


def test_a_full_disk_of_temporary_files_is_not_standard_output(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps(SMALL))
    (tmp_path / "temporary").mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "memcli", "inspect", "net.json"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(tmp_path / "temporary"),
            "XDG_STATE_HOME": str(tmp_path),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        # no file may grow: what a full disk does, for who cannot make one
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert ran.returncode == 3, ran.stderr
    assert "emporary files" in ran.stderr and "TMPDIR" in ran.stderr
    assert "standard output" not in ran.stderr and "Traceback" not in ran.stderr


# --------------------------------------------------------------------------- engines

ENGINE = """
import os, time
from memcli.engines.processes.worker import worker_main

def load():
    (at := os.environ["MEMCLI_AT"]) and open(at, "w").write(str(os.getpid()))
    how = os.environ["MEMCLI_HOW"]
    if how == "load asleep":
        time.sleep(100)
    while how == "load busy":
        pass
    if how == "load ends":
        os._exit(0)

def handle(job, workdir, progress):
    load()
    progress("training", 0.5)
    how = os.environ["MEMCLI_HOW"]
    if how == "asleep":
        time.sleep(100)
    while how == "busy":
        pass
    if how == "ends":
        os._exit(0)
    return {}

if __name__ == "__main__":
    worker_main(handle)
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has an engine run, or hang, in the given way; its error."""
    (tmp_path / "odd_engine.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("MEMCLI_AT", str(tmp_path / "pid"))
    monkeypatch.setenv("MEMCLI_ENGINE_LIMIT", "4")

    def run(how: str, preloaded: bool) -> EngineFailed:
        monkeypatch.setenv("MEMCLI_HOW", how)
        with pytest.raises(EngineFailed) as caught:
            run_job("odd_engine", {}, doing="training net.json", preloaded=preloaded)
        return caught.value

    return run


@linux
@pytest.mark.parametrize(
    ("how", "preloaded", "words"),
    [
        ("load asleep", True, "did nothing for 2 s, and was ended: .*loading the engine"),
        ("load busy", True, "was not ready after 4 s, and was ended: .*loading the engine"),
        ("load asleep", False, "did nothing for 2 s"),
        ("asleep", True, r"did nothing for 2 s, and was ended: training net.json \(training\)"),
        ("busy", False, r"no progress for 4 s, and was ended: training net.json \(training\)"),
    ],
)
def test_an_engine_that_hangs_is_ended(
    engine: Any, tmp_path: Path, how: str, preloaded: bool, words: str
) -> None:
    began = time.monotonic()
    error = engine(how, preloaded)
    assert time.monotonic() - began < 15
    assert error.exit_status == 3
    with pytest.raises(EngineFailed, match=words):
        raise error
    assert_gone(int((tmp_path / "pid").read_text()))


@linux
@pytest.mark.parametrize(
    ("how", "preloaded"), [("load ends", True), ("ends", True), ("ends", False)]
)
def test_an_engine_that_ends_without_a_result_was_not_killed(
    engine: Any, how: str, preloaded: bool
) -> None:
    error = engine(how, preloaded)
    assert "ended with status 0 and no result" in error.message
    assert isinstance(error, WorkerFailed) and error.signal is None
    assert "SIGKILL" not in error.message and "memory" not in error.hint


@linux
@needs_mxnet
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("how", ["time.sleep(1000)", "exec('while True: pass')"])
def test_an_engine_that_hangs_while_it_loads_ends_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, how: str
) -> None:
    (tmp_path / "mxnet").mkdir()
    (tmp_path / "mxnet" / "__init__.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{how}\n"
    )
    (tmp_path / "net.json").write_text(json.dumps(SMALL))
    process = start_memcli(
        "inspect",
        "net.json",
        cwd=tmp_path,
        TMPDIR=str(tmp_path),
        PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
    )
    pid = tmp_path / "pid"
    wait_for(pid)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert process.returncode == (130 if number == signal.SIGINT else -9), errors
    assert_gone(int(pid.read_text()))


def wait_for(file: Path) -> None:
    for _ in range(600):
        if file.exists() and file.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{file} is not there")


ASKING = """
import signal
from memcli.engines.processes.jobs import run_job
signal.signal(signal.SIGINT, signal.default_int_handler)
run_job("odd_engine", {}, preloaded=True)
"""


@linux
def test_an_engine_that_hangs_does_not_hold_a_program_of_the_users(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMCLI_HOW", "load busy")
    process = subprocess.Popen([sys.executable, "-c", ASKING], stderr=subprocess.PIPE)
    wait_for(tmp_path / "pid")
    process.send_signal(signal.SIGINT)
    assert process.wait(3) == -signal.SIGINT  # a KeyboardInterrupt, as everywhere in Python
    assert process.stderr is not None and b"KeyboardInterrupt" in process.stderr.read()
    assert_gone(int((tmp_path / "pid").read_text()))


# The caller's own thread may end: a host is for all of them.
THREADS = """
import os, threading
from memcli.engines.processes.jobs import run_job

def ask():
    print(run_job("odd_engine", {}, preloaded=True), flush=True)

for _ in range(3):
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
print(open(os.environ["MEMCLI_AT"]).read())
"""


@linux
def test_a_host_outlives_the_thread_that_first_asked(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMCLI_HOW", "well")
    ran = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.splitlines()[:3] == ["{}"] * 3, ran.stderr
