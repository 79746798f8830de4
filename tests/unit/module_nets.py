"""Forward graphs of operators that modules stand for, sizes in channels of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from memcli.graph.training import TrainingGraph
from tests.unit.test_roofline import forward_graph

_NAMES = {"conv": "Convolution", "bn": "BatchNorm", "cat": "Concat", "add": "elemwise_add"}


class Net:
    """Operators as they come; ``shapes`` of what each makes are (batch, channels, side, side)."""

    def __init__(self, batch: int = 1, side: int = 1) -> None:
        self.batch, self.side = batch, side
        self.nodes: list[dict[str, Any]] = [{"shape": (batch, 3, side, side)}]
        self.channels = {0: 3}
        self.sides = {0: side}

    def __call__(
        self, op: str, *reads: int, channels: int | None = None, side: int | None = None
    ) -> int:
        """An operator by ONNX's name or one of the short ones; its number."""
        if channels is None:
            channels = (
                sum(self.channels[r] for r in reads) if op == "cat" else self.channels[reads[0]]
            )
        side = self.sides[reads[0]] if side is None else side
        inputs = list(reads)
        if op == "conv":
            inputs.append(len(self.nodes))
            self.nodes.append({"shape": (channels, self.channels[reads[0]], 3, 3)})
        shape = (self.batch, channels, side, side)
        self.nodes.append({"op": _NAMES.get(op, op), "inputs": inputs, "shapes": [shape]})
        number = len(self.nodes) - 1
        self.channels[number], self.sides[number] = channels, side
        return number

    def normalised(self, x: int) -> int:
        return self("Relu", self("bn", x))

    def graph(self, itemsize: int = 4) -> TrainingGraph:
        return forward_graph(self.nodes, itemsize)


def passes(graph: TrainingGraph) -> np.ndarray:
    """Over nodes: whether a gradient passes; all but variables."""
    return np.array([graph.variable[v] == 0 for v in range(graph.n_forward)])


def dense_layer(net: Net, x: int, growth: int, width: int | None = None) -> int:
    """BatchNorm, ReLU and convolution, behind a bottleneck of ``width`` channels if any."""
    y = net.normalised(x)
    if width is not None:
        y = net.normalised(net("conv", y, channels=width))
    return net("conv", y, channels=growth)


def densenet_bc(
    layers: int, growth: int, *, batch: int = 64, side: int = 32, recursive: bool = False
) -> TrainingGraph:
    """Three blocks of ``layers`` bottlenecks, compressed by half; ``recursive``: Concats of two."""
    net = Net(batch, side)
    x = net("conv", 0, channels=2 * growth)
    for block in range(3):
        parts = [x]
        for _ in range(layers):
            parts.append(dense_layer(net, x, growth, 4 * growth))
            x = net("cat", x, parts[-1]) if recursive else net("cat", *parts)
        x = net.normalised(x)
        if block < 2:
            x = net("conv", x, channels=net.channels[x] // 2)
            x = net("AveragePool", x, side=net.sides[x] // 2)
    x = net("AveragePool", x, side=1)
    net("Gemm", net("Flatten", x), channels=10)
    return net.graph()
