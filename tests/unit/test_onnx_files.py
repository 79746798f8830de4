"""ONNX files in and out: what is read, what is refused, and what a plan in a file changes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from memcli.errors import BadInput
from memcli.formats.input_shapes import bind_shapes
from memcli.formats.onnx.export_defects import losses
from memcli.formats.onnx.file import OnnxFile, parse_onnx, read_onnx
from memcli.formats.onnx.plan import strip_plan, write_plan
from memcli.formats.onnx.record import MARK_KEY, PLAN_KEY
from memcli.formats.onnx.roles import tensor_roles
from memcli.formats.onnx.training import as_training
from memcli.formats.onnx.weights import leaf_values
from memcli.formats.trained_file import new_plan
from memcli.request import ShapeRequest
from tests.conftest import ROOT

CORPUS = ROOT.parent / "shared" / "corpus" / "onnx"
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the ONNX corpus is not here")

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def weight(name: str, *shape: int, seed: int = 0) -> TensorProto:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def model(
    nodes: list[Any],
    weights: list[TensorProto],
    inputs: list[Any],
    outputs: list[str],
    *,
    opset: int = 17,
    rank: int = 4,
    **rest: Any,
) -> onnx.ModelProto:
    """A model with outputs of unsaid sizes."""
    dims = [f"d{i}" for i in range(rank)]
    ends = [helper.make_tensor_value_info(name, FLOAT, dims) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, ends, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **rest
    )


def image(*dims: int | str) -> Any:
    return helper.make_tensor_value_info("x", FLOAT, dims or ("batch", 3, 16, 16))


def network(opset: int = 17, training: bool = False) -> onnx.ModelProto:
    """Conv, BatchNorm, Relu, Dropout, pooling, Gemm."""
    mode = {"training_mode": 1} if training else {}
    nodes = [
        node("Conv", ["x", "c.weight", "c.bias"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        node(
            "BatchNormalization",
            ["conv", "b.weight", "b.bias", "b.mean", "b.var"],
            ["bn", "m", "v"] if training else ["bn"],
            name="bn",
            **mode,
        ),
        node("Relu", ["bn"], ["relu"]),
        node("Dropout", ["relu", "ratio"], ["drop"], name="drop")
        if opset >= 12
        else node("Dropout", ["relu"], ["drop"], name="drop", ratio=0.25),
        node("GlobalAveragePool", ["drop"], ["pool"], name="pool"),
        node("Reshape", ["pool", "flat"], ["rows"]),
        node("Gemm", ["rows", "f.weight", "f.bias"], ["y"], name="fc", transB=1),
    ]
    weights = [
        weight("c.weight", 4, 3, 3, 3),
        weight("c.bias", 4, seed=1),
        weight("b.weight", 4, seed=2),
        weight("b.bias", 4, seed=3),
        weight("b.mean", 4, seed=4),
        numpy_helper.from_array(np.full(4, 1.5, np.float32), "b.var"),
        weight("f.weight", 5, 4, seed=5),
        weight("f.bias", 5, seed=6),
        numpy_helper.from_array(np.array([-1, 4]), "flat"),
    ]
    if opset >= 12:
        weights.append(numpy_helper.from_array(np.float32(0.25), "ratio"))
    return model(nodes, weights, [image()], ["y"], opset=opset, rank=2)


def parse(proto: onnx.ModelProto, path: str | Path = "m.onnx") -> OnnxFile:
    return parse_onnx(proto.SerializeToString(), path)


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def planned(file: OnnxFile, out: Path) -> OnnxFile:
    marks = {name: ("kept", "again", "each")[i % 3] for i, name in enumerate(file.node_names)}
    plan = new_plan(
        file,
        marks,
        strategy="auto",
        shapes={"x": [2, 3, 16, 16]},
        dtype="float32",
        memory={"planned_bytes": 12},
        recompute={"fraction": 0.5},
    )
    write_plan(file, plan, out, overwrite=False)
    return read_onnx(out)


def refused(proto: onnx.ModelProto) -> str:
    with pytest.raises(BadInput) as caught:
        parse(proto)
    return " | ".join(caught.value.lines())


def outputs_of(data: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


# Reading


def test_what_a_file_says_of_its_graph(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.gz"
    path.write_bytes(gzip.compress(network().SerializeToString()))
    file = read_onnx(path)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (x,) = file.inputs
    assert (x.name, x.dtype, x.dims) == ("x", "float32", ("batch", 3, 16, 16))
    assert [value.name for value in file.outputs] == ["y"]
    # Relu and Reshape have no name and take their outputs'.
    assert file.node_names == ["conv", "bn", "relu", "drop", "pool", "rows", "fc"]
    assert file.opset == 17 and file.node_count == 7 and file.plan() is None


def test_a_number_makes_no_name_that_the_file_has() -> None:
    nodes = [
        node("Relu", ["x"], ["a"], name="n"),
        node("Relu", ["a"], ["b"], name="n"),
        node("Relu", ["b"], ["n"]),
        node("Relu", ["n"], ["y"], name="n_1"),
    ]
    names = parse(model(nodes, [], [image()], ["y"])).node_names
    assert len(set(names)) == 4 and names[0] == "n" and names[3] == "n_1"


def test_initializers_listed_as_inputs_are_no_free_inputs() -> None:
    proto = network()
    proto.graph.input.append(helper.make_tensor_value_info("c.bias", FLOAT, [4]))
    assert [value.name for value in parse(proto).inputs] == ["x"]


def test_unsound_graphs_are_refused_with_the_place() -> None:
    def graph(*nodes: Any) -> onnx.ModelProto:
        return model(list(nodes), [], [image()], ["y"])

    twice = graph(node("Relu", ["x"], ["y"], name="one"), node("Abs", ["x"], ["y"], name="two"))
    assert "nodes[1] (Abs 'two'): makes 'y', which nodes[0] (Relu 'one')" in refused(twice)
    missing = graph(node("Add", ["x", "nowhere"], ["y"], name="add"))
    assert "nodes[0] (Add 'add'): reads 'nowhere'" in refused(missing)
    unsorted = graph(node("Relu", ["a"], ["y"]), node("Relu", ["x"], ["a"], name="late"))
    assert "before nodes[1] (Relu 'late') makes it | ONNX wants nodes in topological order" in (
        refused(unsorted)
    )
    loop = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"])]
    cycle = graph(*loop, node("Abs", ["b"], ["y"]))
    assert "cycle" in refused(cycle)
    assert "no nodes" in refused(graph())
    assert "output 'y' is made by no node" in refused(graph(node("Relu", ["x"], ["z"])))
    lacking = graph(node("MatMul", ["x"], ["y"], name="mm"))
    assert "nodes[0] (MatMul 'mm'): lacks its input 1 (B)" in refused(lacking)
    assert "takes 1 at most" in refused(graph(node("Relu", ["x", "x"], ["y"])))
    foreign = graph(node("Gelu", ["x"], ["y"], domain="com.microsoft"))
    assert "domain 'com.microsoft', which the file does not import" in refused(foreign)


def test_operator_sets_too_old_or_too_new_are_refused_with_the_mend() -> None:
    assert "operator set 8" in refused(network(opset=8))
    assert "onnx.version_converter" in refused(network(opset=8))
    assert "pip install --upgrade onnx" in refused(network(opset=999))
    assert parse(network(opset=9)).opset == 9


def test_foreign_operators_are_listed_with_their_places() -> None:
    proto = model(
        [
            node("Gelu", ["x"], ["a"], domain="com.microsoft", name="g1"),
            node("FusedConv", ["a"], ["b"], domain="com.microsoft", name="f"),
            node("Gelu", ["b"], ["y"], domain="com.microsoft", name="g2"),
        ],
        [],
        [image()],
        ["y"],
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(BadInput) as caught:
        parse(proto).check_operators()
    assert "com.microsoft.FusedConv (1: 'f')" in caught.value.message
    assert "com.microsoft.Gelu (2: 'g1', 'g2')" in caught.value.message


def test_functions_of_the_model_are_put_in_place(tmp_path: Path) -> None:
    body = [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["out"])]
    swish = helper.make_function(
        "own", "Swish", ["a"], ["out"], body, [helper.make_opsetid("", 17)]
    )
    nodes = [
        node("Swish", ["x"], ["h"], domain="own", name="s1"),
        node("Swish", ["h"], ["y"], domain="own", name="s2"),
    ]
    proto = model(nodes, [], [image()], ["y"], functions=[swish])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    file = parse(proto, tmp_path / "m.onnx")
    assert [n.op_type for n in file.graph.node] == ["Sigmoid", "Mul"] * 2
    file.check_operators()
    again = planned(file, tmp_path / "p.onnx")
    assert again.plan() is not None and set(again.plan().marks) == set(file.node_names)
    assert strip_plan(again).data == file.data


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_end_in_a_message_and_never_in_a_traceback(data: st.DataObject) -> None:
    raw = bytearray(network().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        file = parse_onnx(bytes(raw), "m.onnx")
        tensor_roles(file)
        losses(file)
        as_training(file)
        bind_shapes(file, ShapeRequest())
    except BadInput as error:
        assert error.message


# External data


def external(proto: onnx.ModelProto, location: str, keep: tuple[str, ...] = ()) -> bytes:
    """Moves initializers out of the model; the bytes of the data file."""
    blob = b""
    for tensor in proto.graph.initializer:
        if tensor.name in keep:
            continue
        raw = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", len(blob)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        blob += raw
    return blob


def test_weights_in_a_missing_file_are_no_hindrance_but_shapes_are(tmp_path: Path) -> None:
    proto = network()
    external(proto, "w.bin", keep=("flat", "ratio"))
    file = parse(proto, tmp_path / "m.onnx")
    assert tensor_roles(file)["c.weight"].role == "parameter"
    values, missing = leaf_values(file)
    assert "c.weight" in missing and values["flat"].tolist() == [-1, 4]

    proto = network()
    blob = external(proto, "w.bin")
    message = ""
    try:
        parse(proto, tmp_path / "m.onnx")
    except BadInput as error:
        message = " ".join(error.lines())
    assert "'w.bin'" in message and ("'flat'" in message or "'ratio'" in message)

    (tmp_path / "w.bin").write_bytes(blob)
    file = parse(proto, tmp_path / "m.onnx")
    values, missing = leaf_values(file)
    inline, _ = leaf_values(parse(network()))
    assert not missing and values.keys() == inline.keys()
    assert all(np.array_equal(values[name], inline[name]) for name in inline)
    assert file.graph_sha256() == parse(network()).graph_sha256()

    (tmp_path / "w.bin").write_bytes(blob[:-1])
    with pytest.raises(BadInput, match="1 bytes too early"):
        leaf_values(parse(proto, tmp_path / "m.onnx"))


def test_external_data_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"s" * 1000)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    for location in ("../secret", "/etc/passwd", "a/../../secret", "link", "up/secret", ""):
        proto = network()
        external(proto, location)
        with pytest.raises(BadInput, match=r"outside of the model's folder|in which file"):
            parse(proto, folder / "m.onnx")


# Roles


def test_roles_follow_gradients_and_layers() -> None:
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("MatMul", ["e", "w"], ["h"]),
        node("Mul", ["h", "sqrt_d"], ["scaled"]),
        node("Constant", [], ["eps"], value_float=1e-5),
        node("Add", ["scaled", "eps"], ["shifted"]),
        node("Mul", ["shifted", "blocks.0.gamma"], ["g"]),
        node("Add", ["g", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["p"]),
        node("Transpose", ["table"], ["head"]),
        node("MatMul", ["p", "head"], ["y"]),
        node("ArgMax", ["unread_w"], ["best"]),
        node("Cast", ["best"], ["bestf"], to=FLOAT),
        node("Add", ["y", "bestf"], ["z"]),
    ]
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
    mask[np.isnan(mask)] = 0
    weights = [
        weight("table", 11, 8),
        weight("w", 8, 8),
        numpy_helper.from_array(np.float32(0.35), "sqrt_d"),
        numpy_helper.from_array(np.float32(1), "blocks.0.gamma"),
        numpy_helper.from_array(mask, "mask"),
        weight("unread_w", 8, 11),
    ]
    ids = helper.make_tensor_value_info("ids", INT64, ["batch", 8])
    roles = tensor_roles(parse(model(nodes, weights, [ids], ["z"])))
    by = {name: leaf.role for name, leaf in roles.items()}
    assert {name for name, role in by.items() if role == "parameter"} == {
        "table",
        "w",
        "blocks.0.gamma",
    }
    assert set(by.values()) == {"parameter", "constant"}


def test_batchnorm_statistics_are_states_and_equal_matrices_one_parameter() -> None:
    proto = network()
    proto.graph.node.append(node("Gemm", ["rows", "f.copy", "f.bias"], ["y2"], transB=1))
    copy = proto.graph.initializer.add()
    copy.CopyFrom(next(t for t in proto.graph.initializer if t.name == "f.weight"))
    copy.name = "f.copy"
    proto.graph.output.add().name = "y2"
    proto.graph.output[-1].type.tensor_type.elem_type = FLOAT
    roles = tensor_roles(parse(proto))
    assert {n for n, leaf in roles.items() if leaf.role == "state"} == {"b.mean", "b.var"}
    assert roles["f.copy"].tied_to == "f.weight" and roles["f.weight"].tied_to is None
    assert roles["flat"].role == roles["ratio"].role == "constant"
    assert roles["b.bias"].tied_to is None


def test_what_the_exporter_noted_goes_before_guesses() -> None:
    nodes = [node("Mul", ["x", "window"], ["a"]), node("Mul", ["a", "s"], ["y"])]
    weights = [weight("window", 16, 16), numpy_helper.from_array(np.float32(2), "s")]
    proto = model(nodes, weights, [image()], ["y"])
    assert tensor_roles(parse(proto))["window"].role == "parameter"
    proto.graph.metadata_props.add(
        key="pkg.torch.export.ExportedProgram.graph_signature",
        value="\n# inputs\nb_w: BUFFER target='window' persistent=True\n"
        "p_s: PARAMETER target='s'\n\n# outputs\n",
    )
    roles = tensor_roles(parse(proto))
    assert roles["window"].role == "constant" and roles["s"].role == "parameter"


# What is lost, and put back


@pytest.mark.parametrize("opset", [9, 12, 15, 17])
def test_inference_mode_is_told_and_put_back(opset: int) -> None:
    file = parse(network(opset))
    assert {loss.kind: loss.nodes for loss in losses(file)} == {
        "batchnorm-inference": ["bn"],
        "dropout-inference": ["drop"],
    }
    trained, done = as_training(file)
    onnx.checker.check_model(trained.model, full_check=True)
    left = {loss.kind for loss in losses(trained)}
    assert left == ({"dropout-inference"} if opset < 12 else set())
    assert any("BatchNormalization set to training" in text for text in done)
    assert ("no training mode" in " ".join(done)) == (opset < 12)
    assert trained.node_names == file.node_names
    assert file.data == network(opset).SerializeToString()
    same, nothing = as_training(trained)
    assert same is trained or opset < 12
    assert not nothing or opset < 12
    values = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    if opset >= 14:
        before = outputs_of(file.data, {"x": values})[0]
        after = outputs_of(trained.data, {"x": values})[0]
        assert before.shape == after.shape and not np.allclose(before, after)


def test_a_true_training_export_has_lost_nothing() -> None:
    proto = network(training=True)
    proto.graph.node[3].input.append("train")
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "train"))
    file = parse(proto)
    assert losses(file) == []
    assert as_training(file) == (file, [])


def test_folded_batchnorm_is_told_by_metadata_and_put_in_anew() -> None:
    nodes = [
        node("Conv", ["x", "0.weight", "0.bias"], ["getitem"], name="c1"),
        node("Relu", ["getitem"], ["relu"]),
        node("Conv", ["relu", "2.weight"], ["y"], name="c2"),
    ]
    weights = [weight("0.weight", 4, 3, 3, 3), weight("0.bias", 4), weight("2.weight", 2, 4, 1, 1)]
    proto = model(nodes, weights, [image()], ["y"])
    assert losses(parse(proto)) == []
    for key, value in {
        "pkg.onnxscript.rewriter.rule_name": "RemoveOptionalBiasFromConv, FuseBatchNormIntoConv",
        "pkg.torch.onnx.name_scopes": "['', '1', '_native_batch_norm_legit_functional']",
    }.items():
        proto.graph.node[0].metadata_props.add(key=key, value=value)
    file = parse(proto)
    (loss,) = losses(file)
    assert (loss.kind, loss.nodes) == ("batchnorm-folded", ["c1"])
    trained, done = as_training(file)
    assert as_training(trained) == (trained, [])
    onnx.checker.check_model(trained.model, full_check=True)
    assert [n.op_type for n in trained.graph.node] == ["Conv", "BatchNormalization", "Relu", "Conv"]
    assert "values are not" in done[0] and losses(trained) == []
    roles = {name: leaf.role for name, leaf in tensor_roles(trained).items()}
    assert roles["1.weight"] == roles["1.bias"] == "parameter"
    assert roles["1.running_mean"] == roles["1.running_var"] == "state"
    assert trained.graph.node[2].input[0] == "getitem"


# Shapes


def bound(dims: tuple[Any, ...], kind: int = FLOAT, **asked: Any) -> Any:
    value = helper.make_tensor_value_info("x", kind, dims)
    proto = model([node("Cast", ["x"], ["y"], to=FLOAT)], [], [value], ["y"])
    return bind_shapes(parse(proto), ShapeRequest(**asked))


def test_shapes_from_file_user_and_guesses() -> None:
    guessed = bound(("batch", 3, "height", "width"))
    assert guessed.shapes == {"x": [32, 3, 224, 224]} and guessed.assumed == ["x"]
    assert bound(("batch", 3, 64, 64), batch=4).assumed == []
    assert bound((1, 3, 64, 64), batch=4).shapes == {"x": [4, 3, 64, 64]}
    assert bound((1, 3, 64, 64), unnamed=[9, 3, 64, 64]).shapes == {"x": [9, 3, 64, 64]}
    assert bound((1, 3, 64, 64)).shapes == {"x": [1, 3, 64, 64]}
    assert bound(("N", "seq"), INT64).shapes == {"x": [32, 128]}
    assert bound(("N", 3, "h", "w"), unnamed=[2, 3, 8, 8]).symbols == {"N": 2, "h": 8, "w": 8}
    assert bound(("N", 3, "h", "w"), shapes={"?": [2, 3, 8, 8]}).shapes == {"x": [2, 3, 8, 8]}
    assert bound(("N", 4), dtype="float16").dtypes == {"x": "float16"}
    assert bound(("N", 4), INT64, dtype="float16").dtypes == {"x": "int64"}


@pytest.mark.parametrize(
    "dims, asked, message",
    [
        (("N", 3, 8, 8), {"shapes": {"x": [2, 3, 8]}}, "has 4 dimensions"),
        (("N", 3, 8, 8), {"shapes": {"x": [2, 4, 8, 8]}}, "dimension 1 is 3"),
        (("N", 3, 8, 8), {"shapes": {"z": [2]}}, "no input of that name"),
        (("N", "samples"), {}, "'samples'"),
        (("N", "past_len", 8), {}, "'past_len'"),
        (("s", "s"), {"shapes": {"x": [2, 3]}}, "needs one size"),
        (("N", 4), {"dtype": "int8"}, "--dtype int8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    dims: tuple[Any, ...], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        bound(dims, **asked)
    assert message in " ".join(caught.value.lines())


def test_one_symbol_is_one_size_in_all_inputs() -> None:
    inputs = [image(), helper.make_tensor_value_info("t", INT64, ["batch", "len"])]
    nodes = [node("Cast", ["t"], ["u"], to=FLOAT), node("Relu", ["x"], ["y"])]
    file = parse(model(nodes, [], inputs, ["y", "u"]))
    found = bind_shapes(file, ShapeRequest(shapes={"t": [6, 9]}))
    assert found.shapes == {"x": [6, 3, 16, 16], "t": [6, 9]} and found.assumed == []
    with pytest.raises(BadInput, match="makes it 6"):
        bind_shapes(file, ShapeRequest(shapes={"t": [6, 9]}, batch=5))


# Plans


def test_a_planned_file_runs_the_same_and_gives_the_original_back(tmp_path: Path) -> None:
    path = saved(network(), tmp_path / "m.onnx")
    file = read_onnx(path)
    out = planned(file, tmp_path / "p.onnx")
    onnx.checker.check_model(out.model, full_check=True)
    values = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    before, after = (outputs_of(f.data, {"x": values})[0] for f in (file, out))
    assert before.tobytes() == after.tobytes()

    plan = out.plan()
    assert plan is not None
    assert plan.original_name == "m.onnx" and plan.original_sha256 == file.sha256
    assert plan.marks == dict(
        zip(file.node_names, ["kept", "again", "each"] * 2 + ["kept"], strict=True)
    )
    assert json.loads(out.model.metadata_props[0].value)["nodes"][2] == ["relu", "relu", "each"]
    mirrored = [[e.value for e in n.metadata_props if e.key == MARK_KEY] for n in out.graph.node]
    assert mirrored == [[mark] for mark in plan.marks.values()]
    stripped = strip_plan(out)
    assert stripped.exact and stripped.data == path.read_bytes()
    # Planning a planned file leaves one plan in it.
    twice = planned(out, tmp_path / "pp.onnx")
    assert [e.key for e in twice.model.metadata_props] == [PLAN_KEY]
    assert strip_plan(twice).data == path.read_bytes()


def test_nothing_but_metadata_changes_not_even_what_protobuf_would_rewrite(tmp_path: Path) -> None:
    # Fields out of order, one that this version does not know, metadata of the user's own.
    proto = network()
    proto.metadata_props.add(key="author", value="someone")
    proto.graph.node[0].metadata_props.add(key="note", value="first")
    # The graph's second part is merged with the first; it holds a field that onnx does not know.
    later = onnx.ModelProto(producer_name="odd")
    raw = proto.SerializeToString() + b"\x3a\x06\xfa\x3f\x03abc" + later.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(raw)
    out = planned(read_onnx(path), tmp_path / "p.onnx")
    assert b"\xfa\x3f\x03abc" in out.data
    assert {e.key for e in out.model.metadata_props} == {"author", PLAN_KEY}
    assert strip_plan(out).data == raw


def test_a_plan_is_told_from_one_of_another_graph(tmp_path: Path) -> None:
    out = planned(parse(network(), tmp_path / "m.onnx"), tmp_path / "p.onnx")

    def changed(change: Any) -> OnnxFile:
        proto = onnx.ModelProto()
        proto.CopyFrom(out.model)
        change(proto)
        return parse(proto)

    def rename(proto: onnx.ModelProto) -> None:
        for n in proto.graph.node:
            n.name = f"other/{n.output[0]}"
            del n.metadata_props[:]
        proto.graph.initializer[0].CopyFrom(weight("c.weight", 4, 3, 3, 3, seed=9))
        proto.doc_string = "trained further"

    renamed = changed(rename).plan()
    assert renamed is not None and renamed.marks["other/relu"] == "each"

    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.node[2].op_type = "Elu"

    def reshape(proto: onnx.ModelProto) -> None:
        flat = next(t for t in proto.graph.initializer if t.name == "flat")
        flat.CopyFrom(numpy_helper.from_array(np.array([0, 4]), "flat"))

    for change in (edit, reshape):
        with pytest.raises(BadInput, match="changed after it was planned"):
            changed(change).plan()

    def text(value: str) -> Any:
        return lambda proto: setattr(proto.metadata_props[0], "value", value)

    good = json.loads(out.model.metadata_props[0].value)
    with pytest.raises(BadInput, match="newer memcli"):
        changed(text(json.dumps({**good, "schema": 99}))).plan()
    with pytest.raises(BadInput, match="is not the JSON"):
        changed(text("{")).plan()
    with pytest.raises(BadInput, match="'nodes' is not"):
        changed(text(json.dumps({**good, "nodes": [["a", "b", "maybe"]]}))).plan()
    with pytest.raises(BadInput, match="carries no plan"):
        strip_plan(parse(network()))
    assert not strip_plan(changed(edit)).exact


def test_a_plan_written_elsewhere_says_where_the_weights_are(tmp_path: Path) -> None:
    proto = network()
    (tmp_path / "w.bin").write_bytes(external(proto, "w.bin"))
    file = read_onnx(saved(proto, tmp_path / "m.onnx"))
    (tmp_path / "other").mkdir()
    marks = dict.fromkeys(file.node_names, "again")
    plan = new_plan(file, marks, strategy="s", shapes={}, dtype="float32")
    assert write_plan(file, plan, tmp_path / "p.onnx", overwrite=False) == []
    (note,) = write_plan(file, plan, tmp_path / "other" / "p.onnx", overwrite=False)
    assert "'w.bin'" in note and os.fspath(tmp_path / "other") in note
    kept = onnx.load(tmp_path / "other" / "p.onnx", load_external_data=False)
    assert kept.graph.initializer == proto.graph.initializer
    with pytest.raises(BadInput, match="exists already"):
        write_plan(file, plan, tmp_path / "p.onnx", overwrite=False)


# Real files

# Elements of parameters, as the networks' own libraries count them.
PARAMETERS = {
    "tv-resnet50-train-ts": 25_557_032,
    "tv-resnet50-train-dyn-noopt": 25_557_032,
    "onnxzoo-light_resnet50": 25_557_032,
    "tv-resnet152-train-ts": 60_192_808,
    "tv-densenet121-train-ts": 7_978_856,
    "mx-densenet121": 7_978_856,
    "tv-mobilenet_v2-train-ts": 3_504_872,
    "tv-mobilenet_v3_large-train-dyn-noopt": 5_483_032,
    "tv-efficientnet_b0-train-ts": 5_288_548,
    "tv-shufflenet_v2-train-ts": 2_278_604,
    "tv-vgg16_bn-train-ts": 138_365_992,
    "tv-googlenet-train-ts": 6_624_904,
    "tv-vit_b_16-train-ts": 86_567_656,
    "tv-convnext_tiny-train-dyn": 28_589_128,
    "hf-clip": 151_277_313,
    "hf-distilbert-mlm": 66_985_530,
}
RANDOM_SHAPES = {"pypi-silero_vad_ifless": {"input": [2, 512]}}


def corpus_rows() -> list[Any]:
    if not CORPUS.is_dir():
        return []
    with open(CORPUS / "index.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [pytest.param(row, id=row["path"].removesuffix(".onnx")) for row in rows]


@needs_corpus
@pytest.mark.parametrize("row", corpus_rows())
def test_corpus_file(row: dict[str, str], tmp_path: Path) -> None:
    name = row["path"].removesuffix(".onnx")
    file = read_onnx(CORPUS / row["path"])
    said = [(n, tuple(dims), kind) for n, dims, kind in json.loads(row["inputs"])]
    kinds = {"float32": "FLOAT", "int64": "INT64"}
    assert [(v.name, v.dims, kinds[v.dtype]) for v in file.inputs] == said
    assert file.node_count == int(row["n_nodes"]) == len(set(file.node_names))
    assert len(file.outputs) == int(row["n_outputs"])
    if row["custom_domains"]:
        with pytest.raises(BadInput, match=r"com\.microsoft\.DynamicQuantizeLSTM"):
            file.check_operators()
    else:
        file.check_operators()

    normalizations = sum(n.op_type == "BatchNormalization" for n in file.graph.node)
    in_training, every = map(int, row["bn_training/bn"].split("/"))
    frozen = [len(loss.nodes) for loss in losses(file) if loss.kind == "batchnorm-inference"]
    assert normalizations == every
    assert frozen == ([every - in_training] if every > in_training else [])
    trained, _ = as_training(file)
    kinds_left = {loss.kind for loss in losses(trained)}
    assert not kinds_left & {"batchnorm-inference", "batchnorm-folded"}
    if file.opset >= 12:
        assert "dropout-inference" not in kinds_left

    leaves = tensor_roles(file).values()
    assert sum(leaf.role == "state" for leaf in leaves) == 2 * every
    if name in PARAMETERS:
        sizes = [leaf.shape for leaf in leaves if leaf.role == "parameter" and not leaf.tied_to]
        assert sum(math.prod(shape) for shape in sizes if shape is not None) == PARAMETERS[name]

    shapes = bind_shapes(file, ShapeRequest(batch=2, shapes=RANDOM_SHAPES.get(name, {}))).shapes
    assert all(size > 0 for shape in shapes.values() for size in shape)

    out = planned(file, tmp_path / "planned.onnx")
    assert out.plan() is not None and strip_plan(out).data == file.data


@needs_corpus
def test_a_planned_corpus_file_runs_the_same(tmp_path: Path) -> None:
    # Of IR version 3: older than metadata of nodes.
    file = read_onnx(CORPUS / "onnxzoo-light_squeezenet.onnx")
    out = planned(file, tmp_path / "planned.onnx")
    onnx.checker.check_model(out.model, full_check=True)
    values = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    before, after = (outputs_of(f.data, {"data_0": values})[0] for f in (file, out))
    assert before.tobytes() == after.tobytes()


@needs_corpus
def test_a_conv_that_took_in_its_batchnorm_is_found_without_metadata() -> None:
    file = read_onnx(CORPUS / "tv-resnet50-dynamo-default.onnx")
    assert [(loss.kind, len(loss.nodes)) for loss in losses(file)] == [("batchnorm-folded", 53)]
    trained, _ = as_training(file)
    leaves = [leaf for leaf in tensor_roles(trained).values() if leaf.role == "parameter"]
    elements = sum(math.prod(leaf.shape or ()) for leaf in leaves)
    assert elements == PARAMETERS["tv-resnet50-train-ts"]
