"""Programs of ``torch.export`` planned, verified and loaded, by the real commands."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from memcli import plan as plan_in_python  # noqa: E402
from memcli.errors import BadInput  # noqa: E402
from memcli.formats.model_file import read_model  # noqa: E402
from memcli.request import ShapeRequest  # noqa: E402
from memcli.torch import load  # noqa: E402
from tests.conftest import Command, only_json  # noqa: E402
from tests.exported_programs import inputs, saved  # noqa: E402

QUICK = ("--strategy", "cheap")


def grown(module, batch: int) -> tuple[list, dict, dict]:  # type: ignore[no-untyped-def, type-arg]
    """Outputs, gradients and buffers after a training step."""
    torch.manual_seed(1)
    outputs = module(*inputs(batch), scale=2)
    outputs["loss"].backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return [outputs["logits"], outputs["loss"]], gradients, dict(module.named_buffers())


def test_a_program_is_planned_verified_stripped_and_trained(
    memcli: Command, tmp_path: Path
) -> None:
    network = saved(tmp_path / "net.pt2")
    done = memcli("plan", "net.pt2", *QUICK, "--batch", "6", "-o", "p.pt2", "--json", "--measure")
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    verified, memory = plan["verify"], plan["memory"]
    assert plan["model"]["format"] == "pt2" and plan["shapes"]["image"] == [6, 3, 8, 8]
    assert memory["planned_bytes"] < 0.95 * memory["baseline_bytes"]
    for run, size in (("baseline", "baseline_bytes"), ("planned", "planned_bytes")):
        assert verified[run]["measured_bytes"] == memory[size]
    # 6 running statistics, 3 counters, the average; frozen.weight and .bias have no gradient
    counted = {part: verified[part]["compared"] for part in ("outputs", "gradients", "states")}
    assert counted == {"outputs": 2, "gradients": 13, "states": 10} and verified["ok"]

    seen = only_json(memcli("inspect", "p.pt2", "--json", "--nodes"))
    assert seen["memory"]["planned_bytes"] == memory["planned_bytes"]
    assert any(row["op"] == "batch_norm" for row in seen["nodes"])
    assert memcli("strip", "p.pt2", "-o", "back.pt2").returncode == 0
    assert (tmp_path / "back.pt2").read_bytes() == (tmp_path / "net.pt2").read_bytes()

    # plain PyTorch loads it, plan and all, and runs it
    extra = {"memcli.plan.json": ""}
    program = torch.export.load(tmp_path / "p.pt2", extra_files=extra)
    marks = json.loads(extra["memcli.plan.json"])["nodes"]
    assert {"kept", "again"} <= {mark for _, _, mark in marks}
    plain = program.module()
    loaded = load(tmp_path / "p.pt2")
    assert sorted(loaded.state_dict()) == sorted(network.state_dict())
    assert loaded.memory(*inputs(6), scale=2).peak == memory["planned_bytes"]
    copied = copy.deepcopy(loaded)
    for batch in (6, 3):  # another batch than that of the plan
        first, others = grown(loaded, batch), grown(plain, batch)
        assert all(map(torch.equal, first[0], others[0]))
        assert first[1].keys() == others[1].keys() and "frozen.weight" not in first[1]
        assert all(torch.equal(first[1][n], g) for n, g in others[1].items())
        assert all(torch.equal(first[2][n], b) for n, b in others[2].items() if n in first[2])
    assert all(map(torch.equal, grown(copied, 6)[0], grown(load(tmp_path / "p.pt2"), 6)[0]))
    network.load_state_dict(loaded.state_dict())
    network.eval(), loaded.eval()
    image, label = inputs(5)
    assert torch.equal(loaded(image, label=label)["logits"], network(image, label)["logits"])


def test_a_decomposed_program_in_evaluation_mode_is_put_back_into_training(
    memcli: Command, tmp_path: Path
) -> None:
    saved(tmp_path / "net.pt2", training=False, decomposed=True)
    (lost,) = read_model(tmp_path / "net.pt2", ShapeRequest()).losses()
    assert "3 normalizations in evaluation mode" in lost.text
    done = memcli("plan", "net.pt2", *QUICK, "--as-training", "-o", "p.pt2", "--json", "--measure")
    plan = only_json(done)
    assert plan["as_training"][0].startswith("3 BatchNorm set to training mode")
    assert plan["verify"]["ok"] and plan["verify"]["states"]["compared"] == 7
    loaded = load(tmp_path / "p.pt2")
    before = loaded.get_buffer("blocks.0.1.running_mean").clone()
    loaded(*inputs(), scale=2)
    assert not torch.equal(before, loaded.get_buffer("blocks.0.1.running_mean"))


def test_sizes_that_the_export_fixed_stay(memcli: Command, tmp_path: Path) -> None:
    saved(tmp_path / "fixed.pt2", dynamic=False)
    saved(tmp_path / "open.pt2")
    done = memcli("plan", "fixed.pt2", "--batch", "8")
    assert done.returncode == 2 and "a batch of 4" in done.stderr and "Dim" in done.stderr
    done = memcli("plan", "open.pt2", "--batch", "65")
    assert done.returncode == 2 and "a dimension of 65 is not within 1 to 64" in done.stderr
    fitted = only_json(
        memcli("fit", "open.pt2", "--memory", "1MiB", "--reserve", "0", *QUICK, "--cpu", "--json")
    )
    assert fitted["planned"]["batch"] >= fitted["unplanned"]["batch"] > 4
    with pytest.raises(BadInput, match="carries no plan"):
        load(tmp_path / "open.pt2")


def test_a_plan_becomes_modules_to_wrap(memcli: Command, tmp_path: Path) -> None:
    saved(tmp_path / "net.pt2")
    assert memcli("plan", "net.pt2", "--budget", "80%", "-o", "p.pt2").returncode == 0
    done = memcli("export", "p.pt2", "--to", "torch")
    assert done.returncode == 0 and "blocks.0" in done.stdout, done.stderr
    refused = memcli("export", "p.pt2", "--to", "jax")
    assert refused.returncode == 2 and "--to torch" in refused.stderr


BUILT = """
import torch
from torch import nn

def build():
    print("said by the code")
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    return net.train(), (torch.randn(16, 8),), {}, lambda y: y.square().mean()

def wrong():
    raise ValueError("no data here")
"""


def test_the_users_own_code_builds_a_model(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text(BUILT)
    options = ("--batch", "32", "-o", "p.pt2", "--json", "--measure")
    done = memcli("plan", "mynets:build", *QUICK, *options)
    assert done.returncode == 0, done.stderr
    plan = only_json(done)
    assert plan["shapes"] == {"input": [32, 8]} and plan["loss_added"] is False
    assert "mynets:build is your code, which was run" in done.stderr
    assert plan["verify"]["ok"] and plan["verify"]["gradients"]["compared"] == 6
    assert next(n for n, _ in load(tmp_path / "p.pt2").named_parameters()) == "0.weight"
    wrong = memcli("plan", "mynets:wrong")
    assert wrong.returncode == 2 and "ValueError: no data here" in wrong.stderr
    assert "mynets.py, line 11" in wrong.stderr and "Traceback" not in wrong.stderr
    with pytest.raises(BadInput, match="there is no such file"):
        plan_in_python("no/such:build")
