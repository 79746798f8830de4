"""Whole graphs through the converter: PyTorch's own layers exported, and files of the corpus."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import operator
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402

from memcli.engines.torch.convert import Converted, convert  # noqa: E402
from memcli.engines.torch.rules import again_of  # noqa: E402
from memcli.errors import BadInput  # noqa: E402

# Small tensors: more threads only wait for one another.
torch.set_num_threads(1)

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "onnx"
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of graphs is not here")


def exported(
    module: Any, inputs: tuple[Any, ...], dynamo: bool, opset: int = 20
) -> onnx.ModelProto:
    """The module as PyTorch's exporters write it, with names and modes as they are."""
    file = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            if dynamo:
                pytest.importorskip("onnxscript")
                program = torch.onnx.export(
                    module, inputs, dynamo=True, optimize=False, opset_version=opset
                )
                return program.model_proto
            torch.onnx.export(
                module,
                inputs,
                file,
                dynamo=False,
                do_constant_folding=False,
                opset_version=opset,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
        finally:
            logging.disable(logging.NOTSET)
    return onnx.load_from_string(file.getvalue())


def step(module: Any, inputs: tuple[Any, ...]) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Outputs, gradients of the inputs, gradients of the parameters of one step."""
    inputs = tuple(
        x.clone().requires_grad_() if x.is_floating_point() else x.clone() for x in inputs
    )
    torch.manual_seed(7)
    outputs = module(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    torch.manual_seed(8)
    sum((y * torch.randn(y.shape)).sum() for y in outputs).backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return outputs, [x.grad for x in inputs if x.is_floating_point()], gradients


class Sequence(nn.Module):
    """A recurrent layer's outputs alone."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


class Loss(nn.Module):
    """Cross-entropy with an ignored label."""

    def forward(self, x: Any, labels: Any) -> Any:
        return nn.functional.cross_entropy(x, labels, ignore_index=2)


def image(*shape: int) -> tuple[Any, ...]:
    torch.manual_seed(1)
    return (torch.randn(*shape),)


# Values at the corners of ReLU6, Hardtanh and the hard ones: where gradients may differ.
CORNERS = (torch.tensor([[-3.0, -1.0, 0.0, 1e-6, 1.0, 3.0, 6.0, 7.0]]),)

SAME_CALLS: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Any, ...]]]] = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), lambda: image(2, 4, 9, 9)),
    "convolution-1d": (lambda: nn.Conv1d(4, 6, 3, dilation=2), lambda: image(2, 4, 12)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1),
        lambda: image(2, 4, 5, 5),
    ),
    "linear": (lambda: nn.Linear(5, 7), lambda: image(3, 5)),
    "layer-norm": (lambda: nn.LayerNorm(8), lambda: image(2, 5, 8)),
    "max-pool": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), lambda: image(2, 3, 10, 10)),
    "average-pool": (lambda: nn.AvgPool2d(3, 2, 1), lambda: image(2, 3, 9, 9)),
    "global-pool": (lambda: nn.AdaptiveAvgPool2d(1), lambda: image(2, 3, 9, 9)),
    "relu": (nn.ReLU, lambda: CORNERS),
    "relu6": (nn.ReLU6, lambda: CORNERS),
    "hardtanh": (nn.Hardtanh, lambda: CORNERS),
    "hardswish": (nn.Hardswish, lambda: CORNERS),
    "hardsigmoid": (nn.Hardsigmoid, lambda: CORNERS),
    "leaky-relu": (lambda: nn.LeakyReLU(0.2), lambda: CORNERS),
    "elu": (nn.ELU, lambda: CORNERS),
    "selu": (nn.SELU, lambda: CORNERS),
    "sigmoid": (nn.Sigmoid, lambda: CORNERS),
    "tanh": (nn.Tanh, lambda: CORNERS),
    "gelu": (nn.GELU, lambda: CORNERS),
    "gelu-tanh": (lambda: nn.GELU("tanh"), lambda: CORNERS),
    "softplus": (nn.Softplus, lambda: CORNERS),
    "prelu": (lambda: nn.PReLU(4), lambda: image(2, 4, 5, 5)),
    "softmax": (lambda: nn.Softmax(1), lambda: image(2, 4, 5)),
    "log-softmax": (lambda: nn.LogSoftmax(-1), lambda: image(2, 4, 5)),
    "upsample": (lambda: nn.Upsample(scale_factor=2), lambda: image(2, 3, 4, 5)),
    "bilinear": (
        lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
        lambda: image(2, 3, 4, 5),
    ),
    "bicubic": (
        lambda: nn.Upsample(size=(7, 9), mode="bicubic", align_corners=True),
        lambda: image(2, 3, 4, 5),
    ),
    "pixel-shuffle": (lambda: nn.PixelShuffle(2), lambda: image(2, 8, 3, 3)),
    "reflection": (lambda: nn.ReflectionPad2d(2), lambda: image(2, 3, 5, 5)),
    "loss": (Loss, lambda: (image(5, 4)[0], torch.tensor([0, 3, 2, 1, 2]))),
}
CLOSE_CALLS: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Any, ...]]]] = {
    "group-norm": (lambda: nn.GroupNorm(2, 4), lambda: image(2, 4, 5, 5)),
    "instance-norm": (lambda: nn.InstanceNorm2d(4, affine=True), lambda: image(2, 4, 5, 5)),
    "silu": (nn.SiLU, lambda: CORNERS),
    "mish": (nn.Mish, lambda: CORNERS),
    "lstm": (lambda: Sequence(nn.LSTM(4, 5, 2, bidirectional=True)), lambda: image(6, 2, 4)),
    "gru": (lambda: Sequence(nn.GRU(4, 5, bidirectional=True)), lambda: image(6, 2, 4)),
    "rnn": (lambda: Sequence(nn.RNN(4, 5, nonlinearity="relu")), lambda: image(6, 2, 4)),
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        lambda: image(2, 5, 8),
    ),
    "local-response": (lambda: nn.LocalResponseNorm(4), lambda: image(2, 7, 3, 3)),
}
CASES = [(name, dynamo) for name in {**SAME_CALLS, **CLOSE_CALLS} for dynamo in (False, True)]
# The exporter itself fails on a tensor that it takes for a flag.
NOT_EXPORTED = {("attention", False)}


@pytest.mark.parametrize(("name", "dynamo"), CASES, ids=lambda value: str(value))
def test_gradients_are_those_of_the_layer(name: str, dynamo: bool) -> None:
    """To the bit where the layer is one call in both; else within rounding."""
    if (name, dynamo) in NOT_EXPORTED:
        pytest.skip("PyTorch's exporter does not write this layer")
    make, inputs = {**SAME_CALLS, **CLOSE_CALLS}[name]
    torch.manual_seed(0)
    layer, given = make(), inputs()
    converted = convert(exported(layer, given, dynamo))
    outputs, into_inputs, into_parameters = step(layer, given)
    found, found_inputs, found_parameters = step(converted.module, given)
    named = {converted.parameters[a]: g for a, g in found_parameters.items()}
    pairs = [*zip(found, outputs, strict=True), *zip(found_inputs, into_inputs, strict=True)]
    shared = named.keys() & into_parameters.keys()
    assert shared or not into_parameters or name in ("lstm", "gru", "rnn")
    pairs += [(named[key], into_parameters[key]) for key in shared]
    same = name in SAME_CALLS
    for one, other in pairs:
        if same:
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def small_network() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=0.3),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def test_a_network_in_training_is_the_same_to_the_bit() -> None:
    """Outputs, gradients, running statistics and the drawn masks of a training export."""
    network, given = small_network(), image(4, 3, 8, 8)
    network.train()
    converted = convert(exported(copy.deepcopy(network), given, dynamo=False))
    assert sorted(converted.states.values()) == sorted(
        name for name, _ in network.named_buffers() if "running" in name
    )
    buffers = dict(network.named_buffers())
    for attribute, name in converted.states.items():
        buffers[name].copy_(getattr(converted.module, attribute))  # the exporter ran it once
    for _ in range(2):
        for module in (network, converted.module):
            module.zero_grad()
        outputs, into_inputs, into_parameters = step(network, given)
        found, found_inputs, found_parameters = step(converted.module, given)
        assert torch.equal(found[0], outputs[0]) and torch.equal(found_inputs[0], into_inputs[0])
        assert len(found_parameters) == len(into_parameters)
        for attribute, gradient in found_parameters.items():
            assert torch.equal(gradient, into_parameters[converted.parameters[attribute]])
    for attribute, name in converted.states.items():
        assert torch.equal(getattr(converted.module, attribute), buffers[name])


class Mixed(nn.Module):
    """What changed its form between operator sets: attributes that became inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Any) -> Any:
        x = nn.functional.pad(x, (1, 1, 1, 1), value=0.5)
        x = nn.functional.relu6(self.norm(self.convolution(x)))
        a, b = torch.split(x, [3, 5], 1)
        x = torch.cat((a.clamp(max=1.0), b[:, 2:, 1:-2].repeat(1, 1, 3, 1)), 2)[:, :, 3:9]
        x = nn.functional.interpolate(x, scale_factor=2, mode="nearest").squeeze(0)
        x = torch.softmax(x.unsqueeze(1), 1) + x.sum((2, 3), keepdim=True) + x.mean(1, True)
        return self.head(x[..., :4].amax(2).flatten(1)[:, :24])


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 17, 18])
def test_every_operator_set_gives_the_same(opset: int) -> None:
    torch.manual_seed(0)
    network, given = Mixed().train(), image(2, 3, 6, 6)
    converted = convert(exported(copy.deepcopy(network), given, False, opset))
    assert len(converted.states) == 2
    outputs, into_inputs, into_parameters = step(network, given)
    found, found_inputs, found_parameters = step(converted.module, given)
    torch.testing.assert_close(found[0], outputs[0])
    torch.testing.assert_close(found_inputs[0], into_inputs[0])
    for attribute, gradient in found_parameters.items():
        name = converted.parameters[attribute]
        torch.testing.assert_close(gradient, into_parameters[name], rtol=1e-4, atol=1e-5)


class Heads(nn.Module):
    """Attention and a norm that newer operator sets have as single operators."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)
        self.groups = nn.GroupNorm(2, 4)

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        y = nn.functional.scaled_dot_product_attention(y, x, y, is_causal=True)
        return self.groups(y)


def test_operators_of_operator_set_23() -> None:
    network, given = Heads(), image(2, 4, 5, 8)
    model = exported(network, given, True, 23)
    assert {"Attention", "RMSNormalization"} <= {node.op_type for node in model.graph.node}
    converted = convert(model)
    outputs, into_inputs, into_parameters = step(network, given)
    found, found_inputs, found_parameters = step(converted.module, given)
    torch.testing.assert_close(found[0], outputs[0])
    torch.testing.assert_close(found_inputs[0], into_inputs[0])
    for attribute, gradient in found_parameters.items():
        torch.testing.assert_close(gradient, into_parameters[converted.parameters[attribute]])


def test_functions_of_the_model_are_inlined() -> None:
    body = [
        helper.make_node("Mul", ["a", "a"], ["square"]),
        helper.make_node("Neg", ["square"], ["out"]),
    ]
    function = helper.make_function(
        "local", "NegativeSquare", ["a"], ["out"], body, [helper.make_opsetid("", 17)]
    )
    node = helper.make_node("NegativeSquare", ["x"], ["y"], domain="local")
    model = graph_of([node], {"x": (TensorProto.FLOAT, [3])}, [])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    x = torch.randn(3)
    assert torch.equal(convert(model).module(x)[0], -(x * x))


def test_batch_norm_runs_again_without_its_statistics() -> None:
    network, given = small_network().train(), image(4, 3, 8, 8)
    module = convert(exported(network, given, dynamo=False)).module
    calls = [n for n in module.graph.nodes if n.meta.get("memcli", {}).get("op", "") == BATCH_NORM]
    assert len(calls) == 2
    for call in calls:
        x = torch.randn(4, 8, 4, 4)
        held = [getattr(module, argument.target) for argument in call.args[1:5]]
        before = [tensor.clone() for tensor in held]
        again = again_of(call.target)(x, *held, *call.args[5:])
        assert all(map(torch.equal, held, before))
        first = call.target(x, *held, *call.args[5:])
        assert torch.equal(first, again) and not torch.equal(held[2], before[2])


BATCH_NORM = "BatchNormalization"


def test_one_call_for_each_node_with_its_name() -> None:
    network, given = small_network().train(), image(4, 3, 8, 8)
    model = exported(network, given, dynamo=False)
    converted = convert(model)
    calls = [
        node.meta["memcli"]
        for node in converted.module.graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    ]
    names = [call["name"] for call in calls]
    assert sorted(names + converted.folded) == sorted(n.name for n in model.graph.node)
    by_name = {node.name: node for node in model.graph.node}
    for call in calls:
        assert call["op"] == by_name[call["name"]].op_type
        assert call["output"] == by_name[call["name"]].output[0]
    shapes = {call["output"]: call["values"][0][0] for call in calls}
    outputs, _, _ = step(converted.module, given)
    assert shapes[converted.outputs[0]] == tuple(outputs[0].shape)


def test_a_module_can_be_stored_and_printed() -> None:
    network, given = small_network().eval(), image(4, 3, 8, 8)
    module = convert(exported(network, given, dynamo=False)).module
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(*given)[0], module(*given)[0])
    assert "torch.nn.functional.hardtanh" in module.code


def test_embeddings_and_tied_weights_share_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Any) -> Any:
            return self.head(torch.tanh(self.embedding(tokens)))

    torch.manual_seed(0)
    network, tokens = Tied(), (torch.tensor([[1, 2, 10], [0, 2, 2]]),)
    converted = convert(exported(network, tokens, dynamo=True))
    assert len(converted.parameters) == 1
    outputs, _, gradients = step(network, tokens)
    found, _, found_gradients = step(converted.module, tokens)
    assert torch.allclose(found[0], outputs[0])
    assert torch.allclose(*found_gradients.values(), *gradients.values(), atol=1e-6)


# -- conversion itself ------------------------------------------------------------------------


def graph_of(nodes: list[Any], inputs: dict[str, Any], initializers: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(name: str, *dims: int, kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="absent.bin")
    return tensor


def test_shape_arithmetic_is_folded_and_needs_no_data() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "zero"], ["b"], name="batch"),
        helper.make_node("Unsqueeze", ["b", "axes"], ["b1"], name="unsqueeze"),
        helper.make_node("Concat", ["b1", "rest"], ["to"], name="concat", axis=0),
        helper.make_node("Reshape", ["x", "to"], ["r"], name="reshape"),
        helper.make_node("Add", ["r", "bias"], ["y"], name="add"),
    ]
    integers = [
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("axes", TensorProto.INT64, [1], [0]),
        helper.make_tensor("rest", TensorProto.INT64, [1], [-1]),
    ]
    model = graph_of(
        nodes, {"x": (TensorProto.FLOAT, ["n", 2, 3])}, [*integers, external("bias", 6)]
    )
    with FakeTensorMode():
        converted = convert(model, shapes={"x": (4, 2, 3)})
        assert all(isinstance(p, FakeTensor) for p in converted.module.parameters())
        (y,) = converted.module(torch.empty(4, 2, 3))
        y.sum().backward()
        assert y.shape == (4, 6) and converted.module.bias.grad.shape == (6,)
    assert converted.folded == ["shape", "batch", "unsqueeze", "concat"]
    assert converted.parameters == {"bias": "bias"} and converted.filled == ["bias"]


def test_open_dimensions_are_named() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model = graph_of([node], {"x": (TensorProto.FLOAT, ["n", 3, "h"])}, [])
    with pytest.raises(BadInput) as caught:
        convert(model, name="net.onnx")
    assert "net.onnx: the shape of input 'x' (n,3,h) is open" in caught.value.message
    assert "--shape x=" in caught.value.hint


def test_missing_weights_are_the_same_for_the_same_seed_and_fit_for_training() -> None:
    nodes = [
        helper.make_node("Shape", ["w"], ["unused"]),  # says nothing of what the weight is
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["y"]),
    ]
    missing = [external("w", 64, 32, 3, 3), external("b", 64)]
    missing += [external(name, 64) for name in "somv"]
    model = graph_of(nodes, {"x": (TensorProto.FLOAT, [2, 32, 8, 8])}, missing)
    one, two, other = (convert(model, seed=seed).module for seed in (1, 1, 2))
    assert torch.equal(one.w, two.w) and not torch.equal(one.w, other.w)
    assert abs(one.w.std().item() / (2 / 288) ** 0.5 - 1) < 0.03
    assert not one.b.any() and not one.o.any() and not one.m.any()
    assert (one.s == 1).all() and (one.v == 1).all()
    assert {name for name, _ in one.named_buffers()} == {"m", "v"}
    (y,) = one(torch.randn(2, 32, 8, 8))
    assert 0.5 < y.std() < 3


def test_roles_decide_what_trains() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(np.eye(3))),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "table"], ["y"]),
    ]
    table = helper.make_tensor("table", TensorProto.DOUBLE, [3], [1.0, 2.0, 3.0])
    model = graph_of(nodes, {"x": (TensorProto.DOUBLE, [2, 3])}, [table])
    usual = convert(model)
    assert set(usual.parameters.values()) == {"w", "table"}
    told = convert(model, roles={"w": "constant", "table": "parameter"})
    assert told.parameters == {"table": "table"} and told.constants == {"w": "w"}
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(told.module(x)[0], x + torch.tensor([1.0, 2.0, 3.0]))


def test_a_branch_whose_condition_is_known_stands_in_its_place() -> None:
    def branch(op: str) -> Any:
        node = helper.make_node(op, ["x"], ["inner"], name=op.lower())
        output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2])
        return helper.make_graph([node], op, [], [output])

    nodes = [
        helper.make_node("Equal", ["rate", "high"], ["is_high"]),
        helper.make_node(
            "If",
            ["is_high"],
            ["y"],
            name="if",
            then_branch=branch("Exp"),
            else_branch=branch("Neg"),
        ),
    ]
    high = helper.make_tensor("high", TensorProto.INT64, [], [16000])
    inputs = {"x": (TensorProto.FLOAT, [2]), "rate": (TensorProto.INT64, [])}
    model = graph_of(nodes, inputs, [high])
    with pytest.raises(BadInput, match=r"If .1 node: if.: its condition depends on data"):
        convert(model)
    x = torch.randn(2)
    for rate, wanted in ((16000, x.exp()), (8000, -x)):
        converted = convert(model, values={"rate": rate})
        assert [given.name for given in converted.inputs] == ["x"]
        assert torch.equal(converted.module(x)[0], wanted)


# -- files of the corpus ------------------------------------------------------------------------

SHAPES = {
    "tv-resnet18-train-loss-ts": {"input": (2, 3, 64, 64), "y": (2,)},
    "tv-shufflenet_v2-train-ts": {"input": (2, 3, 64, 64)},
    "torch-lstm_lm-dyn": {"x": (2, 35), "y": (2, 35)},
    "hf-gpt2-lm-loss": {"input_ids": (2, 128), "labels": (2, 128)},
    "hf-t5_small-encoder": {"input_ids": (2, 128)},
    "mx-mobilenetv2_1.0": {"data": (2, 3, 64, 64)},
    "pypi-ppocrv5_rec": {"x": (2, 3, 48, 160)},
    "onnxzoo-light_inception_v1": {},
}


def loaded(name: str) -> onnx.ModelProto:
    return onnx.load(CORPUS / f"{name}.onnx", load_external_data=False)


@needs_corpus
@pytest.mark.parametrize("name", SHAPES)
def test_corpus_graphs_train_without_data(name: str) -> None:
    """Converted and one step run on FakeTensors; every parameter gets a gradient."""
    with FakeTensorMode():
        converted = convert(loaded(name), shapes=SHAPES[name])
        given = [torch.empty(i.shape, dtype=i.dtype) for i in converted.inputs]
        outputs = converted.module(*given)
        sum(y.float().sum() for y in outputs if y.is_floating_point()).backward()
    assert converted.parameters
    for name_, parameter in converted.module.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name_


@needs_corpus
def test_quantized_files_are_refused_with_all_reasons() -> None:
    with pytest.raises(BadInput) as caught:
        convert(
            loaded("pypi-tashkeel_bilstm_int8"), shapes={"input_ids": (2, 16)}, name="bilstm.onnx"
        )
    for part in ("com.microsoft::DynamicQuantizeLSTM (3 nodes", "MatMulInteger (4 nodes"):
        assert part in caught.value.message


def with_elements(model: onnx.ModelProto, converted: Converted) -> onnx.ModelProto:
    """The model with the elements that the converter filled in."""
    held = {**converted.parameters, **converted.states, **converted.constants}
    by_name = {name: getattr(converted.module, attribute) for attribute, name in held.items()}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            array = by_name[tensor.name].detach().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


EVALUATED = {
    "mx-mobilenetv2_1.0": {"data": (1, 3, 224, 224)},
    "pypi-nudenet_yolov8n": {"images": (1, 3, 64, 96)},
    "pypi-silero_vad_sequence": {"input": (3, 576)},
    "pypi-ddddocr": {"input1": (1, 1, 64, 96)},
}


@needs_corpus
@pytest.mark.parametrize("name", EVALUATED)
def test_corpus_graphs_give_what_onnxruntime_gives(name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = loaded(name)
    converted = convert(model, shapes=EVALUATED[name])
    torch.manual_seed(0)
    given = {i.name: torch.randn(i.shape) for i in converted.inputs}
    model = with_elements(model, converted)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    wanted = session.run(None, {key: value.numpy() for key, value in given.items()})
    with torch.no_grad():
        found = converted.module(*given.values())
    for one, other in zip(found, wanted, strict=True):
        scale = float(np.abs(other).max())
        torch.testing.assert_close(one, torch.from_numpy(other), rtol=1e-3, atol=1e-4 * scale)
