"""``memcli inspect`` of ONNX files and ``memcli doctor`` on PyTorch, by the real command."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
from onnx import TensorProto, helper, numpy_helper

from memcli.engines.checks import Check
from memcli.engines.doctor import _gpu
from memcli.engines.gpus import Gpu
from memcli.engines.torch.doctor_checks import TorchFound, has_code, mend_for
from memcli.reports.doctor_report import engine_works, next_step
from tests.conftest import Command, only_json, run_memcli

CHANNELS = 8


def model_of(
    nodes: list[Any], weights: dict[str, Any], shape: list[Any], outputs: list[str]
) -> onnx.ModelProto:
    """A model of one input ``x``."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def convolutions(*, training: bool) -> onnx.ModelProto:
    """Three convolutions with BatchNorm, pooled; a constant is computed by a node of its own."""
    random = np.random.default_rng(0)
    nodes, weights, x = [], {}, "x"
    for i in range(3):
        cin = CHANNELS if i else 3
        weights[f"conv{i}.weight"] = random.normal(size=(CHANNELS, cin, 3, 3)).astype(np.float32)
        nodes.append(
            helper.make_node("Conv", [x, f"conv{i}.weight"], [f"c{i}"], f"conv{i}", pads=[1] * 4)
        )
        names = [f"bn{i}.{k}" for k in ("weight", "bias", "running_mean", "running_var")]
        weights |= {
            n: np.full(CHANNELS, v, np.float32) for n, v in zip(names, (1, 0, 0, 1), strict=True)
        }
        out = [f"b{i}", f"mean{i}", f"var{i}"] if training else [f"b{i}"]
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"c{i}", *names], out, f"bn{i}", training_mode=int(training)
            )
        )
        nodes.append(helper.make_node("Relu", [f"b{i}"], [f"r{i}"], f"relu{i}"))
        x = f"r{i}"
    nodes.append(
        helper.make_node("MaxPool", [x], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    )
    nodes.append(helper.make_node("Identity", ["fc.weight"], ["w"], "same"))
    weights["fc.weight"] = random.normal(size=(CHANNELS * 64, 5)).astype(np.float32)
    nodes.append(helper.make_node("Flatten", ["p"], ["f"], "flatten"))
    nodes.append(helper.make_node("MatMul", ["f", "w"], ["y"], "fc"))
    return model_of(nodes, weights, ["batch", 3, 16, 16], ["y"])


def recurrent() -> onnx.ModelProto:
    """Two LSTMs, the first of which gives no last state, the second no sequence."""
    random = np.random.default_rng(0)
    weights, nodes, x = {}, [], "x"
    for i, out in enumerate((["s0", "", "n0"], ["", "h1", "n1"])):
        weights[f"l{i}.weight"] = random.normal(size=(1, 64, 16)).astype(np.float32) / 4
        weights[f"l{i}.recurrence_weight"] = random.normal(size=(1, 64, 16)).astype(np.float32) / 4
        nodes.append(
            helper.make_node(
                "LSTM",
                [x, f"l{i}.weight", f"l{i}.recurrence_weight"],
                out,
                f"lstm{i}",
                hidden_size=16,
            )
        )
        if i == 0:
            weights["axes"] = np.array([1])
            nodes.append(helper.make_node("Squeeze", ["s0", "axes"], ["q0"], "squeeze"))
            nodes.append(helper.make_node("Tanh", ["q0"], ["t0"], "tanh"))
            x = "t0"
    nodes.append(helper.make_node("Tanh", ["h1"], ["y"], "last"))
    return model_of(nodes, weights, [12, 4, 16], ["y", "n0", "n1"])


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with ``net.onnx`` and its plan, and what ``plan`` printed."""
    folder = tmp_path_factory.mktemp("planned")
    onnx.save(convolutions(training=True), str(folder / "net.onnx"))
    result = run_memcli(
        "plan",
        "net.onnx",
        "--batch",
        "4",
        "--recompute",
        "relu*",
        "--keep",
        "pool",
        "--gpu",
        "0",
        "-o",
        "planned.onnx",
        "--json",
        cwd=folder,
    )
    return folder, only_json(result)


def test_planned_file_agrees_with_plan(planned: tuple[Path, dict[str, Any]]) -> None:
    folder, plan = planned
    before = {path: path.read_bytes() for path in folder.glob("*.onnx")}
    result = run_memcli("inspect", "--json", "--nodes", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert {path: path.read_bytes() for path in folder.glob("*.onnx")} == before
    assert "newest plan" in result.stderr and "planned.onnx" in result.stderr
    found = only_json(result)
    assert found["model"]["format"] == "onnx" and found["engine"] == "torch"
    assert found["device"] == found["plan"]["device"] == plan["device"] == "cuda"
    assert found["opset"] == 17
    for figure in (
        "planned_bytes",
        "baseline_bytes",
        "live_peak_bytes",
        "lower_bound_bytes",
        "parameter_bytes",
        "state_bytes",
    ):
        assert found["memory"][figure] == plan["memory"][figure], figure
    assert found["memory"]["with_gradients_bytes"] > found["memory"]["planned_bytes"]
    assert found["recompute"] == plan["recompute"]
    assert found["shapes"] == plan["shapes"] == {"x": [4, 3, 16, 16]}
    assert found["stages"] == plan["stages"]
    assert found["outputs"] == [{"name": "y", "shape": [4, 5], "dtype": "float32"}]
    assert found["plan"]["original"] == {
        "name": "net.onnx",
        "sha256": hashlib.sha256(before[folder / "net.onnx"]).hexdigest(),
    }
    elements = 3 * CHANNELS * 27 // 3 + 2 * CHANNELS * CHANNELS * 9 + 6 * CHANNELS
    elements += CHANNELS * 64 * 5
    assert found["parameters"] == {
        "tensors": 10,
        "elements": elements,
        "bytes": elements * 4,
        "tied": 0,
    }
    assert found["states"]["tensors"] == 6 and found["losses"] == []
    for side, whole in (("planned", "planned_bytes"), ("baseline", "baseline_bytes")):
        peak = found["live_peak"][side]
        assert peak["bytes"] == found["memory"][whole]
        assert peak["bytes"] == sum(row["bytes"] for row in peak["operators"])
        assert peak["bytes"] == sum(row["bytes"] for row in peak["stages"])
    rows = {row["name"]: row for row in found["nodes"]}
    assert list(rows) == [node.name for node in convolutions(training=True).graph.node]
    assert rows["relu0"]["mark"] == "recomputed" and rows["pool"]["mark"] == ""
    assert rows["same"]["mark"] == "folded" and rows["same"]["shape"] is None
    assert rows["flatten"]["mark"] == "view"
    assert rows["conv0"]["shape"] == [4, CHANNELS, 16, 16]
    assert rows["conv0"]["size"] == 4 * CHANNELS * 16 * 16 * 4
    again = [row for row in found["nodes"] if row["mark"] in ("recomputed", "each need")]
    kinds = {kind["op"]: kind for kind in found["operators"]}
    assert sum(kind["recomputed"] for kind in kinds.values()) == len(again) > 0
    assert kinds["Relu"]["planned_kept_bytes"] == 0 < kinds["Relu"]["kept_bytes"]
    assert kinds["Identity"]["count"] == 0 and kinds["Identity"]["folded"] == 1
    kept = sum(kind["planned_kept_bytes"] for kind in kinds.values())
    assert kept == found["memory"]["kept_bytes"] == sum(s["kept_bytes"] for s in found["stages"])


def test_unplanned_tables_say_what_is_lost(memcli: Command, tmp_path: Path) -> None:
    onnx.save(convolutions(training=False), str(tmp_path / "net.onnx"))
    result = memcli("inspect", "net.onnx", "--top", "2", "--nodes")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "3 BatchNormalizations in inference mode" in " ".join(result.stdout.split())
    assert lines[-1] == "next: memcli plan net.onnx --as-training -o planned.onnx"
    assert "assumed: 32,3,16,16" in result.stderr
    text = " ".join(result.stdout.split())
    for shown in ("operator set 17", "live peak with parameters' gradients", "live peak at"):
        assert shown in text


def test_nodes_of_several_outputs_keep_their_marks(memcli: Command, tmp_path: Path) -> None:
    onnx.save(recurrent(), str(tmp_path / "net.onnx"))
    plan = only_json(memcli("plan", "net.onnx", "--recompute", "lstm*", "-o", "p.onnx", "--json"))
    result = memcli("inspect", "p.onnx", "--json", "--nodes")
    found = only_json(result)
    assert found["memory"]["planned_bytes"] == plan["memory"]["planned_bytes"]
    assert found["recompute"] == plan["recompute"] and found["recompute"]["flops"] > 0
    assert "the plan says" not in result.stderr
    rows = {row["name"]: row for row in found["nodes"]}
    assert rows["lstm0"]["mark"] == "recomputed"
    assert rows["lstm0"]["shape"] == [12, 1, 4, 16] and rows["lstm1"]["shape"] == [1, 4, 16]


def test_what_cannot_be_planned_is_shown_all_the_same(memcli: Command, tmp_path: Path) -> None:
    weights = {"fc.weight": np.ones((6, 6), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["a"], "fc"),
        helper.make_node("Twist", ["a"], ["b"], "twist", domain="elsewhere"),
        helper.make_node("NonZero", ["a"], ["n"], "where"),
        helper.make_node("Cast", ["n"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    onnx.save(model_of(nodes, weights, ["batch", 6], ["b", "y"]), str(tmp_path / "net.onnx"))
    result = memcli("inspect", "net.onnx", "--json", "--nodes")
    assert result.returncode == 0
    found = only_json(result)
    for name in ("twist", "where"):
        assert name in found["problem"]["message"] and name in result.stderr
    assert "Traceback" not in result.stderr
    assert {row["op"]: row["count"] for row in found["operators"]} == {
        "MatMul": 1,
        "elsewhere.Twist": 1,
        "NonZero": 1,
        "Cast": 1,
    }
    assert all(row["flops"] is None for row in found["operators"])
    assert found["memory"]["baseline_bytes"] is None and found["recompute"] is None
    assert found["memory"]["parameter_bytes"] == 6 * 6 * 4
    assert found["inputs"][0]["shape"] == ["batch", 6] and found["shapes"] == {}
    assert [row["name"] for row in found["nodes"]] == ["fc", "twist", "where", "cast"]
    text = memcli("inspect", "net.onnx").stdout
    assert "elsewhere.Twist" in text and "batch,6" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shape", "nothing=2,2"], "nothing"),
        (["--dtype", "float16"], "float32"),
    ],
)
def test_shapes_that_cannot_be(
    memcli: Command, tmp_path: Path, options: list[str], said: str
) -> None:
    onnx.save(convolutions(training=True), str(tmp_path / "net.onnx"))
    result = memcli("inspect", "net.onnx", *options)
    assert result.returncode == 2 and not result.stdout
    assert said in result.stderr and "Traceback" not in result.stderr


def test_damaged_file(memcli: Command, tmp_path: Path) -> None:
    data = convolutions(training=True).SerializeToString()
    (tmp_path / "net.onnx").write_bytes(data[: len(data) // 2])
    result = memcli("inspect", "net.onnx")
    assert result.returncode == 2 and not result.stdout
    assert "net.onnx" in result.stderr and "Traceback" not in result.stderr


def test_graph_changed_after_it_was_planned(
    planned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model = onnx.load(str(planned[0] / "planned.onnx"))
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"], "more"))
    model.graph.output[0].name = "z"
    onnx.save(model, str(tmp_path / "changed.onnx"))
    result = run_memcli("inspect", "changed.onnx", "--json", cwd=tmp_path)
    found = only_json(result)
    assert found["plan"] is None and found["memory"]["baseline_bytes"] > 0
    assert "changed after it was planned" in result.stderr


def test_doctor_tries_pytorch(memcli: Command) -> None:
    found = only_json(memcli("doctor", "--json"))
    checks = {check["name"]: check for check in found["checks"]}
    assert found["engines"]["torch"] is True
    assert checks["torch"]["ok"] is True and "trained a step" in checks["torch"]["detail"]
    import torch

    assert torch.__version__ in checks["torch"]["detail"]
    has_cuda = torch.version.cuda is not None
    assert ("CUDA" in checks["torch"]["detail"]) == has_cuda
    if not has_cuda:
        assert checks["torch cuda"]["ok"] is None


def test_pytorch_alone_is_an_engine() -> None:
    checks = [Check("mxnet", False, "not installed"), Check("torch", True, "2.9, CPU build")]
    assert engine_works(checks) and "ONNX files" in next_step(checks)
    broken = [Check("mxnet", False, "not installed"), Check("torch", False, "does not load")]
    assert not engine_works(broken) and "no engine works" in next_step(broken)


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((8, 6), "sm_80 sm_90", True),
        ((8, 9), "sm_75 sm_86 sm_90", True),
        ((8, 0), "sm_86", False),
        ((7, 0), "sm_75 sm_80", False),
        ((10, 0), "sm_80 sm_90 compute_90", True),
        ((12, 0), "sm_80 sm_90a", False),
        ((9, 0), "sm_90a", True),
        ((12, 0), "sm_100 sm_120", True),
        ((6, 1), "sm_60 unknown", True),
    ],
)
def test_code_for_cards(capability: tuple[int, int], archs: str, runs: bool) -> None:
    assert has_code(capability, archs.split()) is runs


def test_engine_of_a_card() -> None:
    hopper = Gpu(0, "H100", (9, 0), 80 << 30, "550.1", "GPU-1")
    card = {"name": "H100", "capability": [9, 0], "uuid": "GPU-1", "trains": ""}
    torch = TorchFound(True, "12.8", ["sm_80", "sm_90"], [card])
    check = _gpu(hopper, torch, ["GPU-0", "GPU-1"])
    assert check.ok is True
    assert "verify --gpu 1: MXNet graphs in PyTorch, ONNX files in PyTorch" in check.detail
    hidden = _gpu(hopper, torch, ["GPU-0"])
    assert hidden.ok is None and "CUDA_VISIBLE_DEVICES" in hidden.mend
    old = TorchFound(True, "12.8", ["sm_75", "sm_80"], [card])
    check = _gpu(hopper, old, ["GPU-1"])
    assert check.ok is False and "nothing" in check.detail
    assert "no code for compute capability 9.0" in check.mend
    assert "a newer version of PyTorch" in check.mend and "5.0 to 8.6" in check.mend
    stuck = TorchFound(True, "12.8", ["sm_90"], [], "The NVIDIA driver on your system is too old")
    assert "too old" in stuck.trains_on(hopper) and "550.1" in mend_for(hopper, stuck)
    without = TorchFound(True)
    assert "CPU build" in without.trains_on(hopper) and "CUDA build" in mend_for(hopper, without)
