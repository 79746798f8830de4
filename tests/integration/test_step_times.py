"""Functions of ONNX files timed by PyTorch itself, and the commands that plan by these times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from memcli.cli.main import status
from memcli.engines.costs import Costs
from memcli.engines.operator_times import OperatorTimes
from memcli.engines.torch.memory.model import step_seconds
from memcli.engines.torch.planning import analyze_file
from memcli.engines.torch.record import TorchAnalysis
from memcli.engines.torch.timing import measure_step_seconds
from memcli.formats.onnx.file import read_onnx
from memcli.graph.roofline import MACHINES
from memcli.request import ShapeRequest
from tests.conftest import Command, only_json
from tests.small_onnx import Model, residual_network


def mixed_network(path: Path) -> Path:
    """Two blocks alike, a wide convolution, Dropout, an LSTM that is recomputed with gradients."""
    m = Model()
    x = m.convolution("image", "stem", 32, 3)
    for block in ("a", "b"):
        x = m.normalised(m.convolution(x, block, 32, 32, size=1), f"{block}_norm", 32)
    x = m.node("Relu", [m.convolution(x, "wide", 64, 32)], "last")
    ratio, mode = m.weight("ratio", value=0.5), "training"
    m.weights.append(_true(mode))
    x = m.node("Dropout", [x, ratio, mode], "drop", 2)
    x = m.node("GlobalAveragePool", [x], "mean")
    x = m.node("Reshape", [x, m.constant("shape", 1, -1, 64)], "steps")
    weights = [m.weight("lw", 1, 64, 64), m.weight("lr", 1, 64, 16), m.weight("lb", 1, 128)]
    x = m.node("LSTM", [x, *weights], "lstm", hidden_size=16)
    return m.write(path, {"image": ("N", 3, 64, 64)}, {x: (1, 1, "N", 16)})


def _true(name: str):  # type: ignore[no-untyped-def]
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(True), name)


def analysis_of(path: Path, batch: int) -> TorchAnalysis:
    return analyze_file(read_onnx(str(path)), ShapeRequest(batch=batch), "cpu", None)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> TorchAnalysis:
    return analysis_of(mixed_network(tmp_path_factory.mktemp("net") / "mixed.onnx"), 4)


@pytest.fixture(scope="module")
def times(analysis: TorchAnalysis) -> OperatorTimes:
    return measure_step_seconds(analysis)


def of(analysis: TorchAnalysis, found: OperatorTimes, output: str) -> float:
    return float(found.seconds[[step["output"] for step in analysis.steps].index(output)])


def test_every_step_has_a_time(analysis: TorchAnalysis, times: OperatorTimes) -> None:
    assert len(times.seconds) == len(analysis.steps) == analysis.trace.n_steps
    assert np.isfinite(times.seconds).all() and (times.seconds > 0).all()
    assert times.measured.all(), (times.notes, times.failed)
    assert (times.estimated_kinds, times.failed, len(times.notes)) == (0, {}, 1)


def test_alike_steps_are_timed_once(analysis: TorchAnalysis, times: OperatorTimes) -> None:
    for name in ("{}", "{}_norm", "{}_norm_relu"):
        assert of(analysis, times, name.format("a")) == of(analysis, times, name.format("b"))
    makes = int(analysis.model.exact.makes.sum())
    assert times.timed_kinds == makes - 3
    assert f"{makes - 3} kinds of operators, {makes - 3} timed on cpu" in times.notes[0]


def test_a_convolution_costs_more_than_a_relu(
    analysis: TorchAnalysis, times: OperatorTimes
) -> None:
    wide, relu = of(analysis, times, "wide"), of(analysis, times, "last")
    # 600 FLOPs for each number that it writes, against one; how many times as long that takes
    # depends on what else the machine does
    assert wide > relu
    assert wide > of(analysis, times, "stem") > times.launch_seconds
    # a view makes nothing, and nothing is ever recomputed for it
    assert of(analysis, times, "steps") == times.launch_seconds < 1e-3


def test_no_time_left_is_estimated_by_the_roofline(analysis: TorchAnalysis) -> None:
    found = measure_step_seconds(analysis, limit_seconds=0.0)
    makes = analysis.model.exact.makes
    assert found.timed_kinds == 0
    assert found.why == {"for want of time": found.estimated_kinds}
    expected = step_seconds(analysis.trace, MACHINES["cpu"])
    assert found.seconds[makes] == pytest.approx(np.maximum(expected, found.launch_seconds)[makes])
    assert "for want of time" in found.notes[1]


def test_another_batch_is_scaled(analysis: TorchAnalysis, tmp_path: Path) -> None:
    other = analysis_of(mixed_network(tmp_path / "mixed.onnx"), 8)
    costs = Costs("measured")
    costs.give(analysis)
    assert len(costs.notes) == 1
    costs.give(other)
    costs.give(other)  # once is enough
    assert len(costs.notes) == 1  # and nothing was timed again
    ratio = analysis.model.seconds / step_seconds(analysis.trace)
    assert other.model.seconds == pytest.approx(step_seconds(other.trace) * ratio)


def test_plan_by_measured_times(memcli: Command, tmp_path: Path) -> None:
    path = residual_network(tmp_path / "net.onnx", blocks=2)
    done = memcli(
        "plan",
        str(path),
        "--batch",
        "4",
        "--cost",
        "measured",
        "--budget",
        "60%",
        "--strategy",
        "dp",
        "-o",
        "planned.onnx",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    assert "kinds of operators" in done.stderr and "timed on cpu" in done.stderr
    assert plan["cost"]["kind"] == "measured" and 0 < plan["cost"]["fraction"] < 1
    assert plan["memory"]["planned_bytes"] <= 0.6 * plan["memory"]["baseline_bytes"]
    assert (tmp_path / "planned.onnx").exists()


def test_compare_by_measured_times(memcli: Command, tmp_path: Path) -> None:
    path = residual_network(tmp_path / "net.onnx", blocks=2)
    done = memcli(
        "compare",
        str(path),
        "--strategy",
        "cheap",
        "--budget",
        "70%",
        "--cost",
        "measured",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    told = only_json(done)
    assert told["cost"] == {"kind": "measured"} and "timed on cpu" in told["notes"][-1]
    again = [row["recompute"] for row in told["rows"]]
    assert all((part["time_fraction"] > 0) == (part["fraction"] > 0) for part in again)


def test_fit_by_measured_times(memcli: Command, tmp_path: Path) -> None:
    path = residual_network(tmp_path / "net.onnx", blocks=1)
    done = memcli(
        "fit",
        str(path),
        "--cpu",
        "--memory",
        "150KiB",
        "--reserve=0",
        "--cost",
        "measured",
        "--shape",
        "2,3,16,16",
        "--strategy",
        "cheap",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = only_json(done)
    assert found["planned"]["batch"] >= found["unplanned"]["batch"] > 0
    assert found["planned"]["cost"]["kind"] == "measured"
    # timed at one batch alone
    assert sum("timed on cpu" in note for note in found["notes"]) == 1


def test_a_missing_card_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    path = str(residual_network(tmp_path / "net.onnx", blocks=1))
    out = tmp_path / "p.onnx"
    for arguments in (
        ["plan", path, "--gpu", "0", "-o", str(out)],
        ["compare", path, "--gpu", "0"],
        ["fit", path, "--memory", "1GiB", "-o", str(out)],
    ):
        assert status([*arguments, "--cost", "measured"]) == 3
        said = capsys.readouterr()
        assert said.out == "" and "No GPU here" in said.err and "--cost roofline" in said.err
        assert not out.exists()


def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(residual_network(tmp_path / "net.onnx", blocks=1))
    for arguments, said in (
        (["plan", path, "--cost", "measured", "--gpu", "first"], "not the number of a card"),
        (["compare", path, "--cost", "measured", "--gpu", "-1"], "not the number of a card"),
        (["fit", path, "--memory", "1GiB", "--gpu", "0"], "--cost measured"),
        (["fit", path, "--memory", "1GiB", "--cost", "measured", "--cpu", "--gpu", "0"], "--cpu"),
        (["plan", path, "--cost", "guessed"], "guessed"),
    ):
        assert status(arguments) == 2
        found = capsys.readouterr()
        assert found.out == "" and said in found.err
