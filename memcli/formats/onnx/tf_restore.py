"""Puts TensorFlow's BatchNormalization and Dropout back, as ONNX's operators in training mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from memcli.formats.onnx.check import subgraphs
from memcli.formats.onnx.tf_layers import TfLayer, tf_layers

# TensorFlow's layers count otherwise than PyTorch's: epsilon 1e-3, momentum 0.99.
_EPSILON, _MOMENTUM = 1e-3, 0.99
_OPERATOR_SET = 14  # in which BatchNormalization got its mode, and Dropout had it
_PARAMETERS = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1}


def with_tf_layers(model: ModelProto, fresh: Callable[[str], str]) -> list[str]:
    """Puts the layers back into ``model`` itself; what was done, in words.

    Normalizations get training mode with new parameters (scale 1, shift 0) where the export has
    none of its own; the tensors that layers made keep their names. ``fresh``: makes names unique.
    """
    found = tf_layers(model)
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not found or version < _OPERATOR_SET:
        return []
    writer = _Writer(model.graph, fresh)
    for layer in found:
        writer.put(layer)
    writer.close()
    dropouts = sum(layer.kind == "dropout" for layer in found)
    told = []
    if len(found) > dropouts:
        count = len(found) - dropouts
        told.append(
            f"{count} BatchNormalization{'s' if count > 1 else ''} of TensorFlow put back as one "
            "operator in training mode: their parameters are new ones"
        )
    if dropouts:
        told.append(f"{dropouts} Dropout of TensorFlow put back as one operator in training mode")
    return told


class _Writer:
    """Puts operators in the place of layers; nodes that nothing reads any more go at the end."""

    def __init__(self, graph: GraphProto, fresh: Callable[[str], str]) -> None:
        self.graph = graph
        self.fresh = fresh
        self.read_before = _read(graph)
        self.instead: dict[str, list[NodeProto]] = {}  # by the tensor that they make
        self.mode = ""

    def put(self, layer: TfLayer) -> None:
        made = self.fresh(f"{layer.makes}_as_read") if layer.permutation else layer.makes
        if layer.kind == "dropout":
            nodes = [self._dropout(layer, made)]
        else:
            nodes = self._normalization(layer, made)
        if layer.permutation:
            nodes.append(self._transpose(made, layer.makes, layer.permutation, layer.scope))
        self.instead[layer.makes] = nodes

    def close(self) -> None:
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            instead = next((self.instead[o] for o in node.output if o in self.instead), None)
            nodes += [node] if instead is None else instead
        del self.graph.node[:]
        self.graph.node.extend(_alive(nodes, [value.name for value in self.graph.output]))
        unread = self.read_before - _read(self.graph)
        kept = [t for t in self.graph.initializer if t.name not in unread]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _normalization(self, layer: TfLayer, made: str) -> list[NodeProto]:
        names = [
            self._constant(f"{layer.scope}/{word}", np.full(layer.channels, value, np.float32))
            for word, value in _PARAMETERS.items()
        ]
        turn = layer.axis != 1
        order = [0, layer.axis, *(a for a in range(1, layer.rank) if a != layer.axis)]
        back = tuple(np.argsort(order).tolist())
        source, result = layer.reads, made
        nodes: list[NodeProto] = []
        if turn:
            source, result = self.fresh(f"{made}_channels_first"), self.fresh(f"{made}_normalized")
            nodes.append(self._transpose(layer.reads, source, tuple(order), layer.scope))
        states = [self.fresh(f"{layer.scope}/{word}") for word in ("new_mean", "new_variance")]
        nodes.append(
            helper.make_node(
                "BatchNormalization",
                [source, *names],
                [result, *states],
                name=self.fresh(f"{layer.scope}/batchnorm"),
                epsilon=_EPSILON,
                momentum=_MOMENTUM,
                training_mode=1,
            )
        )
        if turn:
            nodes.append(self._transpose(result, made, back, layer.scope))
        return nodes

    def _dropout(self, layer: TfLayer, made: str) -> NodeProto:
        if not self.mode:
            self.mode = self._constant("memcli_tf_training_mode", np.array(True))
        ratio = self._constant(f"{layer.scope}/rate", np.array(layer.ratio, np.float32))
        return helper.make_node(
            "Dropout",
            [layer.reads, ratio, self.mode],
            [made],
            name=self.fresh(f"{layer.scope}/Dropout"),
        )

    def _transpose(
        self, reads: str, makes: str, permutation: tuple[int, ...], scope: str
    ) -> NodeProto:
        name = self.fresh(f"{scope}/Transpose")
        return helper.make_node("Transpose", [reads], [makes], name=name, perm=list(permutation))

    def _constant(self, name: str, value: np.ndarray) -> str:
        unique = self.fresh(name)
        tensor: TensorProto = numpy_helper.from_array(value, unique)
        self.graph.initializer.append(tensor)
        return unique


def _alive(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """The nodes that outputs depend on, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_reads(node))
            kept.append(node)
    return kept[::-1]


def _read(graph: GraphProto) -> set[str]:
    return {name for node in graph.node for name in _reads(node)} | {o.name for o in graph.output}


def _reads(node: NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from _reads(inner)
