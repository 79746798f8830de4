"""``verify`` on MXNet's plain kernels and as MXNet starts; memory in the verdict; step times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLES, Command, needs_mxnet, only_json

pytestmark = needs_mxnet

# a plan that runs on plain kernels for certain
PLAN = ("-o", "p.json", "--shape", "data=4,3,48,48", "--strategy", "none")


def convolutions(path: Path, blocks: int = 5) -> str:
    """A chain of convolutions, BatchNorms and ReLUs."""
    nodes: list[dict[str, Any]] = []

    def node(op: str, name: str, inputs: list[int], **attrs: str) -> int:
        found = {"op": op, "name": name, "inputs": [[i, 0, 0] for i in inputs]}
        nodes.append({**found, "attrs": attrs} if attrs else found)
        return len(nodes) - 1

    last = node("null", "data", [])
    for k in range(blocks):
        weight = node("null", f"conv{k}_weight", [])
        options = {"kernel": "(3, 3)", "pad": "(1, 1)", "num_filter": "32", "no_bias": "True"}
        last = node("Convolution", f"conv{k}", [last, weight], **options)
        gamma, beta = (node("null", f"bn{k}_{name}", []) for name in ("gamma", "beta"))
        states = [
            node("null", f"bn{k}_moving_{name}", [], __init__='["zero", {}]')
            for name in ("mean", "var")
        ]
        last = node("BatchNorm", f"bn{k}", [last, gamma, beta, *states], fix_gamma="False")
        last = node("Activation", f"relu{k}", [last], act_type="relu")
    label = node("null", "softmax_label", [])
    last = node("Flatten", "flat", [last])
    weight, bias = (node("null", f"fc_{name}", []) for name in ("weight", "bias"))
    last = node("FullyConnected", "fc", [last, weight, bias], num_hidden="10")
    last = node("SoftmaxOutput", "softmax", [last, label])
    variables = [i for i, n in enumerate(nodes) if n["op"] == "null"]
    graph = {
        "nodes": nodes,
        "arg_nodes": variables,
        "heads": [[last, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }
    path.write_text(json.dumps(graph))
    return str(path)


@pytest.mark.slow
def test_both_kernels_are_told_and_only_the_planned_ones_count(
    memcli: Command, tmp_path: Path
) -> None:
    assert memcli("plan", convolutions(tmp_path / "net.json"), *PLAN).returncode == 0
    result = memcli("verify", "p.json", "--json")
    found = only_json(result)
    assert result.returncode == 0 and found["ok"] is True and found["memory_ok"] is True
    plain, default = found["kernels"]["plain"], found["kernels"]["default"]
    assert plain["bits_equal"] is True and default["bits_equal"] is True
    for graph in ("baseline", "planned"):
        assert plain[graph]["measured_bytes"] == found[graph]["measured_bytes"]
        # medians of warm steps, of both ways
        assert plain[graph]["step_seconds"] == found[graph]["step_seconds"] > 0
        assert default[graph]["step_seconds"] > 0
    plainly = only_json(memcli("verify", "p.json", "--kernels", "plain", "--steps", "0", "--json"))
    assert set(plainly["kernels"]) == {"plain"} and plainly["planned"]["step_seconds"] is None
    # as MXNet starts, where that is what is asked about: the verdict is of that
    result = memcli("verify", "p.json", "--kernels", "default", "--steps", "0")
    text = " ".join(result.stdout.split())
    assert "bits equal: 1 outputs" in text and "0.00 s" not in text, result.stderr
    assert result.returncode == (1 if "NOT verified: same results" in text else 0)
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_kernels_are_mxnets(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes((EXAMPLES / "resnet-50.onnx").read_bytes())
    result = memcli("verify", "net.onnx", "--kernels", "both")
    assert result.returncode == 2 and "--kernels" in result.stderr and not result.stdout
