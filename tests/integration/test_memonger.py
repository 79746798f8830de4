"""The drop-in for training scripts, checked against MXNet's own binds of the symbols it returns.

MXNet is never loaded into the process of the tests: this file is its own child
(``python -m tests.integration.test_memonger RESULT``), in which every scenario runs once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memcli.engines.mxnet.record import analyze
from memcli.errors import BadInput
from memcli.request import ShapeRequest
from tests.conftest import EXAMPLES, ROOT, needs_mxnet

pytestmark = needs_mxnet

RESNET_SHAPES = {"data": (32, 3, 224, 224)}
WIDTH, BATCH = 256, 4096  # one feature map of the small networks is 4 MB
MAP = WIDTH * BATCH * 4


# --------------------------------------------------------------------------- in the child


def marked(symbol: Any) -> list[str]:
    """Names of the operators that are marked for recomputation."""
    nodes = json.loads(symbol.tojson())["nodes"]
    return [
        node["name"]
        for node in nodes
        if node["op"] != "null" and node.get("attrs", {}).get("__force_mirroring__") == "True"
    ]


def bound(mx: Any, symbol: Any, shapes: Any, types: Any = None) -> int:
    """MXNet's own figure for a symbol, in MB."""
    executor = symbol.simple_bind(mx.cpu(), grad_req="write", type_dict=types, **shapes)
    lines = executor.debug_str().splitlines()
    return int(next(line for line in lines if "MB allocated" in line).split()[1])


def searched(mx: Any, symbol: Any, shapes: Any, types: Any = None) -> dict[str, Any]:
    """A search with everything that can be said of it."""
    from memcli import memonger

    before = symbol.tojson()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        planned = memonger.search_plan(symbol, type_dict=types, **shapes)
        cost, planned_cost = (memonger.get_cost(s, types, **shapes) for s in (symbol, planned))
        again = memonger.search_plan(planned, type_dict=types, **shapes)
    return {
        "cost": cost,
        "bound": bound(mx, symbol, shapes, types),
        "planned_cost": planned_cost,
        "planned_bound": bound(mx, planned, shapes, types),
        "printed": printed.getvalue().splitlines(),
        "unchanged": symbol.tojson() == before,
        "same_interface": planned.list_arguments() == symbol.list_arguments()
        and planned.list_outputs() == symbol.list_outputs(),
        "again_is_same": again.tojson() == planned.tojson(),
        "marked": marked(planned),
    }


def layers(mx: Any, count: int, data: Any = None, first: int = 0) -> Any:
    """Fully connected layers of ``WIDTH``, numbered from ``first``, an activation behind each."""
    data = mx.sym.Variable("data") if data is None else data
    for index in range(first, first + count):
        data = mx.sym.FullyConnected(data, num_hidden=WIDTH, name=f"fc{index}")
        data = mx.sym.Activation(data, act_type="tanh", name=f"act{index}")
    return data


SMALL: dict[str, Any] = {"data": (BATCH, WIDTH)}


def resnet(mx: Any) -> Any:
    return searched(mx, mx.sym.load(str(EXAMPLES / "resnet-50-symbol.json")), RESNET_SHAPES)


def lstm(mx: Any) -> Any:
    return searched(mx, mx.sym.load(str(EXAMPLES / "lstm-symbol.json")), {})


def unmarked_resnet(mx: Any) -> Any:
    raw = json.loads((EXAMPLES / "resnet-50-symbol.json").read_text())
    for node in raw["nodes"]:
        node.get("attrs", {}).pop("__mirror_stage__", None)
    return searched(mx, mx.sym.load_json(json.dumps(raw)), RESNET_SHAPES)


def half(mx: Any) -> Any:
    import numpy as np

    symbol = mx.sym.SoftmaxOutput(layers(mx, 8), name="softmax")
    return searched(mx, symbol, SMALL, {"data": np.float16, "not_there": "float16"})


def without_loss(mx: Any) -> Any:
    symbol = mx.sym.FullyConnected(layers(mx, 20), num_hidden=5 * WIDTH, name="wide")
    return searched(mx, symbol, SMALL)


def match_range(mx: Any) -> Any:
    """The user's environment decides what MXNet allocates, so it decides what is said."""
    os.environ["NNVM_EXEC_MATCH_RANGE"] = "2"
    try:
        return without_loss(mx)
    finally:
        del os.environ["NNVM_EXEC_MATCH_RANGE"]


def marks_of_all_kinds(mx: Any) -> Any:
    """'True' through AttrScope, stage names through attr=, Dropout and a random operator."""
    from memcli import memonger

    data = layers(mx, 2)
    with mx.AttrScope(mirror_stage="True"):
        data = mx.sym.Activation(data, act_type="relu", name="cut0")
    data = mx.sym.Dropout(layers(mx, 4, data, first=2) * 2, p=0.5, name="drop")
    noise = mx.sym.random.uniform(shape=(BATCH, WIDTH), name="noise")
    left = mx.sym.Activation(
        data * noise, act_type="tanh", name="left", attr={"mirror_stage": "pair"}
    )
    right = mx.sym.Activation(data, act_type="sigmoid", name="right", attr={"mirror_stage": "pair"})
    # Names repeat: both of these are called 'sum'.
    data = mx.sym.elemwise_add(left, right, name="sum")
    data = mx.sym.elemwise_add(mx.sym.square(data, name="square"), data, name="sum")
    symbol = mx.sym.SoftmaxOutput(data, name="softmax")
    before = symbol.tojson()
    result: dict[str, Any] = {"passes": {}, "operators": []}
    for threshold in (0, 24, 1000):
        info: dict[str, int] = {}
        planned = memonger.make_mirror_plan(symbol, threshold, info, **SMALL)
        result["passes"][str(threshold)] = {
            "info": info,
            "marked": marked(planned),
            "cost": memonger.get_cost(planned, **SMALL),
            "bound": bound(mx, planned, SMALL),
        }
    nodes = json.loads(before)["nodes"]
    result["operators"] = [node["name"] for node in nodes if node["op"] != "null"]
    result["unchanged"] = symbol.tojson() == before
    return result


def guarded(mx: Any) -> Any:
    """BatchNorm, once with the user's own choice of kernel."""
    from memcli import memonger

    data = layers(mx, 3)
    data = mx.sym.BatchNorm(data, name="plain")
    data = mx.sym.BatchNorm(layers(mx, 1, data, first=3), name="chosen", cudnn_off=False)
    data._set_attr(mirror_stage="True")  # not reached by the threshold
    symbol = mx.sym.SoftmaxOutput(data, name="softmax")
    planned = memonger.make_mirror_plan(symbol, 1000, **SMALL)
    twice = memonger.make_mirror_plan(planned, 1000, **SMALL)
    nodes = json.loads(planned.tojson())["nodes"]
    return {
        "cudnn_off": {n["name"]: n["attrs"].get("cudnn_off") for n in nodes if "Norm" in n["op"]},
        "same_twice": planned.tojson() == twice.tojson(),
    }


def merged(mx: Any) -> Any:
    """Two equal nodes, of which a foreign plan marks one: MXNet then does not merge them."""
    from memcli import memonger

    data = layers(mx, 4)
    parts = [mx.sym.sin(data, name=f"sin{i}") for i in range(2)]
    symbol = mx.sym.SoftmaxOutput(parts[0] * parts[1], name="softmax")
    raw = json.loads(symbol.tojson())
    for node in raw["nodes"]:
        if node["name"] in ("act3", "sin1"):
            node.setdefault("attrs", {})["__force_mirroring__"] = "True"
    other = mx.sym.load_json(json.dumps(raw))
    return {
        "cost": memonger.get_cost(other, **SMALL),
        "bound": bound(mx, other, SMALL),
        "search": searched(mx, symbol, SMALL),
    }


def errors(mx: Any) -> Any:
    from memcli import memonger

    symbol = mx.sym.SoftmaxOutput(layers(mx, 1), name="softmax")
    calls: dict[str, Callable[[], Any]] = {
        "no shape": lambda: memonger.get_cost(symbol),
        "unknown": lambda: memonger.search_plan(symbol, nothing=(1, 2)),
        "contradiction": lambda: memonger.get_cost(symbol, **SMALL, fc0_weight=(1, 2)),
        "dtype": lambda: memonger.get_cost(symbol, {"data": "float17"}, **SMALL),
        "no symbol": lambda: memonger.make_mirror_plan("net", 0),  # type: ignore[arg-type]
    }
    result = {}
    for name, call in calls.items():
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                call()
            except BadInput as error:
                result[name] = error.message
    return result


SCENARIOS: tuple[Callable[[Any], Any], ...] = (
    resnet,
    lstm,
    unmarked_resnet,
    half,
    without_loss,
    match_range,
    marks_of_all_kinds,
    guarded,
    merged,
    errors,
)


def child(result_file: str) -> None:
    """Runs all scenarios; one that fails leaves its traceback."""
    from memcli.engines.mxnet.shim import import_mxnet

    mx = import_mxnet()
    results = {}
    for scenario in SCENARIOS:
        try:
            with mx.name.NameManager():
                results[scenario.__name__] = scenario(mx)
        except Exception:
            results[scenario.__name__] = traceback.format_exc()
    Path(result_file).write_text(json.dumps(results))


# --------------------------------------------------------------------------- in the tests


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every scenario found."""
    path = tmp_path_factory.mktemp("memonger") / "results.json"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MXNET_", "NNVM_"))}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_memonger", str(path)],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert path.exists(), ran.stderr[-3000:]
    return json.loads(path.read_text())


def taken(results: dict[str, Any], name: str) -> Any:
    """One scenario's result; its traceback is the test's failure."""
    assert not isinstance(results[name], str), results[name]
    return results[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet", "lstm", "unmarked_resnet", "half", "without_loss", "match_range"]
)
def test_costs_are_those_of_mxnet(results: dict[str, Any], name: str) -> None:
    found = taken(results, name)
    assert found["cost"] == found["bound"]
    assert found["planned_cost"] == found["planned_bound"]
    assert found["planned_cost"] < 0.75 * found["cost"]
    assert found["unchanged"] and found["same_interface"] and found["again_is_same"]
    assert found["printed"][0].startswith("Search threshold=")
    last = found["printed"][-1]
    assert last.startswith("Find best plan with threshold=")
    assert last.endswith(f"cost={found['planned_cost']} MB")


@pytest.mark.slow
def test_resnet_gives_the_original_figures(results: dict[str, Any]) -> None:
    found = taken(results, "resnet")
    assert (found["cost"], found["planned_cost"]) == (4899, 1658)
    # the original's progress on this network, line by line
    lines = [
        "Search threshold=0 MB, cost=1658 MB",
        "Search threshold=469 MB, cost=2194 MB",
        "Search threshold=378 MB, cost=2099 MB",
        "Find best plan with threshold=0, cost=1658 MB",
    ]
    assert found["printed"] == 2 * lines


@pytest.mark.slow
def test_lstm_gives_the_original_figures(results: dict[str, Any]) -> None:
    found = taken(results, "lstm")
    assert (found["cost"], found["planned_cost"]) == (132, 47)


def test_without_marks_it_is_no_worse_than_the_marks_that_a_person_set(
    results: dict[str, Any],
) -> None:
    assert taken(results, "unmarked_resnet")["planned_cost"] <= 1658


@pytest.mark.slow
def test_marks_are_read_as_the_classic_pass_reads_them(results: dict[str, Any]) -> None:
    found = taken(results, "marks_of_all_kinds")
    assert found["unchanged"]
    never = {"drop", "noise"}
    passes = found["passes"]
    for outcome in passes.values():
        assert outcome["cost"] == outcome["bound"]
        assert not never & set(outcome["marked"])
    everything = [name for name in found["operators"] if name not in never]
    assert passes["0"]["marked"] == [n for n in everything if n not in ("cut0", "left", "right")]
    # The largest stage: eight maps of four layers, the product with 2, Dropout's output, the
    # noise, the product with it, and the first of the pair; all three marked nodes are kept.
    assert passes["0"]["info"] == {"max_size": 13 * MAP, "save_size": 3 * MAP}
    # Six maps have come at the first cut: data, two layers of two, and the cut itself. That is
    # 24 MB and no more, so they count for the second stage.
    assert passes["24"]["info"] == {"max_size": 19 * MAP, "save_size": 2 * MAP}
    assert "cut0" in passes["24"]["marked"]
    assert passes["1000"]["marked"] == everything
    assert passes["1000"]["info"] == {"max_size": 0, "save_size": 0}


@pytest.mark.slow
def test_recomputed_batchnorm_is_exact_under_cudnn(results: dict[str, Any]) -> None:
    found = taken(results, "guarded")
    assert found["cudnn_off"] == {"plain": "True", "chosen": "False"}
    assert found["same_twice"]


@pytest.mark.slow
def test_equal_nodes_with_different_marks(results: dict[str, Any]) -> None:
    found = taken(results, "merged")
    assert found["cost"] == found["bound"]
    assert found["search"]["planned_cost"] == found["search"]["planned_bound"]


@pytest.mark.slow
def test_errors_name_the_place(results: dict[str, Any]) -> None:
    found = taken(results, "errors")
    assert found["no shape"].endswith("data")
    assert "'nothing'" in found["unknown"]
    assert "fc0" in found["contradiction"]
    assert "'data'" in found["dtype"]
    assert "str" in found["no symbol"]


def small_raw() -> dict[str, Any]:
    """One layer as a symbol's JSON, its weight first seen by the layer."""
    return {
        "nodes": [
            {"op": "null", "name": "data", "inputs": []},
            {"op": "null", "name": "w", "inputs": []},
            {
                "op": "FullyConnected",
                "name": "fc",
                "attrs": {"num_hidden": "8", "no_bias": "True"},
                "inputs": [[0, 0, 0], [1, 0, 0]],
            },
        ],
        "arg_nodes": [0, 1],
        "heads": [[2, 0, 0]],
    }


def test_dtypes_of_single_arguments() -> None:
    request = ShapeRequest(shapes={"data": [4, 2]}, dtypes={"data": "float16"})
    found = analyze(small_raw(), request)
    assert {a["name"]: a["dtype"] for a in found.arguments} == {"data": "float16", "w": "float16"}
    with pytest.raises(BadInput, match="'nothing'"):
        analyze(small_raw(), ShapeRequest({"data": [4, 2]}, dtypes={"nothing": "float16"}))


def test_the_import_is_cheap() -> None:
    code = (
        "import sys; from memcli import memonger; "
        "print(sorted({'mxnet', 'numpy', 'numba', 'onnx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]", ran.stderr


if __name__ == "__main__":
    child(sys.argv[1])
