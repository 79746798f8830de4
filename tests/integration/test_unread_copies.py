"""Recomputed nodes that nobody reads: what MXNet then leaves out may reach no gradient."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memcli.engines.mxnet.planning import read_symbol
from memcli.engines.mxnet.record import analyze
from memcli.marks import AGAIN
from memcli.request import ShapeRequest
from tests.conftest import ONCE, ROOT, Command, needs_mxnet, only_json
from tests.integration.test_rewrites import Builder

pytestmark = needs_mxnet


def test_what_runs_for_nothing_changes_no_gradient(tmp_path: Path) -> None:
    together = tmp_path / "together.json"
    script = Path(__file__).with_name("unread_copies.py")
    done = subprocess.run(
        [sys.executable, str(script), str(together)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MXNET_MKLDNN_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    happened = json.loads(done.stdout)
    analysis = analyze(read_symbol(str(together)).raw, ShapeRequest())
    graph, model = analysis.graph, analysis.model
    # everything that may be recomputed is, but for what would then fail: kept are the readers
    marks = graph.can_recompute * np.array(
        [graph.names[v] in happened for v in range(graph.n_forward)], np.uint8
    )
    left = model.without_unread(marks * AGAIN)
    run = {graph.names[v] for v in np.flatnonzero(left)}
    assert run.isdisjoint({"LayerNorm", "LayerNorm, statistics read", "GroupNorm", "pick"})
    assert len(run) > 35
    assert {name: happened[name] for name in run} == dict.fromkeys(run, "equal")


@pytest.mark.slow
def test_transformers_train_to_the_same_bits(tmp_path: Path, memcli: Command) -> None:
    b = Builder()
    rows = b.variable("data", __shape__="(4, 12, 16)")

    def layer(data: int, name: str, width: int) -> int:
        parts = [b.variable(f"{name}_{p}") for p in ("weight", "bias")]
        return b.operator(
            "FullyConnected", name, [data, *parts], num_hidden=str(width), flatten="False"
        )

    def normalized(data: int, name: str) -> int:
        parts = [b.variable(f"{name}_{p}") for p in ("gamma", "beta")]
        return b.operator("LayerNorm", name, [data, *parts])

    x = rows
    for i in range(3):
        q, k, v = (layer(x, f"{n}{i}", 16) for n in "qkv")
        scores = b.operator("batch_dot", f"scores{i}", [q, k], transpose_b="True")
        mixed = b.operator("batch_dot", f"mix{i}", [b.operator("softmax", f"s{i}", [scores]), v])
        x = normalized(b.operator("elemwise_add", f"a{i}", [x, layer(mixed, f"o{i}", 16)]), f"n{i}")
        wide = b.operator("LeakyReLU", f"g{i}", [layer(x, f"u{i}", 64)], act_type="gelu")
        x = normalized(b.operator("elemwise_add", f"b{i}", [x, layer(wide, f"w{i}", 16)]), f"m{i}")
    flat = b.operator("Reshape", "flat", [x], shape="(-1, 16)")
    out = layer(flat, "out", 10)
    probabilities = b.operator("log_softmax", "p", [out])
    picked = b.operator("pick", "picked", [probabilities, b.variable("index", __shape__="(48,)")])
    (tmp_path / "m.json").write_text(b.text(b.operator("mean", "loss", [picked])))
    for strategy in ("auto", "sqrt"):
        made = only_json(
            memcli("plan", "m.json", "-o", "p.json", "--force", "--strategy", strategy, "--json")
        )
        assert made["memory"]["planned_bytes"] < 0.9 * made["memory"]["baseline_bytes"]
        found = only_json(memcli("verify", "p.json", *ONCE, "--json"))
        assert found["ok"], found["gradients"]
        assert found["gradients"]["compared"] == 52
