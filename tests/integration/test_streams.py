"""Models through pipes, results on standard output, and files that mean harm, as whole commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest

from memcli.formats.onnx.file import read_onnx
from tests.conftest import ROOT, needs_mxnet
from tests.unit.test_hostile_files import SYMBOL, chain_of, onnx_model, planned_symbol


def run(
    *arguments: str, cwd: Path, given: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The real command with ``given`` on its standard input."""
    more = {"XDG_STATE_HOME": str(cwd / "state"), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "memcli", *arguments],
        cwd=cwd,
        input=given,
        timeout=120,
        env={**os.environ, **more},
        capture_output=True,
    )


def refused(result: subprocess.CompletedProcess[bytes], *words: str) -> None:
    text = result.stderr.decode()
    assert result.returncode == 2, text
    assert "Traceback" not in text
    if "--json" in result.args:
        assert json.loads(result.stdout)["error"]["status"] == 2
    else:
        assert result.stdout == b""
    assert text.isascii() and "\x1b" not in text
    for word in words:
        assert word in text


def trained() -> bytes:
    """A small ONNX model with a parameter."""
    import numpy as np
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["y"])]
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    model: onnx.ModelProto = onnx_model(*nodes, initializer=[weight])
    return model.SerializeToString()


def test_a_model_from_standard_input_and_a_plan_to_standard_output(tmp_path: Path) -> None:
    result = run("plan", "-", "--strategy", "cheap", "-o", "-", cwd=tmp_path, given=trained())
    assert result.returncode == 0, result.stderr
    assert b"wrote the planned graph to standard output" in result.stderr  # the report, too
    (tmp_path / "planned.onnx").write_bytes(result.stdout)
    assert read_onnx(tmp_path / "planned.onnx").plan() is not None
    verified = run("verify", "-", "--json", cwd=tmp_path, given=result.stdout)
    assert json.loads(verified.stdout)["ok"]
    assert not (tmp_path / "-").exists()


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    feeding = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(trained(),))
    feeding.start()
    result = run("plan", "pipe", "--strategy", "none", "-o", "out.onnx", "--json", cwd=tmp_path)
    feeding.join(10)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["model"]["path"] == "pipe"
    assert (tmp_path / "out.onnx").exists()


@needs_mxnet
def test_a_symbol_from_dev_stdin(tmp_path: Path) -> None:
    given = json.dumps(SYMBOL).encode()
    result = run("inspect", "/dev/stdin", "--json", cwd=tmp_path, given=given)
    assert json.loads(result.stdout)["model"]["format"] == "mxnet-symbol", result.stderr


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        (["plan", "-", "-o", "-", "--json"], trained(), ("-o -", "--json")),
        (["plan", "-", "-o", "-", "--measure"], trained(), ("--measure",)),
        (["plan", "-"], b"", ("standard input: is empty",)),
        (["verify", "-", "--original", "-"], trained(), ("standard input",)),
        (["inspect", "-"], trained()[:40], ("standard input",)),
        (["solve", "-", "-o", "-", "--json"], b"{}", ("-o -", "--json")),
    ],
)
def test_what_standard_streams_cannot_be(
    tmp_path: Path, arguments: list[str], given: bytes, words: tuple[str, ...]
) -> None:
    refused(run(*arguments, cwd=tmp_path, given=given), *words)


def test_solve_reads_and_writes_standard_streams(tmp_path: Path) -> None:
    graph = {
        "nodes": [{"id": 0, "duration": 1, "out_cost": 1}, {"id": 1, "duration": 1, "out_cost": 1}],
        "links": [{"source": 0, "target": 1}],
        "directed": True,
    }
    result = run("solve", "-", "-o", "-", cwd=tmp_path, given=json.dumps(graph).encode())
    assert json.loads(result.stdout)["schedule"] == [0, 1], result.stderr


def test_a_terminal_is_given_no_graph(tmp_path: Path) -> None:
    """On a terminal ``-o -`` would print whatever names the file has."""
    (tmp_path / "net.onnx").write_bytes(trained())
    ours, its = os.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "memcli", "plan", "net.onnx", "-o", "-"],
        cwd=tmp_path,
        stdout=its,
        stderr=subprocess.PIPE,
        stdin=its,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path)},
    )
    os.close(ours)
    os.close(its)
    assert process.returncode == 2 and b"standard output is a terminal" in process.stderr


@pytest.mark.parametrize("command", ["verify", "inspect", "plan", "compare", "fit"])
def test_no_process_is_started_for_a_record_that_names_a_library(
    tmp_path: Path, command: str
) -> None:
    """Were one started, Python would import the file that stands in the folder."""
    harm = {"MXNET_LIBRARY_PATH": str(tmp_path / "evil.so"), "PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text("open('harmed', 'w')")
    (tmp_path / "planned.json").write_bytes(planned_symbol(environment=harm))
    more = ["--memory", "1GiB"] if command == "fit" else []
    refused(run(command, "planned.json", *more, cwd=tmp_path), "planned.json", "MXNET_LIBRARY_PATH")
    assert not (tmp_path / "harmed").exists()


def test_names_that_the_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    """The report is printed after the file is written: it says so, whatever the terminal knows."""
    import numpy as np
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Mul", ["x", "w"], ["y"], name="größe\x1b[2J")]
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.save(onnx_model(*nodes, initializer=[weight]), tmp_path / "nét.onnx")
    result = run(
        "plan",
        "nét.onnx",
        "--strategy",
        "none",
        "-o",
        "größe.onnx",
        cwd=tmp_path,
        PYTHONIOENCODING="ascii",
        PYTHONUTF8="0",
    )
    assert result.returncode == 0, result.stderr
    assert b"wrote gr\\xf6\\xdfe.onnx" in result.stdout
    assert b"\x1b" not in result.stdout and (tmp_path / "größe.onnx").exists()


def test_a_translator_that_fails_names_the_node(tmp_path: Path) -> None:
    """Numbers that the schema allows and that mean nothing are bad input, not a failed engine."""
    from onnx import helper

    odd: dict[str, Any] = {"kernel_shape": [3, 3, 3], "strides": [0]}
    pool = helper.make_node("MaxPool", ["x"], ["y"], name="it", **odd)
    onnx.save(onnx_model(pool), tmp_path / "net.onnx")
    refused(run("plan", "net.onnx", "-o", "out.onnx", cwd=tmp_path), "net.onnx", "it", "MaxPool")
    assert not (tmp_path / "out.onnx").exists()


def test_a_graph_that_is_too_large_ends_at_once(tmp_path: Path) -> None:
    onnx.save(onnx_model(*chain_of("Relu", 200_000)), tmp_path / "net.onnx")
    refused(run("plan", "net.onnx", cwd=tmp_path), "200000 nodes", "up to 50000")
