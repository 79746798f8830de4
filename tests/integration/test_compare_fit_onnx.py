"""``memcli compare`` and ``memcli fit`` of ONNX files, by the real commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memcli.cli.main import status
from tests.conftest import EXAMPLES, Command, only_json
from tests.integration.test_compare import frontier

pytest.importorskip("torch")

BLOCKS, CHANNELS, SIDE = 6, 16, 32


def network(path: Path, *, batch: str | int = "batch", flat: tuple[int, int] = (0, -1)) -> Path:
    """Convolutions with BatchNorm (not in training mode), sums around them, a classifier."""
    rng = np.random.default_rng(0)
    held, nodes = [], []

    def tensor(name: str, values: Any, kind: type = np.float32) -> str:
        held.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    last = "x"
    for k in range(BLOCKS):
        fan = 3 if k == 0 else CHANNELS
        weight = tensor(f"b{k}.conv.weight", 0.1 * rng.standard_normal((CHANNELS, fan, 3, 3)))
        conv = node("Conv", [last, weight], f"conv{k}", pads=[1, 1, 1, 1])
        rows = [
            tensor(f"b{k}.bn.{n}", np.full(CHANNELS, v))
            for n, v in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1))
        ]
        made = node("Relu", [node("BatchNormalization", [conv, *rows], f"bn{k}")], f"relu{k}")
        last = node("Add", [last, made], f"sum{k}") if k else made
    shape = tensor("shape", flat, np.int64)
    weight = tensor("fc.weight", 0.1 * rng.standard_normal((10, CHANNELS * SIDE * SIDE)))
    node("Gemm", [node("Reshape", [last, shape], "flat"), weight], "y", transB=1)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        held,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_compare_shows_what_plan_finds(memcli: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    network(tmp_path / "net.onnx")
    size = ("--batch", "8", "--gpu", "0", "--as-training", "--json")
    result = memcli(
        "compare",
        "net.onnx",
        "--strategy",
        "memonger",
        "--strategy",
        "none",
        "--strategy",
        "dp",
        "--budget",
        "60%",
        "--budget",
        "1MiB",
        "--plot",
        "p.html",
        *size,
    )
    assert result.returncode == 0, result.stderr
    found = only_json(result)
    assert found["model"]["format"] == "onnx" and found["shapes"] == {"x": [8, 3, SIDE, SIDE]}
    assert (found["engine"], found["device"]) == ("torch", "cuda")
    assert len(found["as_training"]) >= 1
    rows = found["rows"]
    assert [r["on_frontier"] for r in rows] == frontier(rows)
    by_name = {r["strategy"]: r for r in rows if r["budget"] is None}
    assert by_name["none"]["planned_bytes"] == found["baseline_bytes"]
    assert by_name["memonger"]["planned_bytes"] < found["baseline_bytes"]
    within, impossible = rows[-2:]
    assert within["feasible"] and within["planned_bytes"] <= 0.6 * found["baseline_bytes"]
    assert not impossible["feasible"] and not impossible["on_frontier"]
    assert all(r["planned_bytes"] >= found["lower_bound_bytes"] for r in rows)

    plan = only_json(memcli("plan", "net.onnx", "--strategy", "memonger", "--budget", "60%", *size))
    assert within["planned_bytes"] == plan["memory"]["planned_bytes"]
    assert within["recompute"]["flops"] == plan["recompute"]["flops"]
    assert found["baseline_bytes"] == plan["memory"]["baseline_bytes"]
    assert found["lower_bound_bytes"] == plan["memory"]["lower_bound_bytes"]
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 1 and page.count("<tr") == len(rows) + 1


@pytest.mark.slow
def test_fitted_batch_trains_for_real(memcli: Command, tmp_path: Path) -> None:
    network(tmp_path / "net.onnx")
    memory = 48 << 20
    result = memcli(
        "fit",
        "net.onnx",
        "--memory",
        "48MiB",
        "--reserve=0",
        "--optimizer",
        "adam",
        "--cpu",
        "--strategy",
        "memonger",
        "--as-training",
        "-o",
        "big.onnx",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    fitted = only_json(result)
    bare, planned = fitted["unplanned"], fitted["planned"]
    for side in (bare, planned):
        assert side["bytes"] == sum(side["breakdown"].values()) <= memory < side["next_bytes"]
    assert planned["batch"] > 1.3 * bare["batch"]
    assert fitted["device"] == "cpu" and fitted["shapes"] == {"x": [planned["batch"], 3, 32, 32]}
    parts = planned["breakdown"]
    elements = 10 * CHANNELS * SIDE * SIDE + 3 * 9 * CHANNELS
    elements += (BLOCKS - 1) * 9 * CHANNELS**2 + BLOCKS * 2 * CHANNELS
    assert parts["parameter_bytes"] == parts["parameter_gradient_bytes"] == 4 * elements
    assert parts["optimizer_bytes"] == 2 * 4 * elements
    assert parts["input_bytes"] == 4 * planned["batch"] * 3 * SIDE * SIDE

    # the plan in the file reaches the memory that the answer rests on
    verified = only_json(memcli("verify", "big.onnx", "--cpu", "--steps", "0", "--json"))
    assert verified["ok"] and "scaled" not in (verified.get("notes") or "")
    assert verified["planned"]["estimated_bytes"] == parts["pool_bytes"]
    assert verified["planned"]["measured_bytes"] == parts["pool_bytes"]
    batch = bare["batch"] + 1
    plan = only_json(
        memcli(
            "plan",
            "net.onnx",
            "--strategy",
            "none",
            "--as-training",
            "--batch",
            str(batch),
            "--json",
        )
    )
    memory_of = plan["memory"]
    fixed = 4 * memory_of["parameter_bytes"] + memory_of["state_bytes"]
    inputs = 4 * batch * 3 * SIDE * SIDE
    assert fixed + inputs + memory_of["baseline_bytes"] == bare["next_bytes"]


def test_cuda_is_the_default(memcli: Command, tmp_path: Path) -> None:
    network(tmp_path / "net.onnx")
    result = memcli(
        "fit",
        "net.onnx",
        "--memory",
        "64MiB",
        "--reserve",
        "60MiB",
        "--strategy",
        "none",
        "--shape",
        "1,3,32,32",
    )
    assert result.returncode == 0, result.stderr
    assert "cuda (PyTorch" in result.stdout and "CUDA's context" in result.stdout
    assert "1.00 times" in result.stdout


def test_nothing_fits(memcli: Command, tmp_path: Path) -> None:
    network(tmp_path / "net.onnx")
    result = memcli(
        "fit",
        "net.onnx",
        "--memory",
        "1MiB",
        "--reserve=0",
        "--strategy",
        "none",
        "-o",
        "no.onnx",
        "--shape",
        "1,3,32,32",
    )
    assert result.returncode == 1 and result.stdout == ""
    assert "not even batch 1 fits 1.0 MiB: it needs" in result.stderr
    assert not (tmp_path / "no.onnx").exists()


def test_batch_that_is_built_in_is_named(memcli: Command, tmp_path: Path) -> None:
    network(tmp_path / "net.onnx", batch=4, flat=(4, -1))
    result = memcli("fit", "net.onnx", "--memory", "1GiB", "-o", "out.onnx")
    assert result.returncode == 2 and result.stdout == ""
    assert "its batch cannot be changed from 4 to 8" in result.stderr and "Gemm" in result.stderr
    assert "its own batch of 4" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_options_of_onnx_files_are_refused_for_mxnet(capsys: pytest.CaptureFixture[str]) -> None:
    symbol = str(EXAMPLES / "resnet-50-symbol.json")
    for *arguments, option in (
        ["compare", symbol, "--gpu=0"],
        ["compare", symbol, "--as-training"],
        ["fit", symbol, "--memory=1GiB", "--as-training"],
    ):
        assert status([*arguments, option]) == 2
        said = capsys.readouterr()
        assert said.out == "" and f"{option.removesuffix('=0')} is for ONNX files" in said.err
