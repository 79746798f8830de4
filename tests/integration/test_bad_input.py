"""Bad input ends with exit status 2, one clear message, nothing written and no traceback."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcli.cli.main import status
from tests.conftest import (
    CORPUS,
    EXAMPLES,
    ROOT,
    Command,
    needs_corpus,
    needs_mxnet,
    start_memcli,
)

LSTM = EXAMPLES / "lstm-symbol.json"
RESNET = EXAMPLES / "resnet-50-symbol.json"


def assert_refused(result: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    """Exit status 2, one or two lines that hold ``words``, and no plan in the folder."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    beside = ("planning:", "comparing:", "fitting:", "note:")
    lines = [x for x in result.stderr.splitlines() if not x.startswith(beside)]
    assert 1 <= len(lines) <= 2, result.stderr
    assert lines[0].startswith("memcli: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert not (folder / "out.json").exists()
    assert not list(folder.glob(".memcli-*"))


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    raw = json.loads(LSTM.read_text())
    change(raw)
    return json.dumps(raw).encode()


BROKEN: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("model.json", "empty")),
    "truncated": (LSTM.read_bytes()[:5000], ("model.json",)),
    "random bytes": (random.Random(0).randbytes(400), ("model.json",)),
    "a list": (b"[1, 2, 3]", ("model.json",)),
    "no nodes": (edited(lambda raw: raw.pop("nodes")), ("model.json", "nodes")),
    "nodes of a wrong type": (edited(lambda raw: raw.update(nodes=7)), ("nodes",)),
    "no heads": (edited(lambda raw: raw.pop("heads")), ("heads",)),
    "a node without op": (edited(lambda raw: raw["nodes"][3].pop("op")), ("nodes[3]", "op")),
    "an input too high": (
        edited(lambda raw: raw["nodes"][20].update(inputs=[[10**6, 0, 0]])),
        ("nodes[20]", "1000000"),
    ),
    "a cycle": (
        edited(lambda raw: raw["nodes"][raw["heads"][0][0]].update(inputs=[raw["heads"][0]])),
        ("cycle",),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(memcli: Command, tmp_path: Path, name: str) -> None:
    data, words = BROKEN[name]
    (tmp_path / "model.json").write_bytes(data)
    assert_refused(memcli("plan", "model.json", "-o", "out.json"), tmp_path, *words)
    assert (tmp_path / "model.json").read_bytes() == data


@needs_mxnet
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n.update(op="NoSuchOperator"), ("NoSuchOperator", "has no operator")),
        (lambda n: n.update(op="_contrib_quantized_conv"), ("quantized", "integers")),
        (lambda n: n.update(op="_cond"), ("_cond", "control flow")),
        (lambda n: n.update(attrs={"num_hidden": "many"}), ("num_hidden",)),
    ],
)
def test_graphs_that_mxnet_cannot_train(
    memcli: Command, tmp_path: Path, change: Callable[[Any], Any], words: tuple[str, ...]
) -> None:
    def apply(raw: dict[str, Any]) -> None:
        change(next(n for n in raw["nodes"] if n["op"] == "FullyConnected"))

    (tmp_path / "model.json").write_bytes(edited(apply))
    assert_refused(memcli("plan", "model.json", "-o", "out.json"), tmp_path, *words)


@needs_mxnet
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shape", "data=0,3,224,224"), ("positive",)),
        (("--shape", "data=-1,3,224,224"), ("positive",)),
        (("--shape", "data=1000000000000,3,224,224"), ("absurd",)),
        (("--shape", "data=a,b"), ("not a shape",)),
        (("--shape", "nosuch=1,2"), ("nosuch", "no input of that name")),
        (("--shape", "data=4,5"), ("fit",)),
        (("--batch", "0"), ("--batch 0",)),
        (("--batch", "-4"), ("--batch -4",)),
        (("--budget", "lots"), ("lots", "not a size")),
        (("--strategy", "best"), ("--strategy",)),
        (("--dtype", "float99"), ("--dtype",)),
        (("--gpu", "0"), ("--measure",)),
        (("--max-recompute", "-1"), ("--max-recompute",)),
        (("--no-such-option",), ("--no-such-option",)),
    ],
)
def test_bad_options(
    memcli: Command, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = memcli("plan", str(RESNET), "-o", "out.json", *options)
    assert_refused(result, tmp_path, *words)


def test_paths_that_cannot_be(memcli: Command, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_bytes(LSTM.read_bytes())
    before = model.read_bytes()
    assert_refused(memcli("plan", "nowhere.json"), tmp_path, "nowhere.json")
    assert_refused(memcli("plan", "."), tmp_path, "folder")
    same = memcli("plan", "model.json", "-o", "./model.json", "--force")
    assert_refused(same, tmp_path, "never overwritten")
    os.symlink("model.json", tmp_path / "link.json")
    linked = memcli("plan", "model.json", "-o", "link.json", "--force")
    assert_refused(linked, tmp_path, "never overwritten")
    (tmp_path / "there.json").write_text("mine")
    assert_refused(memcli("plan", "model.json", "-o", "there.json"), tmp_path, "there.json")
    assert (tmp_path / "there.json").read_text() == "mine"
    assert_refused(memcli("plan", "model.json", "-o", "no/folder/out.json"), tmp_path, "no/folder")
    assert_refused(memcli("verify", "nowhere.json"), tmp_path, "nowhere.json")
    assert_refused(memcli("verify"), tmp_path, "newest plan")
    assert_refused(memcli("verify", "model.json"), tmp_path, "no plan")
    assert model.read_bytes() == before


def test_an_onnx_file_without_nodes_is_refused(memcli: Command, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    (tmp_path / "model").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert_refused(memcli("plan", "model"), tmp_path, "no nodes")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weight", "view"])
def test_an_onnx_file_that_trains_no_node_is_refused(
    memcli: Command, tmp_path: Path, what: str
) -> None:
    """Its output is a weight, or a view of one: no plan is any other than the next."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from tests.small_onnx import Model

    m = Model()
    m.node("MatMul", ["x", m.weight("w", 4, 4)], "product")
    output = "w" if what == "weight" else m.node("Transpose", ["w"], "turned")
    m.write(tmp_path / "m.onnx", {"x": ("n", 4)}, {output: (4, 4)})
    words = f"m.onnx: no node of the graph is trained through: its outputs ('{output}')"
    for arguments in (
        ("plan", "m.onnx", "-o", "out.json"),
        ("plan", "m.onnx", "-o", "out.json", "--strategy", "cheap", "--gpu", "0"),
        ("compare", "m.onnx"),
        ("fit", "m.onnx", "--memory", "1MiB", "--reserve", "0"),
    ):
        assert_refused(memcli(*arguments), tmp_path, words, "should be")
    inspected = memcli("inspect", "m.onnx")  # what the file says itself is shown all the same
    assert inspected.returncode == 0 and "Traceback" not in inspected.stderr
    assert words in inspected.stderr and "MatMul" in inspected.stdout
    m.write(tmp_path / "both.onnx", {"x": ("n", 4)}, {output: (4, 4), "product": ("n", 4)})
    for command in ("plan", "compare"):
        done = memcli(command, "both.onnx")
        assert done.returncode == 0, done.stderr


@needs_mxnet
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = start_memcli("plan", str(RESNET), "-o", "out.json", cwd=tmp_path)
    assert process.stderr is not None
    started = process.stderr.readline()  # all is imported, MXNet is at work
    time.sleep(1.5)
    os.kill(process.pid, number)  # a scheduler ends the command, not its engine
    _, errors = process.communicate(timeout=60)
    assert started.startswith("planning: ")
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("out.json")) == [] and list(tmp_path.glob(".memcli-*")) == []
    assert list(temporary.iterdir()) == []


NUMBERS = [
    ("plan", "--seed", "-1"),
    ("plan", "--seed", "9" * 23),
    ("compare", "--seed", "-1"),
    ("verify", "--seed", "-1"),
    ("plan", "--time-limit", "nan"),
    ("fit", "--time-limit", "nan"),
    ("plan", "--max-recompute", "nan"),
    ("plan", "--max-recompute", "-3"),
    ("plan", "--budget", "9" * 400),
    ("solve", "--time-limit", "nan"),
]


@pytest.mark.parametrize("given", NUMBERS, ids=lambda g: " ".join(g)[:24])
def test_impossible_numbers_are_refused(
    given: tuple[str, str, str], tmp_path: Path, memcli: Command
) -> None:
    command, option, value = given
    more = ("--memory", "1GiB") if command == "fit" else ()
    result = memcli(command, str(LSTM), option, value, *more, timeout=30)
    assert_refused(result, tmp_path, value[:20])


def test_a_reader_that_has_enough_is_no_failure(tmp_path: Path) -> None:
    for arguments in (["--help"], ["plan", "--help"], ["doctor"]):
        process = start_memcli(*arguments, cwd=tmp_path)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(60), errors) == (0, ""), arguments


def test_output_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no full device")
    with full.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "memcli", "doctor"],
            cwd=tmp_path,
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "memcli: standard output cannot be written to: No space left on device"
    ]


def test_no_command_shows_the_help(memcli: Command) -> None:
    result = memcli()
    assert result.returncode == 2
    assert "memcli plan resnet-50-symbol.json" in result.stderr and "\n" in result.stderr.strip()


@needs_mxnet
def test_more_elements_than_a_tensor_may_have(tmp_path: Path, memcli: Command) -> None:
    result = memcli("plan", str(RESNET), "--batch", "2000000000", "-o", "out.json")
    assert_refused(result, tmp_path, "2^31", "--batch")


@needs_mxnet
def test_no_as_an_answer_is_an_object_too(memcli: Command) -> None:
    result = memcli("plan", str(LSTM), "--batch", "2", "--budget", "1KB", "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert found["ok"] is False and "the least is" in found["error"]["message"]


# As numba's compiler does: compiled code calls back, and then fails for want of what the call was
# to give, or goes on for a while.
INTERRUPTED_CALLBACK = """
import ctypes, signal, sys, time, click
from memcli.cli import main as cli

@click.command()
def command():
    done = []
    def inside():
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    ctypes.CFUNCTYPE(None)(inside)()
    if sys.argv[1] == "fails" and not done:
        raise RuntimeError("no compiled object yet")
    time.sleep(30)

cli.LazyGroup.get_command = lambda *_: command
cli.run(["plan"])
"""


@pytest.mark.parametrize("what", ["fails", "goes on"])
def test_an_interrupt_inside_compiled_code_is_an_interrupt(tmp_path: Path, what: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_CALLBACK, what],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.strip() == "memcli: interrupted; nothing was written"


# A market split problem (Cornuejols and Dawande 1998): small, and hours of branch and bound.
INTERRUPTED_SOLVER = """
import os, random, signal, threading, click
from memcli import milp_solver as highs
from memcli.cli import main as cli

@click.command()
def command():
    chance = random.Random(0)
    solver = highs.silent_solver(time_limit=60.0)
    columns = [solver.addBinary() for _ in range(50)]
    for _ in range(6):
        weights = [chance.randrange(100) for _ in columns]
        solver.addConstr(sum(w * x for w, x in zip(weights, columns)) == sum(weights) // 2)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    highs.run(solver)

cli.LazyGroup.get_command = lambda *_: command
cli.run(["plan"])
"""


def test_an_interrupt_while_a_program_is_solved_is_an_interrupt(tmp_path: Path) -> None:
    pytest.importorskip("highspy")
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_SOLVER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.strip() == "memcli: interrupted; nothing was written"


def mutate(data: bytes, seed: int) -> bytes:
    """One change to a real file: bytes flipped, cut, or a JSON value put in another's place."""
    chance = random.Random(seed)
    kind = chance.randrange(3)
    if kind == 0:
        at = chance.randrange(len(data))
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[: chance.randrange(len(data))]
    raw = json.loads(data)
    node = chance.choice(raw["nodes"])
    key = chance.choice(list(node))
    node[key] = chance.choice([None, -1, 10**12, "x", [], {}, [[0]], [[0, 0]], True, 1.5])
    return json.dumps(raw).encode()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**9))
def test_mutated_files_never_crash_the_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """In this process and with an operator that MXNet lacks, so that none gets to the engine."""
    data = LSTM.read_bytes().replace(b'"SliceChannel"', b'"NoSuchOperator"')
    path = tmp_path / "mutated.json"
    path.write_bytes(mutate(data, seed))
    from memcli.engines.mxnet.planning import read_symbol
    from memcli.errors import BadInput

    try:
        read_symbol(str(path))
    except BadInput as error:
        assert 1 <= len(error.lines()) <= 2
        assert all("\n" not in line for line in error.lines())


@needs_mxnet
@needs_corpus
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**9))
def test_mutated_files_end_well_through_the_whole_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seed: int
) -> None:
    data = (CORPUS / "gh-miraclewkf-LeNet.json").read_bytes()
    path = tmp_path / "mutated.json"
    path.write_bytes(mutate(data, seed))
    code = status(["plan", str(path), "-o", str(tmp_path / "out.json"), "--json", "--force"])
    out, errors = capfd.readouterr()
    assert code in (0, 2, 3), errors
    assert "Traceback" not in errors
    answer = json.loads(out)
    assert code == 0 or answer["error"]["status"] == code
