"""Help and usage errors are answered before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memcli.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"numpy", "numba", "onnx", "rich", "mxnet", "torch"}
SCRIPT = """
import contextlib, io, sys
from memcli.cli.main import status
for arguments in {arguments!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert status(arguments) == {status}, arguments
print(*sorted({heavy!r} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], 0),
        ([["plan"], ["plan", "a", "--nope"], ["fit", "a"], ["solv"], ["verify", "--steps=x"]], 2),
    ],
)
def test_help_and_usage_errors_load_nothing_heavy(arguments: list[list[str]], status: int) -> None:
    code = SCRIPT.format(arguments=arguments, status=status, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
