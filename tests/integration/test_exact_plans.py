"""Plans keep every bit under the conditions that they name, and these hold all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memcli.engines.mxnet.memory.in_place_sums import plan_keeps_sums
from memcli.engines.mxnet.record import analyze
from memcli.engines.mxnet.rewrites.exactness import adds_early_exactly
from memcli.graph.training import Plan
from memcli.marks import AGAIN
from memcli.request import ShapeRequest
from tests.conftest import Command, needs_mxnet, only_json
from tests.integration.test_rewrites import Builder, dense_block

pytestmark = needs_mxnet


def fan_out(kinds: str) -> str:
    """A tensor that several operators read, one for each letter: a convolution (c), one channel for
    a convolution (s), a Concat with what the letter before made (k), a pooling (p)."""
    b = Builder()
    data = b.variable("data", __shape__="(4, 3, 16, 16)")
    stem = b.operator("Activation", "stem_relu", [b.convolution(data, "stem", 8)], act_type="relu")
    made: list[int] = []
    for number, kind in enumerate(kinds):
        x = stem
        if kind == "s":
            x = b.operator(
                "slice_axis",
                f"channel{number}",
                [x],
                axis="1",
                begin=str(number % 8),
                end=str(number % 8 + 1),
            )
        elif kind == "k":
            before = made[-1] if made else stem
            x = b.operator("Concat", f"cat{number}", [x, before], num_args="2")
        elif kind == "p":
            x = b.operator(
                "Pooling", f"pool{number}", [x], kernel="(3, 3)", pad="(1, 1)", pool_type="max"
            )
        made.append(b.convolution(x, f"branch{number}", 8))
    x = b.operator("Concat", "all", made, num_args=str(len(made)))
    x = b.operator(
        "FullyConnected",
        "fc",
        [b.normalised(x, "last"), b.variable("w"), b.variable("bias")],
        num_hidden="5",
    )
    return b.text(b.operator("SoftmaxOutput", "softmax", [x, b.variable("softmax_label")]))


def pieces_read_by_convolutions(layers: int) -> str:
    """A dense block without normalizations: each piece is read by a convolution and by Concats, so
    that a flattened piece has gradients of both kinds to add up."""
    b = Builder()
    x = b.convolution(b.variable("data", __shape__="(2, 3, 12, 12)"), "stem", 8)
    for k in range(layers):
        new = b.operator(
            "Activation", f"relu{k}", [b.convolution(x, f"conv{k}", 4)], act_type="relu"
        )
        side = b.convolution(new, f"side{k}", 4)
        x = b.operator("Concat", f"cat{k}", [x, new], num_args="2")
        if k % 3 == 2:
            x = b.operator("Concat", f"sides{k}", [x, side], num_args="2")
    x = b.operator("FullyConnected", "fc", [x, b.variable("w"), b.variable("bias")], num_hidden="5")
    return b.text(b.operator("SoftmaxOutput", "softmax", [x, b.variable("softmax_label")]))


@pytest.mark.parametrize(
    "network",
    [
        fan_out("cccccc"),
        fan_out("ckckckp"),
        fan_out("ssssccccck"),
        pieces_read_by_convolutions(11),
    ],
    ids=["six convolutions", "mixed", "ten readers", "dense block of convolutions"],
)
def test_sums_of_gradients_keep_their_order(memcli: Command, tmp_path: Path, network: str) -> None:
    """MXNET_EXEC_INPLACE_GRAD_SUM_CAP=5 changes the bits of the first three."""
    (tmp_path / "m.json").write_text(network)
    plan = only_json(memcli("plan", "m.json", "-o", "p.json", "--json"))
    assert "MXNET_EXEC_INPLACE_GRAD_SUM_CAP" not in plan["environment"]
    assert plan["memory"]["planned_bytes"] < plan["memory"]["baseline_bytes"]
    found = only_json(memcli("verify", "p.json", "--kernels", "plain", "--steps", "0", "--json"))
    assert found["ok"] and found["memory_ok"], found["gradients"]


def test_early_sums_are_taken_for_moved_values_alone() -> None:
    for network, exact in ((fan_out("ssssss"), True), (fan_out("cssssc"), False)):
        graph = analyze(json.loads(network), ShapeRequest()).graph
        assert adds_early_exactly(graph) is exact
    # two sums of two: there is nothing to add early
    assert not adds_early_exactly(analyze(json.loads(fan_out("cc")), ShapeRequest()).graph)


def test_what_is_added_in_place_is_told_for_each_plan() -> None:
    """Ten convolutions add their gradients in place without a plan; a plan may not change that."""
    analysis = analyze(json.loads(fan_out("c" * 10)), ShapeRequest())
    graph, model = analysis.graph, analysis.model
    in_place = model.added_in_place(model.none())
    assert in_place.sum() >= 8
    everything = model.without_unread(graph.can_recompute * AGAIN)
    for flags in (model.none(), everything):
        same = bool((model.added_in_place(flags) == in_place).all())
        assert plan_keeps_sums(graph, model, Plan("any", flags)) is same


def residual(units: int) -> str:
    """Convolutions that sums alone read: a plan that keeps the sums runs them for nothing."""
    b = Builder()
    x = b.convolution(b.variable("data", __shape__="(2, 3, 32, 32)"), "stem", 16)
    for k in range(units):
        inner = b.convolution(b.normalised(x, f"bn{k}"), f"inner{k}", 16)
        x = b.operator("elemwise_add", f"sum{k}", [x, inner])
    x = b.operator(
        "FullyConnected",
        "fc",
        [b.normalised(x, "last"), b.variable("w"), b.variable("bias")],
        num_hidden="5",
    )
    return b.text(b.operator("SoftmaxOutput", "softmax", [x, b.variable("softmax_label")]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "memonger"])
def test_plans_run_on_plain_kernels_unless_asked(
    memcli: Command, tmp_path: Path, strategy: str
) -> None:
    (tmp_path / "m.json").write_text(residual(6))
    given = ("plan", "m.json", "--strategy", strategy)
    plan = only_json(memcli(*given, "-o", "p.json", "--json"))
    assert plan["kernels"] == "plain"
    assert plan["environment"]["MXNET_MKLDNN_ENABLED"] == "0"
    assert plan["memory"]["planned_bytes"] < 0.8 * plan["memory"]["baseline_bytes"]
    found = only_json(memcli("verify", "p.json", "--kernels", "plain", "--steps", "0", "--json"))
    assert found["ok"] and found["memory_ok"]
    free = memcli(*given, "--kernels", "any", "-o", "q.json")
    assert free.returncode == 0
    shown = only_json(memcli("inspect", "q.json", "--json"))
    needs_onednn = "MXNET_MKLDNN_ENABLED" not in shown["plan"]["environment"]
    assert ("MXNet's own kernels refuse it" in " ".join(free.stdout.split())) is needs_onednn


@pytest.mark.slow
def test_without_variables_bits_are_kept_on_onednn(memcli: Command, tmp_path: Path) -> None:
    """Flattened Concats are exact on plain kernels alone, which a plan without variables cannot
    ask for."""
    (tmp_path / "dense.json").write_text(dense_block(12))
    plan = only_json(
        memcli("plan", "dense.json", "--environment", "default", "-o", "p.json", "--json")
    )
    assert plan["environment"] == {}
    assert not any("Concat" in text for text in plan["rewrites"])
    assert plan["memory"]["planned_bytes"] < 0.8 * plan["memory"]["baseline_bytes"]
    found = only_json(memcli("verify", "p.json", "--kernels", "both", "--steps", "0", "--json"))
    assert found["ok"]
    assert all(found["kernels"][kind]["bits_equal"] for kind in ("plain", "default"))


def test_a_variable_is_named_only_where_it_buys_memory(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(residual(5))
    least = {
        environment: only_json(memcli("plan", "m.json", "--environment", environment, "--json"))
        for environment in ("best", "default")
    }
    named = least["best"]["environment"].keys() - {"MXNET_MKLDNN_ENABLED"}
    sizes = {key: plan["memory"]["planned_bytes"] for key, plan in least.items()}
    assert sizes["best"] < sizes["default"] if named else sizes["best"] <= 1.01 * sizes["default"]


@needs_mxnet
def test_marks_of_the_original_are_no_part_of_the_baseline(memcli: Command, tmp_path: Path) -> None:
    """A marked convolution whose copy nobody reads: MXNet's plain kernels refuse to run it."""
    names = ["data", "conv_weight", "fc_weight", "softmax_label"]
    nodes = [{"op": "null", "name": name, "inputs": []} for name in names]
    conv = {"kernel": "(3, 3)", "num_filter": "4", "no_bias": "True", "__force_mirroring__": "True"}
    fc = {"num_hidden": "3", "no_bias": "True"}
    nodes += [
        {"op": "Convolution", "name": "conv", "attrs": conv, "inputs": [[0, 0, 0], [1, 0, 0]]},
        {"op": "Activation", "name": "relu", "attrs": {"act_type": "relu"}, "inputs": [[4, 0, 0]]},
        {"op": "FullyConnected", "name": "fc", "attrs": fc, "inputs": [[5, 0, 0], [2, 0, 0]]},
        {"op": "SoftmaxOutput", "name": "softmax", "inputs": [[6, 0, 0], [3, 0, 0]]},
    ]
    net = {"nodes": nodes, "arg_nodes": [0, 1, 2, 3], "heads": [[7, 0, 0]]}
    (tmp_path / "net.json").write_text(json.dumps(net))
    done = memcli("plan", "net.json", "--shape", "data=2,3,12,12", "-o", "planned.json")
    assert done.returncode == 0, done.stderr
    done = memcli("verify", "planned.json", "--kernels", "plain", "--steps", "0")
    assert done.returncode == 0, done.stderr
    assert "net.json (its SHA-256 matches) without its marks" in " ".join(done.stdout.split())
