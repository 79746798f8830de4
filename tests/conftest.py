"""Shared by all tests: the examples, the corpus where it is there, and the command itself."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import linecache
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
CORPUS = ROOT.parent / "shared" / "corpus" / "mxnet"

# Markers, to choose tests by (pytest -m "not mxnet"); without the engine their tests are skipped.
needs_mxnet = pytest.mark.mxnet
needs_torch = pytest.mark.torch
_ENGINES = ("mxnet", "torch")
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of graphs is not here")

Command = Callable[..., subprocess.CompletedProcess[str]]

# MXNet on its plain kernels alone, and no step timed: for tests that look at neither.
ONCE = ("--kernels", "plain", "--steps", "0")

# In the background of a shell, or under nohup, signals are ignored, and commands inherit that.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that skip themselves without PyTorch, and skips those whose engine is missing."""
    missing = {name for name in _ENGINES if importlib.util.find_spec(name) is None}
    for item in items:
        if isinstance(item, pytest.Function) and _asks_for_torch(item):
            item.add_marker(pytest.mark.torch)
        for name in missing:
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"{name} is not installed"))


def _asks_for_torch(item: pytest.Function) -> bool:
    """Whether the test, or its module as it is imported, does ``pytest.importorskip("torch")``."""
    asks = 'pytest.importorskip("torch")'
    return asks in inspect.getsource(item.function) or any(
        asks in line and not line.startswith(" ") for line in _lines(item.module.__file__ or "")
    )


@functools.cache
def _lines(path: str) -> tuple[str, ...]:
    return tuple(linecache.getlines(path))


def run_memcli(*arguments: str, cwd: Path, timeout: float = 300) -> Any:
    """The real command in a real process; its state kept within ``cwd``."""
    environment = dict(os.environ, XDG_STATE_HOME=str(cwd / "state"), COLUMNS="80")
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "memcli", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start_memcli(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """The real command, started in a process group of its own, for a test to interrupt."""
    return subprocess.Popen(
        [sys.executable, "-m", "memcli", *arguments],
        cwd=cwd,
        env={**os.environ, "XDG_STATE_HOME": str(cwd), "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def memcli(tmp_path: Path) -> Command:
    """``memcli(...)`` run in an empty folder."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_memcli(*arguments, cwd=tmp_path, **options)

    return run


def only_json(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Standard output, which must be exactly one JSON object."""
    assert result.stdout.strip(), result.stderr
    return json.loads(result.stdout)


def stock(path: Path, shapes: dict[str, Any], environment: dict[str, str], *types: str) -> Any:
    """What MXNet itself says of a file, under the environment that a plan asks for."""
    script = ROOT / "tests" / "integration" / "stock.py"
    result = subprocess.run(
        [sys.executable, str(script), str(path), json.dumps(shapes), *types],
        env={**os.environ, **environment, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])
