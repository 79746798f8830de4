"""``memcli fit`` by the real command, its answer checked by ``memcli plan`` and stock MXNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLES, ONCE, Command, needs_mxnet, only_json
from tests.integration.test_plan import stock

pytestmark = needs_mxnet

RESNET = str(EXAMPLES / "resnet-50-symbol.json")


def step_bytes(plan: dict[str, Any], copies: int, pool: str) -> int:
    """What a step takes by ``plan --json``: ``copies`` of the parameters, inputs twice, the pool.

    The examples are in float32, four bytes an element.
    """
    inputs = 0
    for shape in plan["shapes"].values():
        size = 4
        for d in shape:
            size *= d
        inputs += size
    memory = plan["memory"]
    return copies * memory["parameter_bytes"] + memory["state_bytes"] + 2 * inputs + memory[pool]


@pytest.mark.slow
def test_the_next_batch_does_not_fit(memcli: Command, tmp_path: Path) -> None:
    memory = 2 << 30
    fitted = only_json(
        memcli(
            "fit",
            RESNET,
            "--memory",
            "2GiB",
            "--reserve=0",
            "-o",
            "big.json",
            "--optimizer",
            "adam",
            "--strategy",
            "memonger",
            "--json",
        )
    )
    assert fitted["memory_bytes"] == memory and fitted["optimizer"] == "adam"
    bare, planned = fitted["unplanned"], fitted["planned"]
    assert bare["bytes"] == sum(bare["breakdown"].values()) <= memory < bare["next_bytes"]
    assert planned["bytes"] == sum(planned["breakdown"].values()) <= memory < planned["next_bytes"]
    assert planned["batch"] > 2 * bare["batch"]
    assert fitted["ratio"] == pytest.approx(planned["batch"] / bare["batch"])

    # parameters, gradients and Adam's two are four copies
    said = {}
    for batch in (bare["batch"], bare["batch"] + 1):
        plan = only_json(
            memcli("plan", RESNET, "--strategy", "none", "--batch", str(batch), "--json")
        )
        said[batch] = step_bytes(plan, 4, "baseline_bytes")
    assert said[bare["batch"]] == bare["bytes"]
    assert said[bare["batch"] + 1] == bare["next_bytes"]

    real = stock(tmp_path / "big.json", fitted["shapes"], planned["environment"])
    assert fitted["shapes"]["data"][0] == planned["batch"]
    assert real["total_mb"] == planned["breakdown"]["pool_bytes"] >> 20


@pytest.mark.slow
def test_the_plan_runs_on_plain_kernels(memcli: Command, tmp_path: Path) -> None:
    """Convolutions whose copy nobody reads run on oneDNN alone: identities read them."""
    model = str(EXAMPLES / "mobilenet-v2-symbol.json")
    given = ("--shape", "data=4,3,64,64", "--strategy", "sqrt")
    fitted = only_json(
        memcli("fit", model, *given, "--memory", "150MiB", "--reserve=0", "-o", "p.json", "--json")
    )
    planned = fitted["planned"]
    assert planned["bytes"] == sum(planned["breakdown"].values()) <= 150 << 20
    real = stock(tmp_path / "p.json", fitted["shapes"], planned["environment"])
    assert real["total_mb"] == planned["breakdown"]["pool_bytes"] >> 20
    verified = only_json(memcli("verify", "p.json", "--batch", "2", *ONCE, "--json"))
    assert verified["ok"]
    assert not any("oneDNN" in note for note in verified["notes"])


def test_nothing_fits(memcli: Command, tmp_path: Path) -> None:
    result = memcli(
        "fit",
        RESNET,
        "--memory",
        "1GiB",
        "--reserve",
        "800MiB",
        "-o",
        "no.json",
        "--strategy",
        "memonger",
    )
    assert result.returncode == 1 and result.stdout == ""
    assert "not even batch 1 fits 224.0 MiB: it needs" in result.stderr
    assert "are parameters, gradients" in result.stderr
    assert not (tmp_path / "no.json").exists()


def dense(shape: str) -> dict[str, Any]:
    """A small network with a reshape in it, made for a batch of 4."""

    def node(op: str, name: str, inputs: list[list[int]], **attrs: str) -> dict[str, Any]:
        return {"op": op, "name": name, "inputs": inputs, "attrs": attrs}

    nodes = [
        node("null", "data", [], __shape__="(4, 8, 16)"),
        node("tanh", "squash", [[0, 0, 0]]),
        node("Reshape", "flat", [[1, 0, 0]], shape=shape),
        node("null", "fc_weight", []),
        node("null", "fc_bias", []),
        node("FullyConnected", "fc", [[2, 0, 0], [3, 0, 0], [4, 0, 0]], num_hidden="10"),
        node("null", "softmax_label", []),
        node("SoftmaxOutput", "softmax", [[5, 0, 0], [6, 0, 0]]),
    ]
    variables = [i for i, n in enumerate(nodes) if n["op"] == "null"]
    return {"nodes": nodes, "arg_nodes": variables, "heads": [[7, 0, 0]]}


@pytest.mark.parametrize(
    ("shape", "words"), [("(4, -1)", "parameter 'fc_weight'"), ("(4, 128)", "node 'flat'")]
)
def test_batch_that_is_built_in_is_named(
    memcli: Command, tmp_path: Path, shape: str, words: str
) -> None:
    (tmp_path / "net.json").write_text(json.dumps(dense(shape)))
    result = memcli("fit", "net.json", "--memory", "1GiB", "-o", "out.json")
    assert result.returncode == 2 and result.stdout == ""
    assert "its batch cannot be changed from 4 to 8" in result.stderr and words in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out.json").exists()


def test_mxnets_limit_on_a_tensor_is_the_limit_of_the_batch(
    memcli: Command, tmp_path: Path
) -> None:
    (tmp_path / "net.json").write_text(json.dumps(dense("(0, -1)")))
    fitted = only_json(
        memcli(
            "fit", "net.json", "--memory", "1TiB", "--reserve=0", "--strategy", "memonger", "--json"
        )
    )
    for side in ("unplanned", "planned"):
        assert fitted[side]["batch"] == ((1 << 31) - 1) // (8 * 16)
        assert fitted[side]["next_bytes"] is None
        assert "elements" in fitted[side]["next_problem"]
    assert fitted["ratio"] == 1 and fitted["planned"]["recompute"]["flops"] == 0


def test_bad_sizes_are_refused(memcli: Command) -> None:
    for arguments, words in (
        (("--memory", "half"), "'half' is not a size"),
        (("--memory", "50%"), "percentage"),
        (("--memory", "1GiB", "--reserve", "2GiB"), "leaves nothing"),
        (("--memory", "1GiB", "--batch", "4"), "--batch"),
        ((), "--memory"),
    ):
        result = memcli("fit", RESNET, *arguments)
        assert result.returncode == 2 and result.stdout == "" and words in result.stderr
