"""What tf2onnx writes of TensorFlow's layers, put back, and the scopes that it and PyTorch note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memcli.errors import BadInput
from memcli.formats.onnx.export_defects import losses
from memcli.formats.onnx.file import OnnxFile, parse_onnx
from memcli.formats.onnx.scopes import scopes_of
from memcli.formats.onnx.training import as_training
from memcli.request import ShapeRequest

CHANNELS, SIZE = 6, 5


class Net:
    """Nodes and constants by name, as tf2onnx writes them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(3)

    def constant(self, name: str, values: Any) -> str:
        array = np.asarray(values)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        self.held.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def convolution(self, x: str, layer: str, channels: int, weights: str = "Read:0") -> str:
        values = self.random.normal(0, 0.3, (CHANNELS, channels, 3, 3))
        w = self.constant(f"{layer}/convolution/{weights}", values)
        return self.node("Conv", [x, w], f"{layer}/convolution", pads=[1] * 4)

    def moments(self, x: str, scope: str) -> str:
        """A normalization in training mode, handed on with its channels last."""
        axes = {"axes": [0, 2, 3], "keepdims": 1}
        mean = self.node("ReduceMean", [x], f"{scope}/moments/mean", **axes)
        apart = self.node("Sub", [x, mean], f"{scope}/moments/SquaredDifference")
        square = self.node("Mul", [apart, apart], f"{scope}/moments/SquaredDifference__9")
        variance = self.node("ReduceMean", [square], f"{scope}/moments/variance", **axes)
        flat = self.constant(f"{scope}/flat", [0, 2, 3])
        flat_mean, flat_variance = (
            self.node("Squeeze", [t, flat], f"{scope}/moments/Squeeze{k}")
            for k, t in (("", mean), ("_1", variance))
        )
        more = self.node(
            "Add", [flat_variance, self.constant(f"{scope}/y", 1e-3)], f"{scope}/batchnorm/add"
        )
        root = self.node("Sqrt", [more], f"{scope}/batchnorm/Rsqrt")
        inverse = self.node("Reciprocal", [root], f"{scope}/batchnorm/Rsqrt__7")
        shift = self.node("Mul", [flat_mean, inverse], f"{scope}/batchnorm/mul_2")
        shift = self.node("Neg", [shift], f"{scope}/batchnorm/sub")
        last = self.node("Transpose", [x], f"Transpose__{len(self.nodes)}", perm=[0, 2, 3, 1])
        scaled = self.node("Mul", [last, inverse], f"{scope}/batchnorm/mul_1")
        return self.node("Add", [scaled, shift], f"{scope}/batchnorm/add_1")

    def dropout(self, x: str, scope: str) -> str:
        scope = f"{scope}/stateless_dropout"
        scaled = self.node("Mul", [x, self.constant(f"{scope}/Const:0", 1 / 0.75)], f"{scope}/Mul")
        shape = self.node("Shape", [x], f"{scope}/Shape")
        drawn = self.node(
            "StatelessRandomUniformV2", [shape], f"{scope}/stateless_random_uniform/Draw"
        )
        kept = self.node(
            "GreaterOrEqual", [drawn, self.constant(f"{scope}/y", 0.25)], f"{scope}/GreaterEqual"
        )
        kept = self.node("Cast", [kept], f"{scope}/SelectV2__1", to=TensorProto.FLOAT)
        return self.node("Mul", [kept, scaled], f"{scope}/SelectV2")

    def file(self, output: str, path: Path, producer: str = "tf2onnx") -> OnnxFile:
        ends = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
        graph = helper.make_graph(self.nodes, "tf2onnx", [image], ends, self.held)
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
            producer_name=producer,
        )
        return parse_onnx(made.SerializeToString(), path)


def kinds(file: OnnxFile) -> list[str]:
    return [node.op_type for node in file.graph.node]


def outputs(file: OnnxFile) -> np.ndarray:
    """Of the graph in PyTorch, on fixed numbers."""
    torch = pytest.importorskip("torch")
    from memcli.engines.torch.convert.onnx_graph import convert
    from memcli.formats.onnx.roles import tensor_roles

    roles = {name: leaf.role for name, leaf in tensor_roles(file).items()}
    shapes = {"x": [4, 3, SIZE, SIZE]}
    found = convert(file.working, shapes=shapes, roles=roles, seed=0, fake=False, name="net")
    torch.manual_seed(0)
    (made,) = found.module(torch.randn(4, 3, SIZE, SIZE))
    return made.detach().numpy()


def test_spelled_out_normalization_becomes_one_that_computes_the_same(tmp_path: Path) -> None:
    net = Net()
    x = net.convolution("x", "model/conv", 3)
    y = net.moments(x, "model/bn")
    file = net.file(net.node("Relu", [y], "model/relu/Relu"), tmp_path / "net.onnx")
    assert "spelled out" in " ".join(loss.text for loss in losses(file))
    restored, told = as_training(file)
    assert "1 BatchNormalization of TensorFlow" in told[0]
    assert kinds(restored) == ["Conv", "BatchNormalization", "Transpose", "Relu"]
    assert not losses(restored)
    assert np.allclose(outputs(restored), outputs(file), atol=2e-5)


def test_folded_normalizations_come_back_where_they_were(tmp_path: Path) -> None:
    net = Net()
    # into the weights of the convolution before it, whose node took the normalization's name
    net.convolution("x", "model/conv1", 3, "merged_input:0")
    net.nodes[-1].name = "model/bn1/batchnorm/mul_1"
    net.nodes[-1].output[0] = x = "model/bn1/batchnorm/mul_1:0"
    x = net.node("Relu", [x], "model/relu1/Relu")
    # and a product and a sum where there is no convolution before
    scale = net.constant("model/bn2/batchnorm/mul:0", np.full((1, CHANNELS, 1, 1), 0.5))
    x = net.node("Mul", [x, scale], "model/bn2/batchnorm/mul_1")
    shift = net.constant("model/bn2/batchnorm/sub:0", np.full((1, CHANNELS, 1, 1), 0.1))
    x = net.node("Add", [x, shift], "model/bn2/batchnorm/add_1")
    file = net.file(net.node("Relu", [x], "model/relu2/Relu"), tmp_path / "net.onnx")
    assert {loss.kind for loss in losses(file)} == {"batchnorm-folded", "tensorflow-inference"}
    restored, _ = as_training(file)
    assert kinds(restored) == ["Conv", *["BatchNormalization", "Relu"] * 2]
    scopes = scopes_of(restored)
    assert [path[1] for path in scopes.paths] == ["conv1", "bn1", "relu1", "bn2", "relu2"]
    # other exporters' names mean nothing of the kind
    assert as_training(net.file("model/relu2/Relu:0", tmp_path / "n.onnx", "other"))[1] == []


def test_dropout_of_tensorflow_comes_back_or_is_refused(tmp_path: Path) -> None:

    from memcli.engines.torch.planning import read_for_training

    net = Net()
    x = net.convolution("x", "model/conv", 3)
    file = net.file(net.dropout(x, "model/drop"), tmp_path / "net.onnx")
    restored, told = as_training(file)
    assert kinds(restored) == ["Conv", "Dropout"] and "1 Dropout of TensorFlow" in told[0]
    rate = next(t for t in restored.graph.initializer if t.name == restored.graph.node[1].input[1])
    assert np.isclose(numpy_helper.to_array(rate), 0.25)
    (tmp_path / "net.onnx").write_bytes(file.data)
    with pytest.raises(BadInput, match="which ONNX does not define") as refused:
        read_for_training(str(tmp_path / "net.onnx"), False, ShapeRequest(), [])
    assert "--as-training" in refused.value.hint
    assert read_for_training(str(tmp_path / "net.onnx"), True, ShapeRequest(), [])[2] == told


def named(names: list[str], path: Path, producer: str = "") -> list[str]:
    nodes, last = [], "x"
    for k, name in enumerate(names):
        nodes.append(helper.make_node("Relu", [last], [f"t{k}"], name=name))
        last = f"t{k}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", last)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=producer
    )
    return ["/".join(p) for p in scopes_of(parse_onnx(made.SerializeToString(), path)).paths]


def test_scopes_are_the_names_that_the_user_gave(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    legacy = ["/stem/Relu", "/layer1/layer1.0/act/Relu", "/blocks.3/Relu_1", "/Relu"]
    assert named(legacy, path) == ["stem", "layer1/0/act", "blocks/3", "blocks/3"]
    # Keras 3 enters every scope twice: TensorFlow numbers all of them
    keras = ["m_1/relu_1/Relu", "m_1/relu_1_2/Relu", "m_1/relu_2_1/Relu"]
    assert named(keras, path, "tf2onnx") == ["m/relu", "m/relu_1", "m/relu_2"]
    # numbers of the layers' own stay
    own = ["StatefulPartitionedCall/model/relu_1/Relu", "StatefulPartitionedCall/model/relu_2/Relu"]
    assert named(own, path, "tf2onnx") == ["model/relu_1", "model/relu_2"]
    assert named([own[0], "Relu__12"], path, "tf2onnx") == ["model/relu_1"] * 2
