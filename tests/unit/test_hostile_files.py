"""Files that others made do no harm: what they say is checked before anything acts on it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from memcli.engines.mxnet.record import analyze
from memcli.engines.mxnet.rewrites.reserved_blocks import scaled_reservation
from memcli.errors import BadInput
from memcli.formats.detect import read_source
from memcli.formats.onnx.file import OnnxFile, parse_onnx
from memcli.formats.onnx.plan import planned_bytes
from memcli.formats.symbol.edits import INSERTED_KEY
from memcli.formats.symbol.environment import ALLOWED, check_environment
from memcli.formats.symbol.file import SymbolFile
from memcli.formats.symbol.record import PLAN_KEY, PlanRecord
from memcli.formats.symbol.values import tuple_of
from memcli.formats.trained_file import new_plan
from memcli.quoting import shown_message, whole_number
from memcli.reports.console import PlainConsole
from memcli.request import ShapeRequest
from tests.conftest import needs_mxnet

SYMBOL: dict[str, Any] = {
    "nodes": [
        {"op": "null", "name": "data", "inputs": [], "attrs": {"__shape__": "(2, 4)"}},
        {"op": "null", "name": "w", "inputs": []},
        {
            "op": "FullyConnected",
            "name": "fc",
            "attrs": {"num_hidden": "3", "no_bias": "True"},
            "inputs": [[0, 0, 0], [1, 0, 0]],
        },
    ],
    "arg_nodes": [0, 1],
    "heads": [[2, 0, 0]],
}
RECORD = PlanRecord(
    strategy="auto",
    shapes={"data": [2, 4]},
    dtype="float32",
    environment={},
    original_name="net.json",
    original_sha256="0" * 64,
    n_nodes=3,
)


def symbol(**attributes: str) -> bytes:
    """The small symbol with attributes on its first node."""
    raw = json.loads(json.dumps(SYMBOL))
    raw["nodes"][0]["attrs"].update(attributes)
    return json.dumps(raw, ensure_ascii=False).encode()


def planned_symbol(**changes: Any) -> bytes:
    """The small symbol with a plan's record, fields of which are changed."""
    values = {**json.loads(RECORD.to_text()), **changes}
    return symbol(**{PLAN_KEY: json.dumps(values, ensure_ascii=False)})


def onnx_model(*nodes: onnx.NodeProto, functions: Any = (), **more: Any) -> onnx.ModelProto:
    """A model of one input and one output around some nodes."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, **more)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions)


def read(model: onnx.ModelProto, path: str = "net.onnx") -> OnnxFile:
    return parse_onnx(model.SerializeToString(), path)


HOSTILE = {
    "a library": ("MXNET_LIBRARY_PATH", "/tmp/evil.so"),
    "Python's path": ("PYTHONPATH", "."),
    "the loader's": ("LD_PRELOAD", "evil.so"),
    "another of MXNet's": ("MXNET_ENGINE_TYPE", "NaiveEngine"),
    "a superscript": ("NNVM_EXEC_MATCH_RANGE", "²"),
    "digits of another script": ("NNVM_EXEC_MATCH_RANGE", "٣"),
    "thousands of digits": ("NNVM_EXEC_MATCH_RANGE", "9" * 5000),
    "zero": ("NNVM_EXEC_MATCH_RANGE", "0"),
    "a sign": ("NNVM_EXEC_MATCH_RANGE", "+4"),
    "a blank": ("NNVM_EXEC_MATCH_RANGE", "4 "),
    "a line break": ("NNVM_EXEC_MATCH_RANGE", "4\n"),
    "no text": ("NNVM_EXEC_MATCH_RANGE", 4),
    "neither on nor off": ("MXNET_MKLDNN_ENABLED", "2"),
    "too large": ("MXNET_EXEC_INPLACE_GRAD_SUM_CAP", str(1 << 30)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_record_sets_no_variable_but_those_that_memcli_writes(case: str) -> None:
    name, value = HOSTILE[case]
    file = SymbolFile.from_bytes(planned_symbol(environment={name: value}), "planned.json")
    with pytest.raises(BadInput) as refused:
        file.plan()
    assert "planned.json" in refused.value.message
    assert name in refused.value.message


@given(st.dictionaries(st.sampled_from([*ALLOWED, "PATH"]) | st.text(), st.text() | st.integers()))
def test_what_passes_is_on_the_list_and_a_number(values: dict[str, Any]) -> None:
    try:
        passed = check_environment(values, "planned.json")
    except BadInput:
        return
    for name, value in passed.items():
        assert value.isascii() and ALLOWED[name][0] <= int(value) <= ALLOWED[name][1]


def test_every_variable_that_memcli_writes_passes() -> None:
    environment = {
        "NNVM_EXEC_MATCH_RANGE": "16",
        "MXNET_EXEC_INPLACE_GRAD_SUM_CAP": "5",
        "MXNET_MKLDNN_ENABLED": "0",
        "MXNET_USE_MKLDNN_RNN": "0",
    }
    plan = SymbolFile.from_bytes(planned_symbol(environment=environment), "p.json").plan()
    assert plan is not None and plan.environment == environment


def test_the_record_of_an_onnx_file_is_held_to_the_same_list() -> None:
    file = read(onnx_model(helper.make_node("Relu", ["x"], ["y"], name="r")))
    plan = new_plan(
        file,
        {"r": "kept"},
        strategy="auto",
        shapes={},
        dtype="float32",
        environment={"LD_PRELOAD": "evil.so"},
    )
    planned = parse_onnx(planned_bytes(file, plan), "planned.onnx")
    with pytest.raises(BadInput, match=r"planned\.onnx.*LD_PRELOAD"):
        planned.plan()


@given(st.text())
def test_a_number_is_ascii_digits_alone(text: str) -> None:
    number = whole_number(text)
    if number is not None:
        assert text.lstrip("0") == (str(number) if number else "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1, 3L,224)", (1, 3, 224)),
        ("[0,]", (0,)),
        ("()", ()),
        ("7", (7,)),
        ("(2, None)", (2, None)),
        ("(2.0, 1e2)", (2, 100)),
        ("{[]: 1}", None),
        ("__import__('os')", None),
        ("(" * 5000, None),
        ("(²,)", None),
        ("9" * 5000, None),
        ("(1e999,)", None),
        ("None", None),
    ],
)
def test_tuples_of_attributes_are_read_without_evaluating(text: str, value: Any) -> None:
    assert tuple_of(text) == value


@pytest.mark.parametrize("shape", ["{[]: 1}", "(1000000000000000000, 3)", "(2,²)", "x" * 10**6])
def test_a_shape_that_no_tensor_has_is_bad_input(shape: str) -> None:
    with pytest.raises(BadInput, match=r"net\.json: nodes\[0\].*__shape__") as refused:
        SymbolFile.from_bytes(symbol(__shape__=shape), "net.json")
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(("key", "value"), [("num_group", "0"), ("num_outputs", "1000000000")])
def test_a_number_that_mxnet_does_not_check_is_checked(key: str, value: str) -> None:
    """MXNet divides by the one, and makes as many outputs of the other, before it looks."""
    raw = json.loads(json.dumps(SYMBOL))
    raw["nodes"][2]["attrs"][key] = value
    with pytest.raises(BadInput, match=rf"net\.json: nodes\[2\].*'fc'.*{key}"):
        SymbolFile.from_bytes(json.dumps(raw).encode(), "net.json")


def test_a_state_that_is_no_variable_is_refused() -> None:
    """MXNet writes a BatchNorm's statistics into whatever stands there, and crashes."""
    names = ["data", "gamma", "beta", "mean"]
    nodes = [{"op": "null", "name": name, "inputs": []} for name in names]
    nodes.append({"op": "relu", "name": "act", "inputs": [[0, 0, 0]]})
    inputs = [[k, 0, 0] for k in range(5)]
    nodes.append({"op": "BatchNorm", "name": "bn", "inputs": inputs})
    raw = {"nodes": nodes, "arg_nodes": [0, 1, 2, 3], "heads": [[5, 0, 0]]}
    with pytest.raises(BadInput, match=r"net\.json: nodes\[5\]\.inputs\[4\]: 'bn' .BatchNorm."):
        SymbolFile.from_bytes(json.dumps(raw).encode(), "net.json")


def test_a_reserved_block_without_a_shape_is_refused() -> None:
    """As fit meets it, which reserves for other batches than the plan's."""
    raw = json.loads(planned_symbol())
    block = {"op": "_zeros", "name": "b", "attrs": {INSERTED_KEY: "1"}, "inputs": []}
    raw["nodes"].append(block)
    with pytest.raises(BadInput, match=r"nodes\[3\]: a reserved block of shape null"):
        scaled_reservation(raw, 4, 2)


@needs_mxnet
def test_a_graph_without_outputs_is_no_failure_of_mxnet() -> None:
    """MXNet loads and binds it, and then has no memory plan to tell of."""
    with pytest.raises(BadInput, match="heads: the list is empty"):
        analyze({**SYMBOL, "heads": []}, ShapeRequest())


# -- ONNX -------------------------------------------------------------------------------------


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function(
        "my", name, ["x"], ["y"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    )


def chain_of(op: str, count: int, domain: str = "") -> list[onnx.NodeProto]:
    """Nodes of one operator, each reading the last."""
    names = ["x", *(f"t{k}" for k in range(count - 1)), "y"]
    return [helper.make_node(op, [names[k]], [names[k + 1]], domain=domain) for k in range(count)]


def test_functions_that_unfold_without_end_are_counted_and_not_unfolded() -> None:
    functions = [function("f0", *chain_of("Relu", 10))]
    functions += [function(f"f{k}", *chain_of(f"f{k - 1}", 10, "my")) for k in range(1, 30)]
    model = onnx_model(helper.make_node("f29", ["x"], ["y"], domain="my"), functions=functions)
    with pytest.raises(BadInput, match=r"net\.onnx: its functions unfold to .* nodes"):
        read(model)


@pytest.mark.parametrize("length", [1, 2, 3000])
def test_functions_that_call_themselves_are_refused(length: int) -> None:
    calls = [
        helper.make_node(f"f{(k + 1) % length}", ["x"], ["y"], domain="my") for k in range(length)
    ]
    functions = [function(f"f{k}", call) for k, call in enumerate(calls)]
    model = onnx_model(helper.make_node("f0", ["x"], ["y"], domain="my"), functions=functions)
    with pytest.raises(BadInput, match=r"net\.onnx: function .* calls itself"):
        read(model)


def test_functions_of_a_usual_size_are_put_in_place() -> None:
    functions = [function("f0", *chain_of("Relu", 3)), function("f1", *chain_of("f0", 2, "my"))]
    model = onnx_model(helper.make_node("f1", ["x"], ["y"], domain="my"), functions=functions)
    assert [node.op_type for node in read(model).graph.node] == ["Relu"] * 6


@pytest.mark.parametrize("version", [-1, 1 << 31, (1 << 63) - 1])
@pytest.mark.parametrize("whose", ["the model's", "a function's"])
def test_a_version_that_no_operator_set_has_is_refused(version: int, whose: str) -> None:
    functions = [function("f0", *chain_of("Relu", 1))]
    model = onnx_model(helper.make_node("f0", ["x"], ["y"], domain="my"), functions=functions)
    holder = model if whose == "the model's" else model.functions[0]
    holder.opset_import[1].version = version
    with pytest.raises(BadInput, match=rf"net\.onnx: uses version {version} .*'my'"):
        read(model)


def bad_nodes() -> dict[str, onnx.NodeProto]:
    """Nodes whose attributes are not as their operators' schemas have them."""
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="it")
    conv.attribute.append(helper.make_attribute("dilations", 0.5))
    cast = helper.make_node("Cast", ["x"], ["y"], name="it")  # 'to' is required
    constant = helper.make_node("ConstantOfShape", ["s"], ["y"], name="it")
    constant.attribute.append(helper.make_attribute("value", 1.0))
    branch = helper.make_node("If", ["c"], ["y"], name="it")
    twice = helper.make_node("Softmax", ["x"], ["y"], name="it", axis=1)
    twice.attribute.append(helper.make_attribute("axis", 0))
    outputs = helper.make_node("Relu", ["x"], ["y", "z"], name="it")
    return {
        "type": conv,
        "missing": cast,
        "no tensor": constant,
        "no branch": branch,
        "twice": twice,
        "outputs": outputs,
    }


@pytest.mark.parametrize("case", bad_nodes())
def test_attributes_that_the_schema_does_not_allow_name_their_node(case: str) -> None:
    weights = [
        numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.array([2, 4]), "s"),
        numpy_helper.from_array(np.array(True), "c"),
    ]
    with pytest.raises(BadInput, match=r"net\.onnx: nodes\[0\].*'it'"):
        read(onnx_model(bad_nodes()[case], initializer=weights))


@pytest.mark.parametrize("dims", [[1 << 62], [1 << 31, 1 << 31], [-1], [1 << 53, 0, 1 << 62]])
def test_a_tensor_that_cannot_be_is_refused(dims: list[int]) -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    with pytest.raises(BadInput, match=r"net\.onnx: initializer 'w' has the shape"):
        read(onnx_model(node, initializer=[weight]))


def external(name: str, dims: list[int], location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.INT64, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_a_large_external_tensor_that_decides_about_shapes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.bin", "wb") as file:
        file.truncate(8 << 30)  # of no blocks
    model = onnx_model(
        helper.make_node("Reshape", ["x", "s"], ["y"]),
        initializer=[external("s", [1 << 30], "sparse.bin")],
    )
    with pytest.raises(BadInput, match=r"net\.onnx.*'s'.*bytes"):
        read(model, str(tmp_path / "net.onnx"))


def test_what_standard_input_brings_has_no_folder_for_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of that name in the current folder is not the model's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.bin").write_bytes(np.array([4, 2]).tobytes())
    model = onnx_model(
        helper.make_node("Reshape", ["x", "s"], ["y"]),
        initializer=[external("s", [2], "data.bin")],
    )
    assert read(model, str(tmp_path / "net.onnx")).node_count == 1
    with pytest.raises(BadInput, match=r"standard input: 's' decides about shapes.*pipe"):
        read(model, "-")


def test_a_graph_that_is_too_large_is_refused_with_the_limit() -> None:
    with pytest.raises(BadInput, match=r"has 60000 nodes.*up to 50000"):
        read(onnx_model(*chain_of("Relu", 60_000)))


# -- what is printed --------------------------------------------------------------------------

EVIL = "a\x1b]0;title\x07\x1b[31mb\u202e\x9bc\nd"


def test_nothing_unprintable_reaches_a_terminal() -> None:
    written = io.StringIO()
    console = PlainConsole(file=written, force_terminal=True, width=60)
    console.print(EVIL, markup=False)
    console.print(f"[bold]{EVIL}[/bold]")
    from memcli.reports.tables import add_folded, facts, new_table

    table = new_table(EVIL, [(EVIL, "left")])
    add_folded(table, [[EVIL]])
    console.print(table)
    facts(console, [("name", EVIL)])
    text = written.getvalue()
    assert not set(text) & set("\x07\x9b\u202e")
    assert "\x1b]" not in text and "\x1b[31m" not in text
    assert "\\x1b]0;title" in text and "\x1b[1m" in text  # bold is rich's own


@given(st.text())
def test_a_message_is_one_printable_line_of_readable_length(text: str) -> None:
    line = shown_message(text * 200)
    assert line.isprintable() and len(line) <= 700


def test_a_model_is_read_once(tmp_path: Path) -> None:
    """What was read already is handed on: the file may be gone, or another one, by then."""
    path = tmp_path / "net.json"
    path.write_bytes(symbol())
    source = read_source(path)
    path.unlink()
    assert read_source(source) is source
    assert source.format == "mxnet-symbol"
