"""Small ONNX models for tests, node by node, with weights from a fixed seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Model:
    """Nodes and initializers as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int, value: float | None = None) -> str:
        """A parameter, small normal numbers or all of one value."""
        array = self.random.normal(0, 0.1, shape) if value is None else np.full(shape, value)
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def constant(self, name: str, *values: int) -> str:
        """A vector of integers."""
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, outputs: int = 1, **attrs) -> str:  # type: ignore[no-untyped-def]
        """A node; its first output has its name."""
        made = [name, *(f"{name}_{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, made, name=f"node_{name}", **attrs))
        return name

    def convolution(self, data: str, name: str, filters: int, channels: int, size: int = 3) -> str:
        """Padded, without bias."""
        weight = self.weight(f"{name}.weight", filters, channels, size, size)
        pads = [size // 2] * 4
        return self.node("Conv", [data, weight], name, pads=pads, kernel_shape=[size, size])

    def normalised(self, data: str, name: str, channels: int, *, training: bool = True) -> str:
        """BatchNorm and ReLU."""
        parts = [
            self.weight(f"{name}.weight", channels, value=1.0),
            self.weight(f"{name}.bias", channels, value=0.0),
            self.weight(f"{name}.running_mean", channels, value=0.0),
            self.weight(f"{name}.running_var", channels, value=1.0),
        ]
        if training:
            self.node("BatchNormalization", [data, *parts], name, 3, training_mode=1)
        else:
            self.node("BatchNormalization", [data, *parts], name)
        return self.node("Relu", [name], f"{name}_relu")

    def write(
        self,
        path: Path,
        inputs: dict[str, tuple[object, ...]],
        outputs: dict[str, tuple[object, ...]],
    ) -> Path:
        """Check and save; dimensions are numbers or symbols."""
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
        return path


def residual_network(path: Path, blocks: int = 4, *, training: bool = True) -> Path:
    """Convolutions with BatchNorm and residual sums, a pooling, a classifier; batch is open."""
    m = Model()
    x = m.normalised(m.convolution("image", "stem", 8, 3), "stem_norm", 8, training=training)
    x = m.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    for k in range(blocks):
        y = m.normalised(m.convolution(x, f"a{k}", 8, 8), f"a{k}_norm", 8, training=training)
        y = m.convolution(y, f"b{k}", 8, 8)
        y = m.normalised(y, f"b{k}_norm", 8, training=training)
        x = m.node("Add", [x, y], f"sum{k}")
    x = m.node("GlobalAveragePool", [x], "mean")
    x = m.node("Flatten", [x], "flat")
    x = m.node(
        "Gemm", [x, m.weight("fc.weight", 10, 8), m.weight("fc.bias", 10)], "logits", transB=1
    )
    return m.write(path, {"image": ("N", 3, 16, 16)}, {x: ("N", 10)})


def dense_network(path: Path, layers: int = 6) -> Path:
    """A dense block: every layer reads all before it."""
    m = Model()
    parts = [m.convolution("image", "stem", 8, 3)]
    channels = 8
    for k in range(layers):
        x = parts[0] if k == 0 else m.node("Concat", list(parts), f"cat{k}", axis=1)
        x = m.normalised(x, f"norm{k}", channels)
        parts.append(m.convolution(x, f"conv{k}", 4, channels))
        channels += 4
    x = m.node("Concat", list(parts), "all", axis=1)
    x = m.normalised(x, "last", channels)
    x = m.node("ReduceMean", [x], "mean", axes=[2, 3], keepdims=0)
    x = m.node("MatMul", [x, m.weight("fc.weight", channels, 10)], "logits")
    return m.write(path, {"image": ("N", 3, 12, 12)}, {x: ("N", 10)})


def recurrent_network(path: Path, layers: int = 3, hidden: int = 8) -> Path:
    """LSTMs in both directions, one on the other, and a linear layer at every step."""
    m = Model()
    x, width = "sequence", 6
    for k in range(layers):
        weights = [
            m.weight(f"w{k}", 2, 4 * hidden, width),
            m.weight(f"r{k}", 2, 4 * hidden, hidden),
            m.weight(f"b{k}", 2, 8 * hidden),
        ]
        x = m.node("LSTM", [x, *weights], f"lstm{k}", hidden_size=hidden, direction="bidirectional")
        x = m.node("Transpose", [x], f"apart{k}", perm=[0, 2, 1, 3])
        x = m.node("Reshape", [x, m.constant(f"shape{k}", 0, 0, -1)], f"joined{k}")
        x = m.node("Tanh", [x], f"tanh{k}")
        width = 2 * hidden
    x = m.node("MatMul", [x, m.weight("out", width, 5)], "logits")
    return m.write(path, {"sequence": (12, "N", 6)}, {x: (12, "N", 5)})
