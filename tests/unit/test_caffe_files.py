"""Reading Caffe's net definitions, and the comments that carry a plan."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from memcli.errors import BadInput
from memcli.formats.caffe.annotate import carried_plan, without_plan
from memcli.formats.caffe.file import CaffeFile
from memcli.formats.detect import detect_format
from memcli.formats.onnx.record import MARKS
from memcli.formats.onnx.roles import tensor_roles
from memcli.formats.trained_file import new_plan
from tests.caffe_nets import densenet, inputs, layer, read

DATA = inputs(x=(2, 3, 8, 8))


def operators(file: CaffeFile) -> dict[str, str]:
    """{node: operator}."""
    return {n: node.op_type for n, node in zip(file.node_names, file.graph.node, strict=True)}


def refusal(text: str, **asked: object) -> str:
    """What is said of a net that cannot be taken."""
    with pytest.raises(BadInput) as caught:
        read(text, **asked)
    return " ".join(caught.value.lines())


@pytest.mark.parametrize(
    ("rules", "taken"),
    [
        ("", True),
        ("include { phase: TRAIN }", True),
        ("include { phase: TEST }", False),
        ("exclude { phase: TRAIN }", False),
        ("exclude { phase: TEST }", True),
        ("include { phase: TEST } include { min_level: 1 }", True),
        ("include { min_level: 3 }", False),
        ("include { max_level: 2 stage: 'deep' }", True),
        ("include { stage: 'deep' stage: 'wide' }", False),
        ("include { not_stage: 'deep' }", False),
        ("exclude { stage: 'wide' }", True),
    ],
)
def test_rules_choose_the_training_net(rules: str, taken: bool) -> None:
    text = "state { phase: TEST level: 2 stage: 'deep' }" + DATA
    text += layer("ReLU", "x", "a", rules, "maybe") + layer("TanH", "x", "b", name="always")
    assert ("maybe" in operators(read(text))) == taken


def test_nets_of_the_second_generation_are_upgraded() -> None:
    old = """
    input: "data" input_dim: 2 input_dim: 3 input_dim: 9 input_dim: 9
    layers { name: "d" type: DATA top: "unused" top: "label"
      data_param { batch_size: 2 crop_size: 9 } }
    layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 0 blobs_lr: 2
      convolution_param { num_output: 4 kernel_size: 3 } }
    layers { name: "r" type: RELU bottom: "c" top: "c" }
    layers { name: "f" type: INNER_PRODUCT bottom: "c" top: "f"
      inner_product_param { num_output: 5 } }
    layers { name: "l" type: SOFTMAX_LOSS bottom: "f" bottom: "label" top: "l" }
    """
    file = read(old)
    assert list(operators(file).values()) == [
        "Conv",
        "Relu",
        "Flatten",
        "Gemm",
        "SoftmaxCrossEntropyLoss",
    ]
    roles = {name: leaf.role for name, leaf in tensor_roles(file).items()}
    assert roles["c.weight"] == "constant" and roles["c.bias"] == "parameter"
    assert {v.name: v.dims for v in file.inputs} == {
        "data": ("batch", 3, 9, 9),
        "label": ("batch",),
    }


def test_what_data_layers_say_of_shapes_is_used() -> None:
    def shapes(data: str, **asked: object) -> tuple[dict[str, object], tuple[str, ...]]:
        text = layer(data.split(maxsplit=1)[0], "", "x t", data.split(" ", 1)[1])
        text += layer("InnerProduct", "x", "f", "inner_product_param { num_output: 5 }", "f")
        text += layer("SoftmaxWithLoss", "f t", "loss", name="loss")
        file = read(text, **asked)
        assert {v.name: v.dtype for v in file.inputs} == {"x": "float32", "t": "int64"}
        return {v.name: (file.batch, *(v.dims or ())[1:]) for v in file.inputs}, file.assumed

    crop = "transform_param { crop_size: 20 "
    assert shapes(f"Data data_param {{ batch_size: 7 }} {crop} force_gray: true }}") == (
        {"x": (7, 1, 20, 20), "t": (7,)},
        (),
    )
    assert shapes(f"Data data_param {{ batch_size: 7 }} {crop} }}")[1] == ("x",)  # its channels
    assert shapes("Data data_param { batch_size: 7 }", shapes={"x": [5, 2, 6, 7]}) == (
        {"x": (5, 2, 6, 7), "t": (5,)},
        (),
    )
    assert shapes("Data data_param { batch_size: 7 }", batch=3)[0]["t"] == (3,)
    assert shapes("ImageData image_data_param { batch_size: 4 new_height: 9 new_width: 8 }")[0] == {
        "x": (4, 3, 9, 8),
        "t": (4,),
    }
    assert shapes("MemoryData memory_data_param { batch_size: 2 channels: 4 height: 5 width: 6 }")[
        0
    ]["x"] == (2, 4, 5, 6)
    assert shapes("HDF5Data hdf5_data_param { batch_size: 2 }", unnamed=[2, 9])[0] == {
        "x": (2, 9),
        "t": (2,),
    }
    assert shapes("DummyData dummy_data_param { shape { dim: 3 dim: 2 } shape { dim: 3 } }")[0] == {
        "x": (3, 2),
        "t": (3,),
    }


def test_labels_may_be_cut_up_on_their_way() -> None:
    of = "dummy_data_param { num: 4 channels: 2 height: 1 width: 1 }"
    text = layer("DummyData", "", "x t", of, "data")
    text += layer("Slice", "t", "t1 t2", name="cut")
    text += layer("SoftmaxWithLoss", "x t1", "l1", name="l1")
    text += layer("SoftmaxWithLoss", "x t2", "l2", name="l2")
    file = read(text)
    assert [v.dtype for v in file.inputs] == ["float32", "int64"]
    assert [v.name for v in file.outputs] == ["l1", "l2"]


def test_losses_and_what_nobody_reads_are_the_outputs() -> None:
    text = DATA + layer("Power", "x", "p", "loss_weight: 0.25", "p")
    text += layer("ReLU", "x", "r", name="r") + layer("TanH", "x", "h", name="h")
    text += layer("ArgMax", "h", "m", "argmax_param { axis: 1 }", "m") + layer("Silence", "m", "")
    assert [v.name for v in read(text).outputs] == ["p/weighted", "r"]
    assert [node.op_type for node in read(text).graph.node] == ["ReduceSum", "Mul", "Relu"]


def test_metrics_are_left_out_with_a_note() -> None:
    file = read(densenet())
    assert [v.name for v in file.outputs] == ["loss"]
    assert "left out: Accuracy (accuracy)" in file.notes
    assert not any("accuracy" in name for name in file.node_names)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DATA + "layer { name: 'a' type: 'ReLU' relu_param { negative_slope: x } }", "line 2: "),
        (DATA + "layer {\n name: 'a'\n type: 'ReLU'\n", "line 4: "),
        (DATA + "layer { name: 'p' type: 'Pooling' pooling_param { pool: MEDIAN } }", "MEDIAN"),
        (DATA + layer("ReLU", "y", "z"), "layer 'l' (line 2, ReLU) reads blob 'y', which no layer"),
        (
            DATA + layer("ReLU", "x", "y", "include { phase: TEST }") + layer("ReLU", "y", "z"),
            "no layer of the phase TRAIN writes",
        ),
        (
            DATA + layer("Eltwise", "x b", "a", name="a") + layer("ReLU", "a", "b", name="b"),
            "layer 'b' (line 3, ReLU) writes only later",
        ),
        (DATA + layer("Eltwise", "x a", "a"), "a cycle"),
        (DATA + layer("ReLU", "x", "y") + layer("TanH", "x", "y", name="t"), "writes already"),
        (DATA + "layers { type: RELU bottom: 'x' top: 'y' }", "'layer' and 'layers' blocks"),
        (
            "layers { layer { name: 'a' type: 'conv' num_output: 3 } top: 'a' }",
            "first generation (V0) upgrade it",
        ),
        (DATA + layer("ReLU", "x", "y", "include { } exclude { }"), "include and exclude"),
        (DATA + layer("Eltwise", "x", "y"), "has 1 bottoms; the type takes 2 or more"),
        (DATA + layer("Convolution", "x", "y"), "has no kernel_size"),
        (DATA + layer("InnerProduct", "x", "y"), "has no num_output"),
        (
            DATA + layer("Pooling", "x", "y", "pooling_param { kernel_size: 1 stride: 5 }"),
            "its last window begins beyond the image",
        ),
        (
            DATA + layer("ReLU", "x", "y") + layer("ReLU", "y", "z", "propagate_down: false"),
            "which ONNX cannot say",
        ),
        (
            DATA
            + layer("Concat", "x s", "y").replace("layer", inputs(s=(2, 3, 8, 7)) + "layer", 1),
            "(2, 3, 8, 8) and (2, 3, 8, 7)",
        ),
        (
            DATA + layer("DenseBlock", "x", "y", "denseblock_param { initChannel: 4 }"),
            "initChannel is 4",
        ),
        (
            layer("Data", "", "x", "data_param { batch_size: 2 }", "data")
            + layer("DenseBlock", "x", "y", "denseblock_param { initChannel: 4 }"),
            "shapes were assumed, as if by --shape x=2,3,224,224",
        ),
        ("name: 'x' layer { name: 'a' type: 'Silence' }", "no data layer brings in anything"),
    ],
)
def test_bad_nets_are_refused_with_the_place(text: str, words: str) -> None:
    assert words in refusal(text)


def test_all_unsupported_layers_are_named_at_once() -> None:
    text = DATA + layer("LSTM", "x", "a", name="first") + layer("Mystery", "a", "b", name="second")
    text += layer("Pooling", "x", "c", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", "third")
    said = refusal(text)
    assert "3 layers that cannot be translated" in said
    for place in ("'first' (line 2)", "'second' (line 3)", "'third' (line 4)"):
        assert place in said


def test_fields_that_caffe_has_not_are_passed_over_with_a_note() -> None:
    text = DATA + "layer { name: 'r' type: 'ReLU' bottom: 'x' top: 'y'\n  relu_pram { of: 1 } }"
    assert read(text).notes == [
        "LayerParameter has no field 'relu_pram' in Caffe (line 3): passed over"
    ]


def test_formats_are_told_by_content() -> None:
    assert detect_format(densenet().encode()) == "caffe-prototxt"
    assert detect_format(b"# a comment\n\nlayers{type:DATA}") == "caffe-prototxt"
    with pytest.raises(BadInput, match="is a Caffe solver"):
        detect_format(b'net: "train_val.prototxt"\nbase_lr: 0.1\n')
    with pytest.raises(BadInput, match="is text, but"):
        detect_format(b"name: a recipe\nsteps: of layers\n")


def test_every_graph_passes_the_checker_of_onnx() -> None:
    for options in ({}, {"bottleneck": True, "depth": 16, "dropout": 0.5}, {"dense_block": True}):
        file = read(densenet(**options))
        whole = onnx.ModelProto()
        whole.CopyFrom(file.model)
        for tensor in whole.graph.initializer:  # the checker wants the data
            if tensor.external_data:
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(
                        np.zeros(tuple(tensor.dims), np.float32), tensor.name
                    )
                )
        onnx.checker.check_model(whole, full_check=True)


def planned(file: CaffeFile, seed: int = 0) -> str:
    """The definition with a plan of marks drawn at random."""
    draw = np.random.default_rng(seed)
    marks = {name: str(draw.choice(MARKS)) for name in file.node_names}
    plan = new_plan(file, marks, strategy="drawn", shapes={"data": [4, 3, 32, 32]}, dtype="float32")
    return file.annotated(plan).decode()


def test_a_plan_goes_in_as_comments_and_comes_out_again() -> None:
    text = densenet(dense_block=True)
    file = read(text)
    written = planned(file)
    assert without_plan(written) == text
    added = [line for line in written.splitlines() if line not in set(text.splitlines())]
    assert added and all(line.lstrip().startswith("# memcli") for line in added)
    back = read(written)
    plan = back.plan()
    assert plan is not None and set(plan.marks) == set(file.node_names)
    assert planned(back.unplanned()) == written
    # each layer's comment stands right before it
    before = re.search(r'(# memcli: [^\n]*)\nlayer \{\n  name: "block1"', written)
    assert before is not None and "Conv" in before.group(1)
    joined = re.search(r'# memcli: part of last_bn\nlayer \{\n  name: "last_scale"', written)
    assert joined is not None


@given(
    end=st.sampled_from(["\n", "\r\n"]),
    gaps=st.lists(
        st.sampled_from([" ", "\n", "\n\n  ", " # why\n", "\t"]), min_size=30, max_size=30
    ),
    last=st.booleans(),
    bom=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_formatting_comments_and_line_ends_survive_a_plan(
    end: str, gaps: list[str], last: bool, bom: bool
) -> None:
    words = (DATA + layer("ReLU", "x", "x") + layer("TanH", "x", "y", name="t")).split()
    text = "".join(w + g for w, g in zip(words, gaps * 3, strict=False)).rstrip()
    text = ("\ufeff" if bom else "") + (text + ("\n" if last else "")).replace("\n", end)
    file = read(text)
    written = planned(file)
    assert without_plan(written) == text
    assert read(written).plan() == carried_plan(written, "")
    assert len(re.findall("# memcli: (?!planned|comments)", written)) == 2


def test_a_plan_of_another_net_is_noticed_and_of_other_formatting_not() -> None:
    written = planned(read(densenet()))
    assert read(written.replace("layer {", "layer  {  # mine")).plan() is not None
    assert read(written.replace("batch_size: 4", "batch_size: 8")).plan() is not None
    changed = read(written.replace("kernel_size: 3", "kernel_size: 5").replace("pad: 1", "pad: 2"))
    with pytest.raises(BadInput, match="was changed after it was planned"):
        changed.plan()
    broken = written.replace('# memcli.plan "schema":1,\n', "")
    assert "its plan: " in refusal(broken)
