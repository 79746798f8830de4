"""ONNX files planned and verified by the real commands in real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from memcli.search.registry import GENERAL  # noqa: E402
from tests.conftest import Command, only_json  # noqa: E402
from tests.small_onnx import Model, dense_network, recurrent_network, residual_network  # noqa: E402


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return residual_network(tmp_path / "residual.onnx")


@pytest.mark.parametrize("network", [residual_network, dense_network])
def test_a_plan_takes_less_memory_and_changes_no_bit(
    memcli: Command, tmp_path: Path, network
) -> None:  # type: ignore[no-untyped-def]
    path = network(tmp_path / "model.onnx")
    done = memcli("plan", str(path), "--batch", "4", "-o", "planned.onnx", "--json", "--measure")
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    memory, verified = plan["memory"], plan["verify"]
    assert plan["engine"] == verified["engine"] == "torch"
    assert memory["lower_bound_bytes"] <= memory["planned_bytes"] < 0.6 * memory["baseline_bytes"]
    for run, size in (("baseline", "baseline_bytes"), ("planned", "planned_bytes")):
        assert verified[run]["estimated_bytes"] == memory[size]
        assert verified[run]["measured_bytes"] == pytest.approx(memory[size], rel=0.01)
    for part in ("outputs", "gradients", "states"):
        assert 0 < verified[part]["compared"] == verified[part]["bit_equal"]
    assert verified["ok"] is True
    for stage in verified["stages"]:
        assert stage["measured_bytes"] == pytest.approx(stage["estimated_bytes"], rel=0.01)
    written = onnx.load(tmp_path / "planned.onnx")
    onnx.checker.check_model(written)
    carried = json.loads({p.key: p.value for p in written.metadata_props}["memcli.plan"])
    marks = {name: mark for name, _, mark in carried["nodes"]}
    assert set(marks) == {node.name for node in written.graph.node}
    assert any(mark.startswith("again") for mark in marks.values())
    del written.metadata_props[:]
    for node in written.graph.node:
        del node.metadata_props[:]
    assert written == onnx.load(path)


def test_recurrent_layers_that_run_again_give_the_same_bits(
    memcli: Command, tmp_path: Path
) -> None:
    # without gradients PyTorch has other kernels for them, which round otherwise
    path = recurrent_network(tmp_path / "lstm.onnx")
    done = memcli(
        "plan",
        str(path),
        "--shape",
        "12,64,6",
        "--strategy",
        "none",
        "--recompute",
        "node_lstm*",
        "-o",
        "p.onnx",
        "--json",
        "--measure",
    )
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    verified = plan["verify"]
    assert plan["marks"]["again"] == 3
    assert verified["gradients"]["bit_equal"] == verified["gradients"]["compared"] == 10
    # oneDNN's own work space is most of it, and goes with the layers
    for run in ("baseline", "planned"):
        assert verified[run]["measured_bytes"] == plan["memory"][f"{run}_bytes"]
    assert plan["memory"]["planned_bytes"] < 0.6 * plan["memory"]["baseline_bytes"]


def test_a_budget_is_kept_with_little_recomputation(memcli: Command, model: Path) -> None:
    least = only_json(memcli("plan", str(model), "--json"))
    loose = only_json(memcli("plan", str(model), "--budget", "70%", "--json"))
    assert loose["memory"]["planned_bytes"] <= 0.7 * loose["memory"]["baseline_bytes"]
    assert loose["recompute"]["fraction"] < least["recompute"]["fraction"]
    none = memcli("plan", str(model), "--budget", "1KB", "-o", "no.onnx")
    assert none.returncode == 1 and "the least is" in none.stderr
    assert not (model.parent / "no.onnx").exists()
    capped = only_json(memcli("plan", str(model), "--max-recompute", "20", "--json"))
    assert capped["recompute"]["fraction"] <= 0.2
    assert capped["memory"]["planned_bytes"] < capped["memory"]["baseline_bytes"]


def test_every_strategy_plans_and_auto_is_best(memcli: Command, model: Path) -> None:
    done = memcli("compare", str(model), "--budget", "50%", "--json")
    assert done.returncode == 0, done.stderr
    found = only_json(done)
    rows = [row for row in found["rows"] if row["budget"] is None]
    sizes = {row["strategy"]: row["planned_bytes"] for row in rows}
    assert set(sizes) == set(GENERAL)
    assert all(found["lower_bound_bytes"] <= size for size in sizes.values())
    assert sizes["auto"] == min(sizes.values()) < sizes["memonger"] < sizes["none"]


def test_the_best_plan_of_a_small_graph_is_proven_best(memcli: Command, tmp_path: Path) -> None:
    m = Model()
    x = m.convolution("image", "conv", 8, 3)
    for k in range(3):
        x = m.node("Tanh", [m.node("Sigmoid", [x], f"sigmoid{k}")], f"tanh{k}")
    x = m.node("GlobalAveragePool", [x], "mean")
    path = m.write(tmp_path / "small.onnx", {"image": (4, 3, 16, 16)}, {x: (4, 8, 1, 1)})
    for options, within in (
        ([], 1.0),
        (["--max-recompute", "50"], 0.5),
        (["--budget", "90%"], None),
    ):
        done = memcli("plan", str(path), "--strategy", "milp", *options, "--json")
        assert done.returncode == 0, done.stderr
        plan = only_json(done)
        memory, optimality = plan["memory"], plan["optimality"]
        assert memory["lower_bound_bytes"] <= memory["planned_bytes"] < memory["baseline_bytes"]
        assert optimality["within"] == within
        if within is not None:  # without a budget the least memory is asked for
            assert optimality["proven"] is True and optimality["gap"] == 0.0
            assert optimality["lower_bound_bytes"] == memory["planned_bytes"]


def test_hints_are_followed(memcli: Command, model: Path, tmp_path: Path) -> None:
    done = memcli(
        "plan",
        str(model),
        "--keep",
        "node_sum*",
        "--recompute",
        "node_a*_norm_relu",
        "-o",
        "p.onnx",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    carried = {p.key: p.value for p in onnx.load(tmp_path / "p.onnx").metadata_props}
    marks = {name: mark for name, _, mark in json.loads(carried["memcli.plan"])["nodes"]}
    for name, mark in marks.items():
        if name.startswith("node_sum"):
            assert mark == "kept"
        if name.endswith("_norm_relu") and name.startswith("node_a"):
            assert mark.startswith(("again", "each"))


def test_cuda_is_planned_for_without_a_card(memcli: Command, model: Path) -> None:
    plan = only_json(memcli("plan", str(model), "--gpu", "0", "-o", "p.onnx", "--json"))
    assert plan["device"] == "cuda"
    # what the caching allocator counts: every tensor rounded up
    assert plan["memory"]["planned_bytes"] % 512 == 0


def test_a_planned_file_is_planned_anew(memcli: Command, model: Path) -> None:
    first = only_json(memcli("plan", str(model), "-o", "p.onnx", "--json"))
    second = only_json(memcli("plan", "p.onnx", "-o", "q.onnx", "--json"))
    assert second["memory"] == first["memory"]
    assert second["model"]["sha256"] == first["model"]["sha256"]
    verified = only_json(memcli("verify", "q.onnx", "--batch", "2", "--steps", "0", "--json"))
    assert verified["ok"] and verified["original"].startswith("residual.onnx")
    assert verified["shapes"] == {"image": [2, 3, 16, 16]}


def test_inference_exports_are_put_back_into_training_mode(memcli: Command, tmp_path: Path) -> None:
    path = residual_network(tmp_path / "inference.onnx", training=False)
    plain = memcli("plan", str(path), "--json")
    assert "BatchNorm" in plain.stderr and "--as-training" in plain.stderr
    done = memcli("plan", str(path), "--as-training", "-o", "p.onnx", "--json", "--measure")
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    assert plan["as_training"] and plan["verify"]["states"]["compared"] == 18
    assert plan["memory"]["baseline_bytes"] > only_json(plain)["memory"]["baseline_bytes"]


def test_what_is_not_supported_is_listed_as_a_whole(memcli: Command, tmp_path: Path) -> None:
    m = Model()
    x = m.node("Conv", ["image", m.weight("w", 4, 3, 3, 3)], "conv")
    x = m.node("NonZero", [x], "where")
    m.node("Cast", [x], "float", to=1)
    m.node("Unique", ["conv"], "unique")
    path = m.write(
        tmp_path / "odd.onnx", {"image": (2, 3, 8, 8)}, {"float": ("a", "b"), "unique": ("c",)}
    )
    done = memcli("plan", str(path), "-o", "p.onnx")
    assert done.returncode == 2
    assert "NonZero" in done.stderr and "Unique" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "p.onnx").exists()


def test_a_missing_card_is_said(memcli: Command, model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    memcli("plan", str(model), "-o", "p.onnx")
    done = memcli("verify", "p.onnx", "--gpu", "0")
    assert done.returncode == 3 and "CUDA" in done.stderr and "Traceback" not in done.stderr


def test_the_written_plan_trains_in_the_users_script(memcli: Command, tmp_path: Path) -> None:
    import torch

    from memcli.torch import load

    path = residual_network(tmp_path / "residual.onnx")
    plan = only_json(memcli("plan", str(path), "--batch", "4", "-o", "p.onnx", "--json"))
    image = torch.randn(4, 3, 16, 16)
    gradients = []
    for planned in (False, True):
        module = load(tmp_path / "p.onnx", plan=planned)
        module(image).square().sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert module.memory(image).peak == plan["memory"]["planned_bytes"]
