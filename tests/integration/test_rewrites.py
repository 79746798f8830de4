"""Rewritten graphs on the real engine: same bits, MXNet's own figure, and off again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcli.engines.mxnet.record import analyze
from memcli.engines.mxnet.rewrites.split_activation_functions import split_activations
from memcli.formats.symbol.file import SymbolFile
from memcli.request import ShapeRequest
from tests.conftest import EXAMPLES, ONCE, Command, needs_mxnet, only_json, stock

pytestmark = needs_mxnet


class Builder:
    """A symbol's nodes, in the order of the file."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []

    def variable(self, name: str, **attrs: str) -> int:
        node: dict[str, Any] = {"op": "null", "name": name, "inputs": []}
        if attrs:
            node["attrs"] = attrs
        self.nodes.append(node)
        return len(self.nodes) - 1

    def operator(self, op: str, name: str, inputs: list[int], **attrs: str) -> int:
        node: dict[str, Any] = {"op": op, "name": name, "inputs": [[i, 0, 0] for i in inputs]}
        if attrs:
            node["attrs"] = attrs
        self.nodes.append(node)
        return len(self.nodes) - 1

    def batch_norm(self, data: int, name: str) -> int:
        # Gluon writes shapes that it does not know
        parts = [self.variable(f"{name}_{p}", __shape__="(0,)") for p in ("gamma", "beta")]
        parts += [self.variable(f"{name}_moving_{p}") for p in ("mean", "var")]
        return self.operator("BatchNorm", name, [data, *parts], fix_gamma="False")

    def normalised(self, data: int, name: str) -> int:
        norm = self.batch_norm(data, name)
        return self.operator("Activation", f"{name}_relu", [norm], act_type="relu")

    def convolution(self, data: int, name: str, filters: int) -> int:
        weight = self.variable(f"{name}_weight")
        return self.operator(
            "Convolution",
            name,
            [data, weight],
            kernel="(3, 3)",
            pad="(1, 1)",
            num_filter=str(filters),
            no_bias="True",
        )

    def text(self, head: int) -> str:
        variables = [k for k, n in enumerate(self.nodes) if n["op"] == "null"]
        raw = {
            "nodes": self.nodes,
            "arg_nodes": variables,
            "heads": [[head, 0, 0]],
            "attrs": {"mxnet_version": ["int", 10901]},
        }
        return json.dumps(raw)


def dense_block(layers: int, dropout: bool = False) -> str:
    """A DenseNet of one block: its Concats are nested, and its pieces read up to ``layers``
    times, three and four times among them. With ``dropout`` behind each convolution."""
    b = Builder()
    x = b.convolution(b.variable("data", __shape__="(4, 3, 16, 16)"), "stem", 16)
    for k in range(layers):
        new = b.convolution(b.normalised(x, f"bn{k}"), f"conv{k}", 8)
        if dropout:
            new = b.operator("Dropout", f"drop{k}", [new], p="0.2")
        x = b.operator("Concat", f"cat{k}", [x, new], num_args="2")
    x = b.normalised(x, "last")
    x = b.operator("Pooling", "pool", [x], kernel="(1, 1)", global_pool="True", pool_type="avg")
    x = b.operator(
        "FullyConnected", "fc", [x, b.variable("w"), b.variable("bias")], num_hidden="10"
    )
    return b.text(b.operator("SoftmaxOutput", "softmax", [x, b.variable("softmax_label")]))


def check(memcli: Command, folder: Path, model: Path, *shapes: str) -> dict[str, Any]:
    """Plan, verify, and compare with what stock MXNet says; the plan's JSON and the check's."""
    result = memcli("plan", str(model), *shapes, "-o", "p.json", "--force", "--json")
    assert result.returncode == 0, result.stderr
    plan = only_json(result)
    verified = plan["verify"] = only_json(memcli("verify", "p.json", *ONCE, "--json"))
    assert verified["ok"] is True
    for part in ("outputs", "gradients", "states"):
        assert verified[part]["compared"] == verified[part]["bit_equal"], verified[part]
    shape = {name: list(dims) for name, dims in plan["shapes"].items()}
    real = stock(folder / "p.json", shape, plan["environment"])
    assert real["total_mb"] == plan["memory"]["planned_bytes"] >> 20
    shown = only_json(memcli("inspect", "p.json", "--json"))
    for figure in ("baseline_bytes", "baseline_live_peak_bytes", "planned_bytes"):
        assert shown["memory"][figure] == plan["memory"][figure], figure
    original = SymbolFile.read(model)
    assert real["arguments"] == [
        original.nodes[p].name
        for p in original.execution_order()
        if original.nodes[p].is_variable and "moving" not in original.nodes[p].name
    ]
    back = SymbolFile.read(folder / "p.json").stripped()
    assert back.raw["nodes"] == original.raw["nodes"] and back.heads == original.heads
    return plan


def test_dense_block_is_flattened_and_exact(memcli: Command, tmp_path: Path) -> None:
    model = tmp_path / "dense.json"
    model.write_text(dense_block(16))
    plan = check(memcli, tmp_path, model)
    assert "15 Concats flattened" in plan["rewrites"] and plan["barriers"] > 0
    assert plan["environment"]["MXNET_EXEC_INPLACE_GRAD_SUM_CAP"] == "5"
    plain = only_json(memcli("plan", str(model), "--environment", "default", "--json"))
    assert plain["environment"] == {}
    bare = only_json(memcli("plan", str(model), "-o", "b.json", "--no-rewrite", "--json"))
    assert bare["rewrites"] == [] and bare["barriers"] == 0
    nodes = json.loads((tmp_path / "b.json").read_text())["nodes"]
    assert [n["name"] for n in nodes] == [n["name"] for n in json.loads(dense_block(16))["nodes"]]
    assert plan["memory"]["planned_bytes"] < bare["memory"]["planned_bytes"]


@pytest.mark.slow
def test_flattening_pays_where_dropout_is_behind_the_convolutions(
    memcli: Command, tmp_path: Path
) -> None:
    """Dropout is kept and its convolutions are recomputed for an identity alone: else they would be
    kept, too, and the whole Concat that they read with them."""
    model = tmp_path / "dense.json"
    model.write_text(dense_block(12, dropout=True))
    plan = check(memcli, tmp_path, model)
    assert any("Concats flattened" in text for text in plan["rewrites"])
    bare = only_json(memcli("plan", str(model), "--no-rewrite", "--json"))
    assert plan["memory"]["planned_bytes"] < 0.85 * bare["memory"]["planned_bytes"]


def residual_network(activation: str, kind: str) -> str:
    """Two stages of bottlenecks, tensors of the second half as large; activations before sums."""
    b = Builder()

    def unit(x: int, name: str, filters: int) -> int:
        inner = b.normalised(b.convolution(x, f"{name}_a", filters // 4), f"{name}_bn")
        out = b.batch_norm(b.convolution(inner, f"{name}_b", filters), f"{name}_last")
        out = b.operator(activation, f"{name}_act", [out], act_type=kind)
        return b.operator("elemwise_add", f"{name}_sum", [x, out])

    x = b.variable("data", __shape__="(2, 3, 32, 32)")
    for stage, filters in enumerate((16, 32)):
        x = b.convolution(x, f"stem{stage}", filters)
        for k in range(4):
            x = unit(x, f"unit{stage}{k}", filters)
        x = b.operator(
            "Pooling", f"pool{stage}", [x], kernel="(2, 2)", stride="(2, 2)", pool_type="max"
        )
    x = b.operator(
        "FullyConnected", "fc", [x, b.variable("w"), b.variable("bias")], num_hidden="10"
    )
    return b.text(b.operator("SoftmaxOutput", "softmax", [x, b.variable("softmax_label")]))


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "kind"), [("LeakyReLU", "leaky"), ("Activation", "relu")])
def test_activations_in_pieces_are_exact(
    memcli: Command, tmp_path: Path, activation: str, kind: str
) -> None:
    model = tmp_path / "residual.json"
    model.write_text(residual_network(activation, kind))
    plan = check(memcli, tmp_path, model)
    assert "4 activations in 2 pieces" in plan["rewrites"]
    assert any("reserved blocks" in text for text in plan["rewrites"])
    bare = only_json(memcli("plan", str(model), "--no-rewrite", "--json"))
    assert plan["memory"]["planned_bytes"] < bare["memory"]["planned_bytes"]
    # the file trains at another batch, and in PyTorch
    for options in (["--batch", "3", "--kernels", "plain"], ["--engine", "torch"]):
        verified = memcli(
            "verify",
            "p.json",
            "--original",
            str(model),
            "--cpu",
            "--steps",
            "0",
            *options,
            "--json",
        )
        assert verified.returncode == 0, verified.stderr
        assert only_json(verified)["ok"] is True


def test_only_what_sums_alone_read_is_split() -> None:
    b = Builder()
    x = b.convolution(b.variable("data", __shape__="(2, 3, 8, 8)"), "stem", 6)

    def in_front_of_a_sum(x: int, name: str, op: str, kind: str, times: int = 1) -> tuple[int, int]:
        norm = b.batch_norm(b.convolution(x, f"{name}_conv", 6), f"{name}_bn")
        act = b.operator(op, name, [norm], act_type=kind)
        for k in range(times):
            x = b.operator("elemwise_add", f"{name}_sum{k}", [x, act])
        return x, norm

    x, _ = in_front_of_a_sum(x, "leaky", "LeakyReLU", "leaky")
    x, _ = in_front_of_a_sum(x, "twice", "Activation", "relu", times=2)
    x, _ = in_front_of_a_sum(x, "curved", "Activation", "tanh")  # rounds as it likes
    x, norm = in_front_of_a_sum(x, "beside", "Activation", "relu")
    x = b.operator("elemwise_add", "other", [x, norm])
    x = b.operator("Activation", "to_all", [x], act_type="relu")
    x = b.operator("elemwise_add", "on", [x, b.convolution(x, "last", 6)])
    raw = json.loads(b.text(b.operator("MakeLoss", "loss", [x])))
    graph = analyze(raw, ShapeRequest()).graph
    numbers = (2, 3, 4)
    found = zip(numbers, split_activations(raw, graph, numbers), strict=True)
    split = {p: [s.position for s in splits] for p, splits in found}
    names = [raw["nodes"][k]["name"] for k in split[2]]
    assert names == ["leaky", "twice"]
    assert split[3] == split[2] and split[4] == []  # of six channels


@pytest.mark.slow
def test_recurrent_steps_are_joined_and_exact(memcli: Command, tmp_path: Path) -> None:
    plan = check(memcli, tmp_path, EXAMPLES / "lstm-symbol.json", "--batch", "8")
    assert any("gradient joins" in text for text in plan["rewrites"])


@pytest.mark.slow
def test_reserved_blocks_are_exact_and_take_no_variable(memcli: Command, tmp_path: Path) -> None:
    model = EXAMPLES / "mobilenet-v2-symbol.json"
    plan = check(memcli, tmp_path, model, "--batch", "2")
    assert any("reserved blocks" in text for text in plan["rewrites"])
    assert plan["environment"] == {"MXNET_MKLDNN_ENABLED": "0"}
    bare = only_json(memcli("plan", str(model), "--batch", "2", "--no-rewrite", "--json"))
    assert plan["memory"]["planned_bytes"] < 0.95 * bare["memory"]["planned_bytes"]
    # what is reserved is no part of the network, and holds nothing: what lives in it is told
    shown = only_json(memcli("inspect", "p.json", "--json"))
    assert shown["memory"]["baseline_bytes"] == plan["memory"]["baseline_bytes"]
    assert plan["stages"][0]["first"] == "conv0"
    assert shown["stages"] == plan["stages"]
    peak = shown["live_peak"]["planned"]
    assert peak["bytes"] == plan["memory"]["live_peak_bytes"] == shown["memory"]["live_peak_bytes"]
    assert max(s["live_backward_bytes"] for s in shown["stages"]) == peak["bytes"]
    assert not any(row["op"] == "_zeros" for row in [*peak["operators"], *shown["operators"]])
    assert shown["plan"]["reserved_bytes"] > 0
    screen = memcli("inspect", "p.json").stdout.splitlines()
    assert len(screen) <= 45 and not any("_zeros" in line for line in screen)
    whole = memcli("inspect", "p.json", "--full").stdout.splitlines()
    assert len(whole) > len(screen) and any("live bwd" in line for line in whole)
    # the graph is not bound to the batch; verifying at another one reserves for that
    half = only_json(memcli("verify", "p.json", "--batch", "1", *ONCE, "--json"))
    names = [(stage["first"], stage["last"]) for stage in plan["stages"]]
    assert [(stage["first"], stage["last"]) for stage in half["stages"]] == names
    assert half["ok"] is True
    measured = half["planned"]["measured_bytes"]
    assert abs(measured / half["planned"]["estimated_bytes"] - 1) < 0.02
    assert measured < 0.55 * plan["verify"]["planned"]["measured_bytes"]
    stock(tmp_path / "p.json", {"data": [3, 3, 224, 224], "softmax_label": [3]}, {})
    # PyTorch's allocator has no use for it
    options = ("--batch", "1", "--steps", "0", "--engine", "torch")
    torch = only_json(memcli("verify", "p.json", *options, "--json"))
    assert torch["ok"] is True
    assert torch["planned"]["measured_bytes"] < 0.5 * torch["baseline"]["measured_bytes"]


@pytest.mark.slow
def test_a_planned_file_is_planned_anew_as_the_original_is(memcli: Command, tmp_path: Path) -> None:
    model = tmp_path / "dense.json"
    model.write_text(dense_block(5))
    first = only_json(memcli("plan", str(model), "-o", "p.json", "--json"))
    second = only_json(memcli("plan", "p.json", "-o", "q.json", "--json"))
    for plan in (first, second):
        # of small graphs it comes from a solver that is given seconds
        assert plan["memory"].pop("lower_bound_bytes") > 0
    assert second["memory"] == first["memory"]
    assert second["model"]["nodes"] == first["model"]["nodes"]
    stated = only_json(memcli("inspect", "q.json", "--json"))
    assert json.dumps(first["memory"]["planned_bytes"]) in json.dumps(stated)


def test_one_output_given_out_twice(tmp_path: Path, memcli: Command) -> None:
    b = Builder()
    x = b.convolution(b.variable("data", __shape__="(2, 3, 8, 8)"), "c1", 4)
    top = b.convolution(b.normalised(x, "n"), "c2", 4)
    raw = json.loads(b.text(top))
    raw["heads"] = raw["heads"] * 2
    (tmp_path / "m.json").write_text(json.dumps(raw))
    assert memcli("plan", "m.json", "-o", "p.json").returncode == 0
    found = only_json(memcli("verify", "p.json", *ONCE, "--json"))
    assert found["ok"] and found["outputs"]["bit_equal"] == 2
