"""``verify`` by the real command: equal bits, measured memory, and a no where results differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memcli.formats.symbol.file import SymbolFile
from tests.conftest import EXAMPLES, ONCE, Command, needs_mxnet, only_json

pytestmark = needs_mxnet

LSTM = str(EXAMPLES / "lstm-symbol.json")
QUICK = ("--strategy", "sqrt")  # where any plan will do


@pytest.mark.slow
def test_plan_measured_in_one_command(memcli: Command) -> None:
    result = memcli("plan", LSTM, "-o", "p.json", "--batch", "16", "--measure", "--json")
    assert result.returncode == 0, result.stderr
    plan = only_json(result)
    verified = plan["verify"]
    assert verified["ok"] is True and verified["engine"] == "mxnet"
    for part in ("outputs", "gradients"):
        assert verified[part]["compared"] == verified[part]["bit_equal"] > 0
        assert verified[part]["max_abs_diff"] == 0.0
    for run in ("baseline", "planned"):
        estimate, measured = verified[run]["estimated_bytes"], verified[run]["measured_bytes"]
        assert measured == pytest.approx(estimate, rel=0.03)
        assert verified[run]["step_seconds"] > 0
    assert verified["planned"]["measured_bytes"] < verified["baseline"]["measured_bytes"]
    # the measurement is the engine's: it never is the estimate to the byte in every stage
    stages = verified["stages"]
    assert [s["index"] for s in stages] == [s["index"] for s in plan["stages"]]
    assert any(s["estimated_bytes"] != s["measured_bytes"] for s in stages)
    for stage in stages:
        assert stage["measured_bytes"] == pytest.approx(stage["estimated_bytes"], rel=0.05)


@pytest.mark.slow
def test_newest_plan_and_its_original_are_found(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(Path(LSTM).read_bytes())
    assert memcli("plan", "model.json", "-o", "p.json", "--batch", "2", *QUICK).returncode == 0
    result = memcli("verify", *ONCE, "--json")
    verified = only_json(result)
    assert result.returncode == 0 and "p.json" in result.stderr
    assert verified["original"].startswith("model.json")
    (tmp_path / "model.json").write_text("{}")
    again = only_json(memcli("verify", *ONCE, "--json"))
    assert "plan taken off" in again["original"] and again["ok"] is True


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_a_no(memcli: Command, tmp_path: Path) -> None:
    assert memcli("plan", LSTM, "-o", "p.json", "--batch", "2", *QUICK).returncode == 0
    raw = json.loads((tmp_path / "p.json").read_text())
    node = next(n for n in raw["nodes"] if n.get("attrs", {}).get("act_type") == "sigmoid")
    node["attrs"]["act_type"] = "tanh"
    (tmp_path / "p.json").write_text(json.dumps(raw))
    result = memcli("verify", "p.json", "--original", LSTM, *ONCE)
    assert result.returncode == 1, result.stderr
    assert "NOT verified" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_gpu_that_is_not_there(memcli: Command, tmp_path: Path) -> None:
    assert memcli("plan", LSTM, "-o", "p.json", "--batch", "2", *QUICK).returncode == 0
    result = memcli("verify", "p.json", "--gpu", "97")
    assert result.returncode == 3
    assert "GPU" in result.stderr
    assert "Traceback" not in result.stderr


def test_smaller_batch_for_verifying_alone(memcli: Command) -> None:
    assert memcli("plan", LSTM, "-o", "p.json", *QUICK).returncode == 0
    verified = only_json(memcli("verify", "p.json", "--batch", "4", *ONCE, "--json"))
    assert verified["ok"] is True
    assert verified["shapes"]["t0_data"] == [4, 50]


@pytest.mark.slow
def test_a_plan_that_plain_kernels_refuse_is_made_for_them(memcli: Command, tmp_path: Path) -> None:
    """Convolutions whose output nobody reads run on oneDNN alone."""
    source = EXAMPLES / "mobilenet-v2-symbol.json"
    options = ("--shape", "data=4,3,128,128", "--budget", "50%", "-o", "p.json", "--json")
    plan = only_json(memcli("plan", str(source), *options))
    assert plan["kernels"] == "plain" and plan["environment"]["MXNET_MKLDNN_ENABLED"] == "0"
    planned = SymbolFile.read(tmp_path / "p.json")
    assert planned.stripped().raw == json.loads(source.read_bytes())
    report = only_json(memcli("verify", "p.json", *ONCE, "--json"))
    assert report["ok"]
    assert not any("oneDNN" in note for note in report["notes"])
    # with oneDNN on, its own buffers are several times as much
    assert report["planned"]["measured_bytes"] < 1.05 * plan["memory"]["planned_bytes"]


def test_float16_that_the_cpu_cannot_train_says_what_can(memcli: Command) -> None:
    options = ("--batch", "2", "--dtype", "float16", *QUICK)
    assert memcli("plan", LSTM, "-o", "p.json", *options).returncode == 0
    result = memcli("verify", "p.json")
    assert result.returncode == 3
    assert "float16" in result.stderr and "--engine torch" in result.stderr.splitlines()[-1]


def test_a_card_that_is_not_there_is_told_before_the_search(
    memcli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # nor where there is one
    model = EXAMPLES / "mobilenet-v2-symbol.json"
    result = memcli("plan", str(model), "-o", "p.json", "--measure", "--gpu", "0")
    assert result.returncode == 3 and result.stdout == ""
    assert "No GPU here" in result.stderr and "planning" not in result.stderr
    assert not (tmp_path / "p.json").exists()
