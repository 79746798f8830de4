"""Writes resnet-50.onnx or densenet-bc.onnx: training graphs with a cross entropy at their end.

    python examples/make_onnx.py resnet-50 -o resnet-50.onnx
    python examples/make_onnx.py densenet-bc --depth 100 --growth 12 -o densenet-bc-100.onnx

BatchNorm is in training mode; the batch is open (``batch``). The files hold no weights: each is
described as a part of a file NAME.weights beside it, which planning does not need and ``memcli
verify`` makes up. Needs nothing but the package onnx; ``make_network.py`` has PyTorch export these
networks and others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from networks import sizes
from onnx import TensorProto, helper, save

OPSET = 17


class Network:
    """Nodes and weights as they come."""

    def __init__(self, weights: str) -> None:
        self.weights_file = weights
        self.nodes: list[object] = []
        self.weights: list[TensorProto] = []
        self.offset = 0

    def weight(self, name: str, *shape: int) -> str:
        """A float32 tensor whose values are in the weights' file."""
        size = 4
        for dim in shape:
            size *= dim
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self.weights_file),
            ("offset", self.offset),
            ("length", size),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self.offset += size
        self.weights.append(tensor)
        return name

    def node(self, op: str, inputs: list[str], name: str, outputs: int = 1, **attrs: object) -> str:
        """A node; the first output has its name."""
        made = [name, *(f"{name}_{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, made, name=name, **attrs))
        return name

    def convolution(
        self, data: str, name: str, channels: int, filters: int, size: int, stride: int = 1
    ) -> str:
        """Without bias, padded to keep the size."""
        weight = self.weight(f"{name}.weight", filters, channels, size, size)
        return self.node(
            "Conv",
            [data, weight],
            name,
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
        )

    def normalised(self, data: str, name: str, channels: int, *, relu: bool = True) -> str:
        """BatchNorm in training mode, and ReLU."""
        parts = ("weight", "bias", "running_mean", "running_var")
        inputs = [self.weight(f"{name}.{part}", channels) for part in parts]
        self.node(
            "BatchNormalization",
            [data, *inputs],
            name,
            3,
            epsilon=1e-5,
            momentum=0.9,
            training_mode=1,
        )
        return self.node("Relu", [name], f"{name}.relu") if relu else name

    def classified(self, data: str, channels: int, classes: int) -> str:
        """Global pooling, a linear layer, and the cross entropy with ``label``."""
        data = self.node("GlobalAveragePool", [data], "mean")
        data = self.node("Flatten", [data], "flat")
        parts = [self.weight("fc.weight", classes, channels), self.weight("fc.bias", classes)]
        data = self.node("Gemm", [data, *parts], "logits", transB=1)
        return self.node("SoftmaxCrossEntropyLoss", [data, "label"], "loss", reduction="mean")

    def write(self, path: Path, name: str, side: int) -> None:
        """The file, without the weights'."""
        inputs = [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, side, side]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ]
        outputs = [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])]
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="memcli examples"
        )
        model.ir_version = 8
        save(model, str(path))


def resnet_50(network: Network, size: sizes.ResNet) -> None:
    """He et al., arXiv 1512.03385, with the stride in the 3x3 convolution."""
    x = network.normalised(network.convolution("image", "conv1", 3, 64, 7, 2), "bn1", 64)
    x = network.node("MaxPool", [x], "pool1", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, blocks in enumerate(size.units):
        width = 64 << stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            y = network.convolution(x, f"{name}.conv1", channels, width, 1)
            y = network.normalised(y, f"{name}.bn1", width)
            y = network.convolution(y, f"{name}.conv2", width, width, 3, stride)
            y = network.normalised(y, f"{name}.bn2", width)
            y = network.convolution(y, f"{name}.conv3", width, 4 * width, 1)
            y = network.normalised(y, f"{name}.bn3", 4 * width, relu=False)
            if not block:
                x = network.convolution(x, f"{name}.downsample", channels, 4 * width, 1, stride)
                x = network.normalised(x, f"{name}.downsample.bn", 4 * width, relu=False)
            x = network.node("Add", [x, y], f"{name}.sum")
            x = network.node("Relu", [x], f"{name}.relu")
            channels = 4 * width
    network.classified(x, channels, size.classes)


def densenet_bc(network: Network, size: sizes.DenseNet) -> None:
    """Huang et al., arXiv 1608.06993: bottlenecks, compression by half, 32 x 32 images."""
    growth, channels = size.growth, size.first
    x = network.convolution("image", "conv0", 3, channels, 3)
    for block, layers in enumerate(size.layers):
        parts = [x]
        for layer in range(layers):
            name = f"block{block + 1}.{layer}"
            x = parts[0]
            if layer:
                x = network.node("Concat", list(parts), f"{name}.concat", axis=1)
            x = network.normalised(x, f"{name}.bn1", channels)
            x = network.convolution(x, f"{name}.conv1", channels, 4 * growth, 1)
            x = network.normalised(x, f"{name}.bn2", 4 * growth)
            parts.append(network.convolution(x, f"{name}.conv2", 4 * growth, growth, 3))
            channels += growth
        x = network.node("Concat", list(parts), f"block{block + 1}.concat", axis=1)
        x = network.normalised(x, f"norm{block + 1}", channels)
        if block < 2:
            fewer = size.compressed(channels)
            x = network.convolution(x, f"reduce{block + 1}", channels, fewer, 1)
            channels = fewer
            x = network.node(
                "AveragePool", [x], f"pool{block + 1}", kernel_shape=[2, 2], strides=[2, 2]
            )
    network.classified(x, channels, size.classes)


def main() -> None:
    """Parse, build, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=["resnet-50", "densenet-bc"])
    parser.add_argument("--depth", type=int, default=100, help="of densenet-bc: 6n + 4")
    parser.add_argument("--growth", type=int, default=12, help="of densenet-bc")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    path = options.output or Path(f"{options.network}.onnx")
    network = Network(f"{path.stem}.weights")
    if options.network == "resnet-50":
        resnet = sizes.resnet(50)
        resnet_50(network, resnet)
        side = resnet.side
    else:
        try:
            dense = sizes.densenet(options.depth, options.growth)
        except ValueError as error:
            parser.error(str(error))
        densenet_bc(network, dense)
        side = dense.side
    network.write(path, options.network, side)


if __name__ == "__main__":
    main()
