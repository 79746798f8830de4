"""TensorFlow's BatchNormalization and Dropout in files of tf2onnx, found by their names.

TensorFlow has both as several operators, and tf2onnx writes what it finds, by the names that
TensorFlow gave. An inference export has a normalization as a product and a sum with constants
(``bn/batchnorm/mul_1``, ``add_1``), or within a convolution's weights; an export in training mode
has its moments spelled out (``bn/moments/mean``, ...), of which every step would be kept for the
backward pass, and draws Dropout's mask with an operator that ONNX does not define.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto

from memcli.formats.onnx.external import is_external, tensor_array

_PRODUCER = "tf2onnx"
_NORMALIZED = re.compile(r"^(?P<scope>.+)/batchnorm/(?P<part>mul_1|add_1)(?:_\d+)?$")
# What tf2onnx calls the weights of a convolution that a normalization went into.
_MERGED = ("/merged_input:0", "_weights_fused_bn")
_DRAWS = re.compile(r"^(?P<scope>.+?)(?:/stateless_random_uniform|/random_uniform)/")
_UNDEFINED = "StatelessRandomUniform"

Kind = Literal["scaled", "spelled out", "computed", "dropout"]


@dataclass(frozen=True)
class TfLayer:
    """One layer: what it reads and makes, the axis of channels, and what may be put in its place.

    ``permutation``: of what is made, where it is laid out otherwise than what is read. ``ratio``:
    the part that a Dropout drops.
    """

    kind: Kind
    scope: str
    reads: str
    makes: str
    channels: int = 0
    axis: int = 1
    rank: int = 0
    permutation: tuple[int, ...] = ()
    ratio: float = 0.0


def is_tf2onnx(model: ModelProto) -> bool:
    """Whether the file says that tf2onnx made it."""
    return model.producer_name == _PRODUCER


def took_tf_batchnorm(node: NodeProto) -> bool:
    """Whether tf2onnx's optimizer, or TensorFlow's, folded a normalization into a convolution."""
    if node.op_type != "Conv" or len(node.input) < 2:
        return False
    return node.input[1].endswith(_MERGED) or _NORMALIZED.match(node.name) is not None


def draws_undefined(model: ModelProto) -> list[str]:
    """Names of nodes that draw with an operator of TensorFlow's, which ONNX does not define."""
    return [n.name for n in model.graph.node if n.op_type.startswith(_UNDEFINED)]


def tf_layers(model: ModelProto) -> list[TfLayer]:
    """The layers that a file of tf2onnx has in pieces, in its order; none in other files."""
    if not is_tf2onnx(model):
        return []
    return list(_Reader(model.graph).layers())


class _Reader:
    """Finds layers by the names of their nodes, and checks them by what the nodes are."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.makers = {output: node for node in graph.node for output in node.output if output}
        self.shapes = {t.name: list(t.dims) for t in graph.initializer}
        self.constants = {t.name: t for t in graph.initializer if not is_external(t)}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.named = {node.name: node for node in graph.node}

    def layers(self) -> Iterator[TfLayer]:
        done: set[str] = set()
        for node in self.graph.node:
            for find in (self._normalization, self._computed, self._dropout):
                layer = find(node)
                if layer is not None and layer.makes not in done:
                    done.add(layer.makes)
                    yield layer

    def _normalization(self, node: NodeProto) -> TfLayer | None:
        match = _NORMALIZED.match(node.name)
        if match is None or match["part"] != "mul_1" or node.op_type != "Mul":
            return None
        scope = match["scope"]
        mean = self.named.get(f"{scope}/moments/mean")
        last = self._sum_after(node, scope)
        if mean is not None:
            return None if last is None else self._spelled_out(node, last, mean, scope)
        data, factor = node.input
        if data in self.shapes:
            data, factor = factor, data
        shape = self.shapes.get(factor)
        if shape is None or not shape:
            return None
        channels = int(np.prod(shape))
        if max(shape) != channels:
            return None
        if len(shape) == 1:
            rank = self._rank(data)
            axis = rank - 1
        else:
            rank, axis = len(shape), shape.index(channels)
        if rank < 2 or axis < 1:
            return None
        makes = (last or node).output[0]
        return TfLayer("scaled", scope, data, makes, channels, axis, rank)

    def _spelled_out(
        self, product: NodeProto, last: NodeProto, mean: NodeProto, scope: str
    ) -> TfLayer | None:
        """A normalization over all axes but one, the first among them: else it is no BatchNorm."""
        axes = self._axes(mean)
        if mean.op_type != "ReduceMean" or not axes:
            return None
        rank = len(axes) + 1
        left = set(range(rank)) - {a % rank for a in axes}
        if len(left) != 1 or 0 in left:
            return None
        data = mean.input[0]
        permutation: tuple[int, ...] = ()
        if data not in product.input:
            turned = next((t for t in map(self._turned, product.input) if t and t[0] == data), None)
            if turned is None:
                return None
            permutation = turned[1]
        channels = self._channels(scope, data)
        if not channels:
            return None
        (axis,) = left
        return TfLayer(
            "spelled out", scope, data, last.output[0], channels, axis, rank, permutation
        )

    def _computed(self, node: NodeProto) -> TfLayer | None:
        """A BatchNormalization that is given the statistics of its own input."""
        if node.op_type != "BatchNormalization" or len(node.input) < 5:
            return None
        if node.input[3] not in self.makers or node.input[4] not in self.makers:
            return None
        shape = self.shapes.get(node.input[1])
        if shape is None or len(shape) != 1:
            return None
        scope = node.name.rpartition("/")[0]
        return TfLayer("computed", scope, node.input[0], node.output[0], shape[0], 1, 4)

    def _dropout(self, node: NodeProto) -> TfLayer | None:
        match = _DRAWS.match(node.name)
        if match is None or "Random" not in node.op_type:
            return None
        scope = match["scope"]
        product = self.named.get(f"{scope}/Mul")
        last = self.named.get(f"{scope}/SelectV2") or self.named.get(f"{scope}/Mul_1")
        if product is None or last is None or product.op_type != "Mul":
            return None
        data, factor = product.input
        if data in self.constants:
            data, factor = factor, data
        value = self._value(factor)
        scale = float(value[0]) if value.size == 1 else 0.0
        if not scale > 1:
            return None
        turned = [n for n in self.readers.get(product.output[0], ()) if n.op_type == "Transpose"]
        permutation = self._permutation(turned[0]) if turned else ()
        return TfLayer(
            "dropout", scope, data, last.output[0], permutation=permutation, ratio=1 - 1 / scale
        )

    def _sum_after(self, product: NodeProto, scope: str) -> NodeProto | None:
        readers = self.readers.get(product.output[0], [])
        found = [n for n in readers if n.op_type == "Add" and n.name.startswith(f"{scope}/batchn")]
        return found[0] if len(readers) == len(found) == 1 else None

    def _turned(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """What a transposed tensor was, and how it was turned."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Transpose":
            return None
        return maker.input[0], self._permutation(maker)

    @staticmethod
    def _permutation(node: NodeProto) -> tuple[int, ...]:
        return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())

    def _axes(self, node: NodeProto) -> list[int]:
        found = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
        if not found and len(node.input) > 1 and node.input[1] in self.constants:
            found = self._value(node.input[1]).tolist()
        return found

    def _value(self, name: str) -> np.ndarray:
        """A constant's numbers in a row; none where it is not in the file."""
        tensor = self.constants.get(name)
        array = None if tensor is None else tensor_array(tensor)
        return np.zeros(0) if array is None else array.ravel()

    def _channels(self, scope: str, data: str) -> int:
        """Of a normalization whose scale may be gone: from any constant of the scope, or the layer
        that makes its input."""
        for node in self.graph.node:
            if node.name.startswith(f"{scope}/batchnorm/"):
                for name in node.input:
                    shape = self.shapes.get(name)
                    if shape and max(shape) == int(np.prod(shape)) > 1:
                        return max(shape)
        return self._made_channels(data, 0)

    def _made_channels(self, name: str, depth: int) -> int:
        """Channels of what a chain of layers makes; 0 where it cannot be told."""
        node = self.makers.get(name)
        if node is None or depth > 200:
            return 0
        if node.op_type == "Concat":
            parts = [self._made_channels(part, depth + 1) for part in node.input]
            return sum(parts) if all(parts) else 0
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            shape = self.shapes.get(node.input[1])
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            if not shape:
                return 0
            if node.op_type != "Conv":
                return shape[0 if turned else -1]
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            return shape[0] if group else 0
        widest = [shape for name in node.input if (shape := self.shapes.get(name))]
        if node.op_type in ("Add", "Mul") and widest and max(widest[0]) > 1:
            return max(widest[0])
        return next((c for part in node.input if (c := self._made_channels(part, depth + 1))), 0)

    def _rank(self, name: str) -> int:
        """0 where it cannot be told."""
        node = self.makers.get(name)
        for _ in range(200):
            if node is None:
                break
            if node.op_type in ("Conv", "MaxPool", "AveragePool", "Gemm"):
                return 2 if node.op_type == "Gemm" else 4
            if node.op_type == "Transpose":
                return len(self._permutation(node))
            if node.op_type == "Reshape":
                shape = self.shapes.get(node.input[1])
                return shape[0] if shape else 0
            name = next((i for i in node.input if i not in self.shapes), "")
            node = self.makers.get(name)
        for value in self.graph.input:
            if value.name == name and value.type.tensor_type.HasField("shape"):
                return len(value.type.tensor_type.shape.dim)
        return 0
