"""Hand-made DenseNets' plans by their strategies' names, and other frameworks' buffers shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, Command, needs_mxnet, only_json, run_memcli

PARTS = (
    "output",
    "gradient",
    "copy",
    "parameter",
    "parameter_gradient",
    "state",
    "input",
    "overhead",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``dense.onnx``, two bottlenecks in each of three blocks."""
    folder = tmp_path_factory.mktemp("dense")
    subprocess.run(
        [
            sys.executable,
            str(EXAMPLES / "make_onnx.py"),
            "densenet-bc",
            "--depth",
            "16",
            "--growth",
            "4",
            "-o",
            "dense.onnx",
        ],
        check=True,
        cwd=folder,
    )
    return folder


@pytest.mark.slow
def test_verified_to_the_bit(folder: Path) -> None:
    pytest.importorskip("torch")
    done = run_memcli(
        "plan",
        "dense.onnx",
        "--batch",
        "2",
        "--strategy",
        "optmemory-4",
        "--measure",
        "--cpu",
        "-o",
        "planned.onnx",
        "--json",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    planned = only_json(done)
    assert planned["strategy"] == "optmemory-4"
    assert 0 < planned["recompute"]["fraction"] < 0.1
    assert planned["verify"]["ok"]
    for part in ("outputs", "gradients", "states"):
        found = planned["verify"][part]
        assert found["bit_equal"] == found["compared"] > 0


def test_inspect_shows_the_models(folder: Path) -> None:
    pytest.importorskip("torch")
    done = run_memcli(
        "inspect", "dense.onnx", "--batch", "2", "--memory-model", "all", "--json", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    found = only_json(done)
    rows = found["memory_models"]
    assert [row["name"] for row in rows] == [f"torch7-{k}" for k in range(5)]
    assert rows[0]["part"] == 1 > rows[2]["part"] > rows[4]["part"] > 0
    for row in rows:
        assert row["bytes"] == sum(row[f"{part}_bytes"] for part in PARTS)
        assert row["parameter_bytes"] == found["memory"]["parameter_bytes"]
        assert row["overhead_bytes"] == 0


@needs_mxnet
def test_inspect_shows_the_models_of_a_symbol(memcli: Command) -> None:
    done = memcli(
        "inspect",
        str(EXAMPLES / "densenet-201-symbol.json"),
        "--batch",
        "2",
        "--memory-model",
        "torch7-4",
        "--memory-model",
        "torch7-2",
        "--overhead",
        "100MiB",
    )
    assert done.returncode == 0, done.stderr
    assert "overhead 100.0 MiB" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    four, two = (next(x for x in lines if x[0] == name) for name in ("torch7-4", "torch7-2"))
    assert float(four[1]) < 0.5 * float(two[1])
    assert four[-1] == "1.000" and float(two[-1]) > 1  # parts are of the first that was asked for


def test_overhead_goes_with_a_model(memcli: Command) -> None:
    done = memcli("inspect", str(EXAMPLES / "resnet-50.onnx"), "--overhead", "1GiB")
    assert done.returncode == 2 and "--memory-model" in done.stderr
