"""``--json`` where a command ends with status 1, 2 or 3: one object, in standard error's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcli.cli.main import status
from memcli.commands import verify as verify_command
from memcli.engines import doctor as doctor_command
from memcli.engines.doctor import Check
from memcli.errors import EngineFailed
from tests.conftest import EXAMPLES, Command, needs_mxnet
from tests.integration.test_solve import training_graph
from tests.unit.test_verdict import MIB, Run, verified

LSTM = str(EXAMPLES / "lstm-symbol.json")


def error_of(stdout: str, stderr: str, code: int) -> dict[str, Any]:
    """The error in the one object on standard output; standard error has its words."""
    answer = json.loads(stdout)
    assert answer["schema"] == 1
    error = answer["error"]
    assert error["status"] == code
    assert error["message"] and isinstance(error["mend"], str)
    lines = [f"memcli: {error['message']}"] + ([f"  {error['mend']}"] if error["mend"] else [])
    assert stderr.splitlines()[-len(lines) :] == lines
    assert set(answer) == {"schema", "ok", "error"} and answer["ok"] is False
    return error


def test_status_1_of_solve_has_the_nearest_schedule(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(training_graph()))
    done = memcli("solve", "graph.json", "--budget", "30B", "--json")
    assert done.returncode == 1
    error = error_of(done.stdout, done.stderr, 1)
    assert "the least peak found is 40 B" in error["message"]
    assert error["nearest"] == {"peak": 40, "peak_lower_bound": 40}


@needs_mxnet
def test_status_1_of_plan_has_the_nearest_plan(memcli: Command, tmp_path: Path) -> None:
    done = memcli(
        "plan",
        LSTM,
        "--batch",
        "2",
        "--strategy",
        "sqrt",
        "--budget",
        "1KB",
        "-o",
        "out.json",
        "--json",
    )
    assert done.returncode == 1
    nearest = error_of(done.stdout, done.stderr, 1)["nearest"]
    found = json.loads(memcli("plan", LSTM, "--batch", "2", "--strategy", "sqrt", "--json").stdout)
    assert 1000 < nearest["memory"]["planned_bytes"] <= found["memory"]["planned_bytes"]
    assert nearest["memory"]["lower_bound_bytes"] <= nearest["memory"]["planned_bytes"]
    assert nearest["recompute"]["forward_flops"] == found["recompute"]["forward_flops"]
    assert not (tmp_path / "out.json").exists()


USAGE = {
    "an option that does not exist": (["plan", "net.json", "--no-such", "--json"], "--no-such"),
    "a value that cannot be": (["plan", "net.json", "--batch", "many", "--json"], "'many'"),
    "a command that does not exist": (["plann", "net.json", "--json"], "plann"),
    "an argument that is missing": (["plan", "--json"], "MODEL"),
    "in front of the command": (["--json", "plan", "net.json"], "--json"),
    "bad input": (["plan", "net.json", "--json"], "net.json"),
    "two results for one stream": (["plan", "net.json", "-o", "-", "--json"], "-o -"),
}


@pytest.mark.parametrize("case", USAGE)
def test_status_2(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = USAGE[case]
    assert status(arguments) == 2
    said = capsys.readouterr()
    assert words in error_of(said.out, said.err, 2)["message"]
    # the same without --json: nothing on standard output
    assert status([a for a in arguments if a != "--json"]) == 2 or "--json" in words
    if "--json" not in words:
        assert capsys.readouterr().out == ""


def test_status_2_of_the_real_command(memcli: Command) -> None:
    done = memcli("inspect", "absent.json", "--json")
    assert done.returncode == 2
    assert "absent.json" in error_of(done.stdout, done.stderr, 2)["message"]


def test_a_file_of_that_name_asks_for_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(["plan", "--", "--json"]) == 2
    assert capsys.readouterr().out == ""


@needs_mxnet
def test_status_3_of_a_card_that_is_not_there(memcli: Command) -> None:
    done = memcli("plan", LSTM, "--measure", "--gpu", "97", "-o", "out.json", "--json")
    assert done.returncode == 3
    assert "GPU" in error_of(done.stdout, done.stderr, 3)["message"]


def test_status_3_of_an_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise EngineFailed("MXNet ended by SIGKILL", "try a smaller --batch")

    monkeypatch.setattr(verify_command, "verify", fails)
    assert status(["verify", LSTM, "--json"]) == 3
    said = capsys.readouterr()
    error = error_of(said.out, said.err, 3)
    assert error == {
        "status": 3,
        "message": "MXNet ended by SIGKILL",
        "mend": "try a smaller --batch",
    }


def test_verify_that_says_no_shows_what_it_measured_and_the_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(200 * MIB, 200 * MIB, 1.0, 0)
    over = verified(run, Run(90 * MIB, 160 * MIB, 1.0, 0))
    monkeypatch.setattr(verify_command, "verify", lambda *_, **__: over)
    assert status(["verify", LSTM, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["planned"]["measured_bytes"] == 160 * MIB and answer["memory_ok"] is False
    assert answer["error"]["status"] == 1
    assert "more memory than estimated" in answer["error"]["message"]
    monkeypatch.setattr(verify_command, "verify", lambda *_, **__: verified(run, run))
    assert status(["verify", LSTM, "--json"]) == 0
    assert "error" not in json.loads(capsys.readouterr().out)


def test_doctor_without_an_engine_shows_its_checks_and_the_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check("mxnet", False, "is not installed", "pip install 'memcli[mxnet]'")]
    monkeypatch.setattr(doctor_command, "check_all", lambda: checks)
    assert status(["doctor", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in answer["checks"]] == ["mxnet"] and answer["ok"] is False
    assert answer["error"]["status"] == 3
    assert answer["error"]["message"] == "no engine works here"
    assert "memcli doctor" in answer["error"]["mend"]
