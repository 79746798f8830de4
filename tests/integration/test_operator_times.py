"""Operators timed on the real engine: every one gets a time, alike ones the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.engines.mxnet import timing
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.timing import OperatorTimes, argument_dtypes, measure_operator_seconds
from memcli.graph.roofline import MACHINES, roofline_seconds
from memcli.request import ShapeRequest
from tests.conftest import needs_mxnet

pytestmark = needs_mxnet

BATCH, SIDE = 4, 28


def symbol() -> dict[str, Any]:
    """A small net with two alike blocks, a big convolution, and whatever is hard to time.

    Among it: BatchNorm with states, Dropout, a random operator, an Embedding with integers to
    look up, a cast to half precision, names of data, an operator without inputs.
    """
    nodes: list[dict[str, Any]] = []

    def add(op: str, name: str, *inputs: int, **attrs: str) -> int:
        node: dict[str, Any] = {"op": op, "name": name, "inputs": [[i, 0, 0] for i in inputs]}
        nodes.append(node | ({"attrs": attrs} if attrs else {}))
        return len(nodes) - 1

    def conv(name: str, top: int, filters: int, kernel: int) -> int:
        return add(
            "Convolution",
            name,
            top,
            add("null", f"{name}_weight"),
            kernel=f"({kernel}, {kernel})",
            pad=f"({kernel // 2}, {kernel // 2})",
            num_filter=str(filters),
            no_bias="True",
        )

    top = conv("stem", add("null", "data"), 32, 3)
    for block in ("a", "b"):
        top = conv(f"{block}_conv", top, 32, 1)
        parts = [add("null", f"{block}_bn_{p}") for p in ("gamma", "beta", "mean", "var")]
        top = add("BatchNorm", f"{block}_bn", top, *parts, fix_gamma="False")
        top = add("Activation", f"{block}_relu", top, act_type="relu")
    top = conv("big", top, 128, 5)
    top = add("Dropout", "drop", top, p="0.5")
    half = add("Cast", "half", top, dtype="float16")
    top = add("Cast", "single", half, dtype="float32")
    top = add("Pooling", "pool", top, global_pool="True", pool_type="avg", kernel="(1, 1)")
    top = add("Flatten", "flat", top)
    words = add("null", "words")
    table = add("null", "table_weight")
    looked = add("Embedding", "table", words, table, input_dim="50", output_dim="128")
    noise = add("_random_uniform", "noise", shape=f"({BATCH}, 128)")
    top = add("elemwise_add", "sum", add("elemwise_add", "noisy", top, noise), looked)
    weight, bias = add("null", "fc_weight"), add("null", "fc_bias")
    top = add("FullyConnected", "fc", top, weight, bias, num_hidden="10")
    top = add("SoftmaxOutput", "softmax", top, add("null", "softmax_label"))
    variables = [i for i, node in enumerate(nodes) if node["op"] == "null"]
    attrs = {"mxnet_version": ["int", 10901]}
    return {"nodes": nodes, "arg_nodes": variables, "heads": [[top, 0, 0]], "attrs": attrs}


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    shapes = {"data": [BATCH, 3, SIDE, SIDE], "words": [BATCH], "softmax_label": [BATCH]}
    return analyze(symbol(), ShapeRequest(shapes=shapes))


@pytest.fixture(scope="module")
def times(analysis: Analysis) -> OperatorTimes:
    return measure_operator_seconds(analysis.graph, dtypes=argument_dtypes(analysis))


def of(analysis: Analysis, found: OperatorTimes, name: str) -> float:
    return float(found.seconds[analysis.graph.names.index(name)])


def test_every_operator_has_a_time_and_no_variable(
    analysis: Analysis, times: OperatorTimes
) -> None:
    operators = analysis.graph.kind[: analysis.graph.n_forward] >= 0
    for seconds in (times.seconds, times.processor_seconds):
        assert seconds.shape == (analysis.graph.n_forward,)
        assert np.isfinite(seconds).all()
        assert (seconds[operators] > 0).all()
        assert (seconds[~operators] == 0).all()
    assert times.measured[operators].all(), (times.notes, times.failed)
    assert times.estimated_kinds == 0
    assert times.estimated_share == 0
    assert "kinds of operators, 14 timed on cpu" in times.notes[0]
    assert len(times.notes) == 1


def test_alike_nodes_are_timed_once(analysis: Analysis, times: OperatorTimes) -> None:
    for part in ("conv", "bn", "relu"):
        assert of(analysis, times, f"a_{part}") == of(analysis, times, f"b_{part}"), part
    operators = int((analysis.graph.kind[: analysis.graph.n_forward] >= 0).sum())
    # two blocks alike (three kinds), two sums of equal shapes, and Flatten that is none
    assert times.timed_kinds == operators - 5


def test_more_work_takes_longer(analysis: Analysis, times: OperatorTimes) -> None:
    big, small = (of(analysis, times, name) for name in ("big", "a_conv"))
    # 100 times the FLOPs; the small one is bound by memory, so it gains less than that
    assert 4 < big / small < 1000
    assert big > of(analysis, times, "fc")


def test_naming_data_costs_a_launch(analysis: Analysis, times: OperatorTimes) -> None:
    assert of(analysis, times, "flat") == times.launch_seconds > 0
    assert times.launch_seconds < 1e-3


def test_no_time_left_is_estimated_by_the_roofline(analysis: Analysis) -> None:
    graph = analysis.graph
    operators = graph.kind[: graph.n_forward] >= 0
    found = measure_operator_seconds(graph, limit_seconds=0.0)
    assert found.timed_kinds == 0
    assert found.why == {"for want of time": found.estimated_kinds}
    assert (found.seconds[operators] > 0).all()
    expected = roofline_seconds(graph, MACHINES["cpu"])
    big = graph.names.index("big")
    assert found.seconds[big] == pytest.approx(expected[big])
    assert found.estimated_share > 0.9
    assert "for want of time" in found.notes[1]


CRASHES = """
import json, os
from pathlib import Path
from memcli.engines.processes.worker import worker_main

def handle(job, workdir, progress):
    with Path(job["log"]).open("a") as log:
        def say(**row):
            print(json.dumps(row), file=log, flush=True)
        say(launch=1e-6)
        for kind in job["kinds"]:
            say(start=kind["number"])
            if kind["op"] == "BatchNorm":
                os.abort()
            if kind["op"] == "Dropout":
                say(number=kind["number"], skipped="Check failed: no")
                continue
            double = 2 * kind["roofline"]
            say(number=kind["number"], seconds=double, processor_seconds=double)
    return {}

if __name__ == "__main__":
    worker_main(handle)
"""


def test_an_operator_that_crashes_the_engine_is_estimated(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing_worker.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(timing, "_WORKER", "crashing_worker")
    graph = analysis.graph
    found = measure_operator_seconds(graph)
    assert found.why == {"that crash the engine when run alone": 1, "failed when run alone": 1}
    assert found.failed == {"Dropout": "Check failed: no"}
    # everything else took twice its roofline, so these are taken to as well
    twice = 2 * roofline_seconds(graph, MACHINES["cpu"])
    for name in ("a_bn", "b_bn", "drop", "big"):
        assert of(analysis, found, name) == pytest.approx(twice[graph.names.index(name)]), name
    assert found.measured.sum() == (graph.kind[: graph.n_forward] >= 0).sum() - 3


def test_kinds_carry_what_the_engine_needs(analysis: Analysis) -> None:
    graph = analysis.graph
    kinds, kind_of, unrunnable = timing._kinds(
        graph, argument_dtypes(analysis), roofline_seconds(graph, MACHINES["cpu"])
    )
    spec = {name: kinds[kind_of[graph.names.index(name)]] for name in ("a_bn", "single", "noise")}
    assert not unrunnable
    assert spec["a_bn"]["heads"] == [0]  # its mean and variance nobody reads
    assert [i["blocked"] for i in spec["a_bn"]["inputs"]] == [True, False, False, False, False]
    assert spec["single"]["inputs"][0]["dtype"] == "float16"
    assert spec["noise"]["inputs"] == []
    assert json.dumps(kinds)
