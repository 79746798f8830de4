"""Puts back into an ONNX graph what training needs and an export for inference takes out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from memcli.formats.onnx.check import subgraphs
from memcli.formats.onnx.export_defects import (
    BATCHNORM_MODE_SINCE,
    DROPOUT_MODE_SINCE,
    folded_batchnorms,
    is_inference_batchnorm,
    is_inference_dropout,
)
from memcli.formats.onnx.file import OnnxFile, from_model
from memcli.formats.onnx.signature import module_of
from memcli.formats.onnx.tf_restore import with_tf_layers
from memcli.formats.onnx.types import FLOATS

# PyTorch's defaults; ONNX counts momentum the other way round.
_EPSILON, _MOMENTUM = 1e-5, 0.9
_MOST_CHANNELS = 1 << 20  # what says more is damaged


def as_training(file: OnnxFile) -> tuple[OnnxFile, list[str]]:
    """The file in training mode, and what was done to it, in words.

    BatchNormalization and Dropout get their training mode. Where PyTorch's exporter folded a
    BatchNormalization into a convolution, a new one follows that convolution: scale 1, bias 0,
    mean 0, variance 1, so that the network's shape and memory are those of the original; its
    weights are not. The outputs that the graph had keep their names. Nothing done: the very same
    file, and an empty list, or what could not be done.
    """
    model = ModelProto()
    model.CopyFrom(file.working)
    done = with_tf_layers(model, _Edit(file, model).fresh)
    if done:
        file = from_model(model, file.path, file.sha256)
        model = ModelProto()
        model.CopyFrom(file.working)
    edit = _Edit(file, model)
    done += [*edit.batchnorms(), *edit.dropouts(), *edit.folded()]
    if not edit.changed:
        return file, done
    # The plan of the old graph, if there is one, is none of the new.
    kept = [e for e in model.metadata_props if e.key != "memcli.plan"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return from_model(model, file.path, file.sha256), done


class _Edit:
    """A copy of the file's model while it is changed; positions of ``file`` hold until `folded`."""

    def __init__(self, file: OnnxFile, model: ModelProto) -> None:
        self.file = file
        self.model = model
        self.graph = model.graph
        self.taken = set(_names(file))
        self.changed = False

    def batchnorms(self) -> list[str]:
        """Training mode for the normalizations that lack it."""
        nodes = [
            (node, name)
            for node, name in zip(self.graph.node, self.file.node_names, strict=True)
            if is_inference_batchnorm(node, self.file.opset)
        ]
        for node, name in nodes:
            del node.output[1:]
            self._train(node, name)
        if not nodes:
            return []
        self.changed = True
        form = (
            "training_mode=1"
            if self.file.opset >= BATCHNORM_MODE_SINCE
            else "five outputs, the training form before operator set 14"
        )
        return [f"{_are(len(nodes), 'BatchNormalization')} set to training ({form})"]

    def dropouts(self) -> list[str]:
        """Training mode for the Dropouts that lack it, by one constant that they share."""
        nodes = [n for n in self.graph.node if is_inference_dropout(n, self.file)]
        if not nodes:
            return []
        if self.file.opset < DROPOUT_MODE_SINCE:
            return [
                f"{_are(len(nodes), 'Dropout')} left as it is: operator set {self.file.opset} has "
                "no training mode for it (onnx.version_converter.convert_version(model, 13))"
            ]
        mode = self.fresh("memcli_training_mode")
        self._add(mode, np.array(True))
        for node in nodes:
            while len(node.input) < 3:
                node.input.append("")
            node.input[2] = mode
        self.changed = True
        return [f"{_are(len(nodes), 'Dropout')} set to training (training_mode=true)"]

    def folded(self) -> list[str]:
        """New normalizations after the convolutions that have swallowed theirs."""
        dims = {tensor.name: list(tensor.dims) for tensor in self.graph.initializer}
        types = self.file.element_types()
        after: dict[int, NodeProto] = {}
        left = 0
        for position in folded_batchnorms(self.file):
            node = self.graph.node[position]
            shape = dims.get(node.input[1]) if len(node.input) > 1 else None
            channels = _channels(node, shape)
            kind = types.get(node.output[0], 0) if node.output else 0
            if channels is None or kind not in FLOATS:
                left += 1
                continue
            after[position] = self._normalization(node, position, channels, kind)
        told = []
        if after:
            self.changed = True
            nodes = list(self.graph.node)
            del self.graph.node[:]
            for position, node in enumerate(nodes):
                self.graph.node.append(node)
                if position in after:
                    self.graph.node.append(after[position])
            told.append(
                f"{_are(len(after), 'BatchNormalization')} put in anew after convolutions that "
                "theirs was folded into: the network's form is the original's, its values are not"
            )
        if left:
            told.append(
                f"{left} folded BatchNormalization not restored: the number of channels is not in "
                "the file"
            )
        return told

    def _normalization(self, conv: NodeProto, position: int, channels: int, kind: int) -> NodeProto:
        """A new node that takes over the name of the convolution's output."""
        module = module_of(conv) or f"{self.file.node_names[position]}_batchnorm"
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        names = []
        for word, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            name = self.fresh(f"{module}.{word}")
            self._add(name, np.full(channels, value, dtype))
            names.append(name)
        output = conv.output[0]
        conv.output[0] = self.fresh(f"{output}_before_batchnorm")
        node = helper.make_node(
            "BatchNormalization",
            [conv.output[0], *names],
            [output],
            name=self.fresh(f"{self.file.node_names[position]}_batchnorm"),
            epsilon=_EPSILON,
            momentum=_MOMENTUM,
        )
        self._train(node, node.name)
        return node

    def _train(self, node: NodeProto, name: str) -> None:
        """Gives a BatchNormalization its mode and the outputs that training has."""
        words = ["running_mean", "running_var"]
        if self.file.opset >= BATCHNORM_MODE_SINCE:
            kept = [a for a in node.attribute if a.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("training_mode", 1)])
        else:
            words += ["saved_mean", "saved_var"]
        node.output.extend(self.fresh(f"{name}_{word}") for word in words)

    def _add(self, name: str, value: np.ndarray) -> None:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        if self.model.ir_version < 4:  # there every initializer is an input as well
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            self.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))

    def fresh(self, name: str) -> str:
        """A name that nothing in the graph has."""
        unique, count = name, 0
        while unique in self.taken:
            count += 1
            unique = f"{name}_{count}"
        self.taken.add(unique)
        return unique


def _channels(node: NodeProto, shape: list[int] | None) -> int | None:
    """Channels of the output, from the weight's shape."""
    if not shape or len(shape) < 2 or max(shape) > _MOST_CHANNELS:
        return None
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "ConvTranspose":
        return shape[1] * group
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return shape[0] if transposed else shape[1]
    return shape[0]


def _names(file: OnnxFile) -> Iterator[str]:
    """Every name in the graph, so that new ones are new; those of subgraphs see the outer ones."""
    graphs = [file.graph]
    while graphs:
        graph = graphs.pop()
        yield from (value.name for value in (*graph.input, *graph.output))
        yield from (tensor.name for tensor in graph.initializer)
        for node in graph.node:
            yield from node.input
            yield from node.output
            yield node.name
            graphs += subgraphs(node)
    yield from file.node_names


def _are(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 or what == 'Dropout' else 's'}"
