"""Plans for a network of which a part is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Command, needs_mxnet, only_json
from tests.integration.test_rewrites import dense_block
from tests.small_onnx import residual_network

# What MXNet itself takes for a file where the arguments that a glob fits have a gradient.
TOTAL = """
import fnmatch, json, re, sys
from memcli import mxnet as mx
for path in sys.argv[2:]:
    net = mx.sym.load(path)
    requests = {n: "write" if fnmatch.fnmatchcase(n, sys.argv[1]) else "null"
                for n in net.list_arguments()}
    bound = net.simple_bind(mx.cpu(), grad_req=requests, data=(64, 3, 48, 48))
    print(re.search(r"Total (\\d+) MB", bound.debug_str())[1])
"""


def totals(folder: Path, trained: str, *files: str) -> list[int]:
    ran = subprocess.run(
        [sys.executable, "-c", TOTAL, trained, *files],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [int(line) for line in ran.stdout.split()]


def planned(memcli: Command, *options: str) -> dict[str, Any]:
    done = memcli("plan", *options, "--json")
    assert done.returncode == 0, done.stderr
    return only_json(done)


@pytest.mark.slow
@needs_mxnet
def test_a_symbol_is_planned_for_what_is_trained(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(dense_block(10))
    shape = ("net.json", "--shape", "data=4,3,24,24", "--time-limit", "1")
    part = planned(
        memcli,
        *shape,
        "--frozen",
        "stem*",
        "--frozen",
        "conv[0-4]_*",
        "--frozen",
        "bn[0-4]_*",
        "-o",
        "part.json",
        "--measure",
    )
    verified = part["verify"]
    assert verified["ok"]
    # five convolutions, gamma and beta of five normalizations and the last one, the classifier
    assert verified["gradients"]["compared"] == 5 + 2 * 6 + 2
    assert verified["planned"]["measured_bytes"] == pytest.approx(
        verified["planned"]["estimated_bytes"], rel=0.02
    )
    memory = part["memory"]
    assert memory["planned_bytes"] <= memory["baseline_bytes"]
    assert memory["parameter_gradient_bytes"] < memory["parameter_bytes"]
    for asked, says in (("none*", "no parameter is named so"), ("*", "nothing is trained")):
        done = memcli("plan", *shape, "--frozen", asked, "-o", "no.json")
        assert done.returncode == 2 and says in done.stderr
        assert not (tmp_path / "no.json").exists()


@pytest.mark.slow
@needs_mxnet
def test_a_file_says_what_it_takes_in_inference(memcli: Command, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(dense_block(10))
    told = planned(
        memcli,
        "net.json",
        "--shape",
        "data=64,3,48,48",
        "--time-limit",
        "2",
        "--environment",
        "default",
        "-o",
        "p.json",
    )["memory"]
    plain, carried = totals(tmp_path, "nothing", "net.json", "p.json")
    assert told["baseline_inference_bytes"] >> 20 == plain
    assert told["inference_bytes"] >> 20 == carried
    record = json.loads((tmp_path / "p.json").read_text())["nodes"]
    text = next(
        n["attrs"]["__memcli_plan__"] for n in record if "__memcli_plan__" in n.get("attrs", {})
    )
    assert json.loads(text)["memory"]["inference_bytes"] == told["inference_bytes"]


@pytest.mark.slow
def test_an_onnx_file_is_planned_for_what_is_trained(memcli: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    residual_network(tmp_path / "net.onnx", 4)
    part = planned(
        memcli,
        "net.onnx",
        "--batch",
        "8",
        "--frozen",
        "stem*",
        "--frozen",
        "[ab]0*",
        "--strategy",
        "cheap",
        "-o",
        "p.onnx",
        "--measure",
    )
    assert part["verify"]["ok"] and part["frozen"] == ["stem*", "[ab]0*"]
    code = (
        "import memcli.torch\n"
        "module = memcli.torch.load('p.onnx', weights='random')\n"
        "print(*sorted(n for n, p in module.named_parameters() if not p.requires_grad))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    frozen = ran.stdout.split()
    assert frozen and all(n.startswith(("stem", "a0", "b0")) for n in frozen), ran.stderr
    gradients = part["verify"]["gradients"]["compared"]
    assert gradients == 4 * 6 - 6 + 2 and len(frozen) == 9
    done = memcli("plan", "net.onnx", "--batch", "8", "--frozen", "*")
    assert done.returncode == 2 and "nothing is trained" in done.stderr
