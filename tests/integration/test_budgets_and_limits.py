"""Budgets that are met already, time limits, shapes by a file, by the real command."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, Command, needs_mxnet, needs_torch, only_json
from tests.small_onnx import Model, residual_network


def lateness(command: Command, *model: str) -> float:
    """What this machine, as busy as it is, takes for what no limit can interrupt, seconds.

    Loading the engine, analyzing the model, and a look or two at the plan's graph.
    """
    began = time.monotonic()
    assert command("inspect", *model).returncode == 0
    return 1.0 + 1.5 * (time.monotonic() - began)


def model_of(kind: str, folder: Path) -> tuple[str, str, tuple[str, ...]]:
    """A small model, the name that its plan is to have, and the shapes to plan it at."""
    if kind == "mxnet":
        nodes = [
            {"op": "null", "name": "data", "inputs": []},
            {"op": "null", "name": "c_weight", "inputs": []},
            {
                "op": "Convolution",
                "name": "c",
                "inputs": [[0, 0, 0], [1, 0, 0]],
                "attrs": {
                    "kernel": "(3, 3)",
                    "num_filter": "8",
                    "no_bias": "True",
                    "pad": "(1, 1)",
                },
            },
            {"op": "Activation", "name": "r", "inputs": [[2, 0, 0]], "attrs": {"act_type": "tanh"}},
            {
                "op": "Pooling",
                "name": "p",
                "inputs": [[3, 0, 0]],
                "attrs": {"kernel": "(2, 2)", "stride": "(2, 2)", "pool_type": "avg"},
            },
        ]
        content = {
            "nodes": nodes,
            "arg_nodes": [0, 1],
            "heads": [[4, 0, 0]],
            "attrs": {"mxnet_version": ["int", 10901]},
        }
        (folder / "net.json").write_text(json.dumps(content))
        return "net.json", "planned.json", ("--shape", "data=2,3,16,16")
    if kind == "onnx":
        residual_network(folder / "net.onnx", 1)
        return "net.onnx", "planned.onnx", ("--batch", "2")
    from tests.caffe_nets import densenet, write

    write(folder / "net.prototxt", densenet(dense_block=True))
    return "net.prototxt", "planned.prototxt", ()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("mxnet", marks=needs_mxnet),
        pytest.param("onnx", marks=needs_torch),
        pytest.param("caffe", marks=needs_torch),
    ],
)
def test_a_budget_that_is_met_changes_nothing(memcli: Command, tmp_path: Path, kind: str) -> None:
    model, out, shapes = model_of(kind, tmp_path)
    done = memcli("plan", model, *shapes, "--budget", "8G", "-o", out, "--json", "--measure")
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    memory = plan["memory"]
    assert memory["planned_bytes"] == memory["baseline_bytes"]
    assert plan["recompute"]["flops"] == 0 and plan["search"]["evaluated"] == 1
    assert not plan["rewrites"] and not plan["environment"] and not plan["barriers"]
    assert any("fits as saved" in note for note in plan["notes"])
    assert plan["verify"]["ok"] and (tmp_path / out).exists()


@needs_mxnet
def test_a_time_limit_counts_from_the_start_of_the_command(memcli: Command) -> None:
    model = str(EXAMPLES / "resnet-50-symbol.json")
    memcli("plan", model, "--batch", "4", "--time-limit", "1")  # compiles the search
    late = lateness(memcli, model)
    began = time.monotonic()
    plan = only_json(memcli("plan", model, "--time-limit", "12", "--budget", "45%", "--json"))
    assert time.monotonic() - began < 1.1 * 12 + late
    assert plan["memory"]["planned_bytes"] <= 0.45 * plan["memory"]["baseline_bytes"]


@needs_torch
def test_a_time_limit_of_an_onnx_file(memcli: Command, tmp_path: Path) -> None:
    residual_network(tmp_path / "net.onnx", 24)
    memcli("plan", "net.onnx", "--batch", "8", "--time-limit", "1")
    late = lateness(memcli, "net.onnx")
    began = time.monotonic()
    plan = only_json(memcli("plan", "net.onnx", "--batch", "8", "--time-limit", "8", "--json"))
    assert time.monotonic() - began < 1.1 * 8 + late
    assert plan["memory"]["planned_bytes"] < 0.6 * plan["memory"]["baseline_bytes"]


@needs_mxnet
def test_shapes_of_many_inputs_at_once(memcli: Command, tmp_path: Path) -> None:
    names = ("a1", "a2", "b")
    nodes = [{"op": "null", "name": name, "inputs": []} for name in names]
    nodes += [
        {"op": "elemwise_add", "name": "s1", "inputs": [[0, 0, 0], [1, 0, 0]]},
        {"op": "broadcast_mul", "name": "s2", "inputs": [[3, 0, 0], [2, 0, 0]]},
        {"op": "tanh", "name": "t", "inputs": [[4, 0, 0]]},
    ]
    content = {
        "nodes": nodes,
        "arg_nodes": [0, 1, 2],
        "heads": [[5, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }
    (tmp_path / "net.json").write_text(json.dumps(content))
    asked = memcli("inspect", "net.json")
    assert asked.returncode == 2 and "--shapes FILE.json" in asked.stderr
    assert "3,224,224" not in asked.stderr and "'a*=D,D,...'" in asked.stderr
    (tmp_path / "s.json").write_text(json.dumps({"a1": [4, 6], "a2": [4, 6], "b": [4, 1]}))
    given = ("inspect", "net.json", "--shapes", "s.json", "--json")
    assert only_json(memcli(*given))["shapes"] == {"a1": [4, 6], "a2": [4, 6], "b": [4, 1]}
    # what --shape says goes before the file, by a glob as well
    assert only_json(memcli(*given, "--shape", "a*=4,9"))["shapes"]["a2"] == [4, 9]
    (tmp_path / "s.json").write_text('{"nosuch": [4]}')
    assert memcli(*given).returncode == 2


@needs_torch
def test_a_guess_that_an_operator_refuses_is_named(memcli: Command, tmp_path: Path) -> None:
    m = Model()
    m.node("Relu", ["x"], "r")
    m.node("Reshape", ["r", m.constant("size", -1, 3 * 8 * 40)], "f")
    m.node("MatMul", ["f", m.weight("w", 3 * 8 * 40, 4)], "y")
    m.write(tmp_path / "ocr.onnx", {"x": ("N", 3, "H", "W")}, {"y": ("M", 4)})
    done = memcli("plan", "ocr.onnx", "--batch", "2")
    assert done.returncode == 2 and "Reshape" in done.stderr
    assert "is a guess, 2,3,224,224" in done.stderr and "--shape x=2,3,H,W" in done.stderr
    done = memcli("plan", "ocr.onnx", "--shape", "x=2,3,8,40")
    assert done.returncode == 0, done.stderr


@needs_mxnet
@pytest.mark.parametrize(
    ("name", "batch", "measured"),
    [
        ("mobilenet-v2", 4, {"Convolution": 0.437, "clip": 0.392, "BatchNorm": 0.169}),
        ("resnet-50", 4, {"Convolution": 0.604, "LeakyReLU": 0.267, "BatchNorm": 0.107}),
    ],
)
def test_the_roofline_of_plain_kernels(name: str, batch: int, measured: dict[str, float]) -> None:
    """Shares of a forward pass as ``benchmarks/operator_costs.py --plain`` measured them."""
    from memcli.engines.mxnet.planning import read_symbol
    from memcli.engines.mxnet.record import analyze
    from memcli.graph.roofline import PLAIN_CPU, roofline_seconds
    from memcli.request import ShapeRequest

    source = read_symbol(str(EXAMPLES / f"{name}-symbol.json"))
    graph = analyze(source.raw, ShapeRequest(batch=batch)).graph
    seconds = roofline_seconds(graph, PLAIN_CPU)
    for op, share in measured.items():
        nodes = [v for v in range(graph.n_forward) if graph.kind[v] >= 0 and graph.op(v) == op]
        assert seconds[nodes].sum() / seconds.sum() == pytest.approx(share, rel=0.25), op
