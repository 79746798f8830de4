"""The benchmark beside PyTorch's own ways to save memory runs, and its figures hold together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_memcli_beside_checkpoints(tmp_path: Path) -> None:
    """At the memory of each peer memcli takes no more, with the plain step's bits."""
    pytest.importorskip("torch")
    log = tmp_path / "rows.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "torch_peers.py"),
        "--small",
        "--only",
        "gpt",
        "--no-compile",
        "--repeat",
        "1",
        "--time-limit",
        "1",
        "--log",
        str(log),
    ]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), COLUMNS="100")
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (network,) = json.loads(log.read_text())
    whole = network["plain"]
    assert whole["peak"] == pytest.approx(network["estimated_plain_peak"], rel=0.001)
    peers = [point["peer"] for point in network["points"]]
    assert peers == ["checkpoint per block", "selective checkpoint"]
    for point in network["points"]:
        peer = point["measured"]
        assert peer["peak"] < whole["peak"]
        at_memory, at_work = point["memcli_at_memory"], point["memcli_at_work"]
        assert at_memory["peak"] <= peer["peak"]
        assert at_work["work"] <= peer["work"]
        for own in (at_memory, at_work):
            assert own["flops"] >= whole["flops"]
            equal, compared = own["gradients"]
            assert equal == compared == peer["gradients"][1] > 0
    # a checkpoint recomputes every block's matrix products, the selective one none of them
    first, second = (point["measured"] for point in network["points"])
    assert first["flops"] > whole["flops"] == second["flops"]
    assert "checkpoint per block" in done.stdout
