"""``memcli inspect`` and ``memcli doctor`` by the real command; the live peak by its tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.engines.mxnet.memory.breakdown import live_at_peak
from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import analyze
from memcli.graph.stages import default_cuts
from memcli.graph.training import Plan
from memcli.request import ShapeRequest
from tests.conftest import EXAMPLES, Command, needs_mxnet, only_json, run_memcli

RESNET = EXAMPLES / "resnet-50-symbol.json"

# A graph without a loss, whose second layer is marked by hand; nothing tells its input's shape.
FOREIGN = {
    "nodes": [
        {"op": "null", "name": "x", "inputs": []},
        {"op": "null", "name": "w", "inputs": []},
        {
            "op": "FullyConnected",
            "name": "[/b]fc",
            "inputs": [[0, 0, 0], [1, 0, 0]],
            "attrs": {"no_bias": "True", "num_hidden": "1024"},
        },
        {
            "op": "Activation",
            "name": "act",
            "inputs": [[2, 0, 0]],
            "attrs": {"act_type": "tanh", "__force_mirroring__": "True"},
        },
        {
            "op": "Dropout",
            "name": "drop",
            "inputs": [[3, 0, 0]],
            "attrs": {"p": "0.5", "__force_mirroring__": "True"},
        },
        {"op": "elemwise_mul", "name": "square", "inputs": [[4, 0, 0], [4, 0, 0]]},
    ],
    "arg_nodes": [0, 1],
    "heads": [[5, 0, 0]],
    "attrs": {"mxnet_version": ["int", 10901]},
}


def hashes(folder: Path) -> dict[str, str]:
    """Every file under the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a plan of ResNet-50 at batch 2, and what ``plan`` printed."""
    folder = tmp_path_factory.mktemp("planned")
    result = run_memcli(
        "plan",
        str(RESNET),
        "--batch",
        "2",
        "--strategy",
        "memonger",
        "--threshold",
        "6",
        "--trials",
        "0",
        "-o",
        "planned.json",
        "--json",
        cwd=folder,
    )
    return folder, only_json(result)


@needs_mxnet
def test_newest_plan_as_json_agrees_with_plan(planned: tuple[Path, dict[str, Any]]) -> None:
    folder, plan = planned
    before = hashes(folder)
    result = run_memcli("inspect", "--json", "--nodes", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert hashes(folder) == before
    assert "newest plan" in result.stderr and "planned.json" in result.stderr
    assert result.stdout.count("\n") == 1
    found = only_json(result)
    assert found["schema"] == 1
    for figure in (
        "planned_bytes",
        "baseline_bytes",
        "live_peak_bytes",
        "lower_bound_bytes",
        "baseline_live_peak_bytes",
        "parameter_bytes",
        "state_bytes",
    ):
        assert found["memory"][figure] == plan["memory"][figure], figure
    assert found["recompute"] == plan["recompute"]
    assert found["shapes"] == plan["shapes"] and found["assumed_shapes"] == []
    assert found["stages"] == plan["stages"]
    assert found["plan"]["strategy"] == plan["strategy"]
    assert found["plan"]["original"] == {
        "name": RESNET.name,
        "sha256": hashlib.sha256(RESNET.read_bytes()).hexdigest(),
    }
    assert found["plan"]["memory"]["planned_bytes"] == plan["memory"]["planned_bytes"]
    assert found["notes"] == []
    for side, whole in (("planned", "live_peak_bytes"), ("baseline", "baseline_live_peak_bytes")):
        peak = found["live_peak"][side]
        assert peak["bytes"] == found["memory"][whole]
        assert peak["bytes"] == sum(row["bytes"] for row in peak["operators"])
        assert peak["bytes"] == sum(row["bytes"] for row in peak["stages"])
    assert found["live_peak"]["planned"]["recomputed_bytes"] > 0
    assert found["live_peak"]["baseline"]["recomputed_bytes"] == 0
    rows = {row["name"]: row for row in found["nodes"]}
    assert len(rows) == plan["model"]["operators"]
    again = [row for row in found["nodes"] if row["mark"] == "recomputed"]
    assert len(again) == found["plan"]["recomputed"] == found["plan"]["marked"]
    assert rows["convolution0"]["shape"] == [2, 64, 112, 112]
    assert rows["convolution0"]["size"] == 2 * 64 * 112 * 112 * 4


@needs_mxnet
def test_unplanned_tables(planned: tuple[Path, dict[str, Any]]) -> None:
    folder, plan = planned
    before = hashes(EXAMPLES)
    result = run_memcli("inspect", str(RESNET), "--batch", "2", "--top", "3", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert hashes(EXAMPLES) == before
    assert "assumed: 2,3,224,224" in result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80 or str(RESNET) in max(lines, key=len)
    pool = plan["memory"]["baseline_bytes"] / (1 << 20)
    assert any("(the pool)" in line and line.split()[-1] == f"{pool:,.1f}" for line in lines)
    assert lines[-1] == f"next: memcli plan {RESNET} -o planned.json"
    assert sum(line.endswith(("kept ", "kept")) and "2,64,112,112" in line for line in lines) == 3


@needs_mxnet
def test_marks_of_the_file_and_no_loss(memcli: Command, tmp_path: Path) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps(FOREIGN))
    result = memcli("inspect", "foreign.json", "--shape", "64,256", "--json", "--nodes")
    found = only_json(result)
    assert found["loss_added"] and "no loss" in result.stderr
    assert found["outputs"] == [{"name": "square", "shape": [64, 1024], "dtype": "float32"}]
    plan = found["plan"]
    assert plan["strategy"] == "marks of the file" and not plan["by_memcli"]
    # MXNet never runs Dropout twice, marked or not.
    assert (plan["marked"], plan["recomputed"]) == (2, 1)
    marks = {row["name"]: row["mark"] for row in found["nodes"]}
    assert marks == {"[/b]fc": "", "act": "recomputed", "drop": "no effect", "square": ""}
    assert found["memory"]["planned_bytes"] is not None
    assert path.read_text() == json.dumps(FOREIGN)


@needs_mxnet
def test_shapes_that_cannot_be_told(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "foreign.json").write_text(json.dumps(FOREIGN))
    result = memcli("inspect", "foreign.json", "--shape", "nothing=2,2")
    assert result.returncode == 2 and not result.stdout
    assert "nothing" in result.stderr and "Traceback" not in result.stderr


def test_no_plan_was_made_here(memcli: Command) -> None:
    result = memcli("inspect", "--json")
    assert result.returncode == 2 and only_json(result)["error"]["status"] == 2
    assert "newest plan" in result.stderr and "memcli plan MODEL" in result.stderr


@needs_mxnet
@pytest.mark.parametrize("name", ["resnet-50", "densenet-201", "mobilenet-v2", "lstm"])
def test_tensors_at_the_peak_add_up(name: str) -> None:
    request = ShapeRequest() if name == "lstm" else ShapeRequest(batch=2)
    analysis = analyze(read_symbol(str(EXAMPLES / f"{name}-symbol.json")).raw, request)
    graph, model = analysis.graph, analysis.model
    between = graph.can_recompute.copy()
    for (cut,) in default_cuts(graph):
        between[cut] = 0
    random = np.random.default_rng(0)
    plans = [Plan("none", model.none()), Plan("cuts", between), Plan("cuts", between, [], 4)]
    for part in (0.2, 0.5, 0.8, 0.95):
        # marks on variables and on Dropout, too: they are without effect
        plans.append(Plan("random", (random.random(graph.n_forward) < part).astype(np.uint8)))
    for plan in plans:
        cost = model.plan_cost(plan)
        peak = live_at_peak(model, plan.recompute, plan.match_range)
        assert peak.total == peak.split().total == cost.live_peak_bytes
        alive = model.live_bytes(plan.recompute, plan.match_range)
        assert alive.max() == alive[peak.step] == cost.live_peak_bytes
        assert len({(t.entry, t.part) for t in peak.tensors}) == len(peak.tensors)
        if not cost.recompute_flops:
            assert peak.split().recomputed == 0


@needs_mxnet
def test_doctor(memcli: Command) -> None:
    result = memcli("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("MXNet ") and " here; next: memcli plan MODEL" in lines[-1]
    assert any(line.startswith("ok  ") and "mxnet" in line.lower() for line in lines)
    assert all(line.startswith(("ok  ", "--  ", "no  ", "      ")) for line in lines[:-1])
    found = only_json(memcli("doctor", "--json"))
    assert found["schema"] == 1 and found["ok"] is True
    for check in found["checks"]:
        assert set(check) == {"name", "ok", "detail", "mend"}
        assert check["ok"] in (True, False, None)
