"""From a Caffe training net to an ONNX training graph, for given shapes of its data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, helper

from memcli.errors import BadInput, MemcliError
from memcli.formats.caffe import layers as _layers
from memcli.formats.caffe.building import OPSET, Builder, Shape, Tensor
from memcli.formats.caffe.layers.normalization import folded_into_batch_norm
from memcli.formats.caffe.net import Net, Source
from memcli.formats.caffe.registry import (
    LAYERS,
    LEFT_OUT,
    REASONS,
    LayerCall,
    Unsupported,
)
from memcli.formats.caffe.sources import FreeBlob, is_label, is_source
from memcli.quoting import first_of, shown
from memcli.version import __version__

assert _layers  # registers the translations
_IR_VERSION = 10


@dataclass
class Converted:
    """A training graph."""

    model: ModelProto
    blocks: list[int]  # for each node, the layer block of the file that it comes from
    joined: dict[int, str]  # {layer block without nodes: the layer that took it in}
    notes: list[str]


def converted(
    net: Net, free: Sequence[FreeBlob], shapes: Mapping[str, Sequence[int]], weights_file: str
) -> Converted:
    """The net as a graph: blobs are tensors, layers are nodes, both by their own names.

    A blob that is written again in place is another tensor (``blob/layer``), and layers of several
    operators have nodes ``layer/part``. Outputs are the losses by their weights; blobs that no
    layer reads are outputs as well. What training does not need is left out.

    Raises:
        BadInput: layers that are not supported (all at once), or whose shapes do not fit.
    """
    return _Conversion(net, free, shapes, weights_file).run()


class _Conversion:
    def __init__(
        self, net: Net, free: Sequence[FreeBlob], shapes: Mapping[str, Sequence[int]], weights: str
    ) -> None:
        self.net = net
        self.free = free
        self.shapes = shapes
        tops = {top for layer in net.layers for top in layer.tops}
        self.builder = Builder(weights, tops, {layer.name for layer in net.layers})
        self.values: dict[Source, Tensor | None] = {}
        self.shared: dict[str, tuple[Tensor, Shape]] = {}
        self.problems: dict[str, list[str]] = {}
        self.losses: list[Tensor] = []
        self.notes: list[str] = list(net.notes)

    def run(self) -> Converted:
        for position in range(len(self.net.layers)):
            self._layer(position)
        if self.problems:
            raise self._refusal()
        outputs = self._outputs()
        if not outputs:
            raise BadInput(
                f"{self.net.path}: computes nothing in the phase TRAIN",
                "give the net that trains (train_test.prototxt)",
            )
        return self._graph(outputs)

    def _layer(self, position: int) -> None:
        layer = self.net.layers[position]
        if is_source(layer):
            self._data(position)
            return
        if layer.type in LEFT_OUT:
            return
        translate = LAYERS.get(layer.type)
        if translate is None:
            self._problem(position, REASONS.get(layer.type, "is not known to memcli"))
            return
        bottoms = [self.values.get(source) for source in self.net.sources[position]]
        if any(bottom is None for bottom in bottoms):
            # of a layer that is refused, or of a top that is not made
            self._unmade(position)
            return
        call = LayerCall(
            self.net,
            position,
            layer,
            [b for b in bottoms if b is not None],
            self.builder,
            self.shared,
        )
        try:
            self._check_gradients(position)
            made = translate(call)
        except Unsupported as error:
            self._problem(position, str(error))
            return
        except MemcliError:
            raise
        except Exception as error:  # numbers that the schema allows and nothing can mean
            self._problem(position, f"its parameters do not fit: {type(error).__name__}: {error}")
            return
        tops = made if isinstance(made, list) else [made]
        for top, value in enumerate(tops):
            self.values[position, top] = value
            self._objective(call, top, value)

    def _data(self, position: int) -> None:
        layer = self.net.layers[position]
        known = {blob.name: blob for blob in self.free}
        for top, name in enumerate(layer.tops):
            if name in self.shapes and name in known:
                self.values[position, top] = self.builder.source(
                    name, tuple(self.shapes[name]), integer=is_label(self.net, position, top)
                )

    def _unmade(self, position: int) -> None:
        """A layer that reads what there is not; a problem of its own where none was said before."""
        for source in self.net.sources[position]:
            maker = self.net.layers[source[0]]
            if source in self.values and self.values[source] is None and source[1] > 0:
                what = f"its top {shown(maker.tops[source[1]])} is not made, and layers read it"
                self._problem(source[0], what)
            elif maker.type in LEFT_OUT:
                self._problem(position, f"reads what {maker.type} makes, which is left out")

    def _check_gradients(self, position: int) -> None:
        layer = self.net.layers[position]
        stops = list(layer.parameter.propagate_down)
        for number, goes in enumerate(stops):
            if number >= len(layer.bottoms):
                raise Unsupported(f"has {len(stops)} propagate_down for its bottoms")
            source = self.net.sources[position][number]
            if not goes and not is_source(self.net.layers[source[0]]):
                raise Unsupported(
                    f"stops the gradient of bottom {shown(layer.bottoms[number])} "
                    "(propagate_down), which ONNX cannot say"
                )

    def _objective(self, call: LayerCall, top: int, value: Tensor | None) -> None:
        """Adds a top to the losses where it has a weight."""
        weights = list(call.p.loss_weight)
        is_loss = call.layer.type.endswith("Loss")
        weight = weights[top] if top < len(weights) else float(is_loss and top == 0)
        if not weight or value is None:
            return
        if value.shape:
            axes = call.builder.ints(*range(value.rank))
            value = call.step("total", "ReduceSum", [value, axes], (), keepdims=0)
        if weight != 1:
            value = call.times(value, weight, "weighted")
        self.losses.append(value)

    def _outputs(self) -> list[Tensor]:
        """The losses, then other blobs that no layer reads."""
        found = {loss.name: loss for loss in self.losses}
        for position, layer in enumerate(self.net.layers):
            if is_source(layer) or layer.type in LEFT_OUT:
                continue
            for top in range(max(1, len(layer.tops))):
                readers = [self.net.layers[r].type for r, _ in self.net.readers_of(position, top)]
                if self.losses:
                    unread = not readers
                else:
                    unread = all(kind in LEFT_OUT for kind in readers) and "Silence" not in readers
                value = self.values.get((position, top))
                if not unread or value is None or value.name in found or value.name in _given(self):
                    continue
                if self.losses and value.count == 1 and value.rank < 2:
                    continue  # it would be taken for a loss
                found[value.name] = value
        return list(found.values())

    def _graph(self, outputs: list[Tensor]) -> Converted:
        builder = self.builder
        needed, used = _needed(builder.nodes, [t.name for t in outputs])
        nodes = [node for node, keep in zip(builder.nodes, needed, strict=True) if keep]
        owners = [owner for owner, keep in zip(builder.owners, needed, strict=True) if keep]
        self._note_left_out(set(owners))
        dims = {blob.name: blob.dims for blob in self.free}
        inputs = []
        for value in self.values.values():
            if value is None or value.name not in dims:
                continue
            kind = TensorProto.INT64 if value.integer else TensorProto.FLOAT
            shape: list[int | str] = list(value.shape)
            declared = dims[value.name]
            if declared and declared[0] == "batch":
                shape[0] = "batch"
            inputs.append(helper.make_tensor_value_info(value.name, kind, shape))
        # A blob under a second name enters once.
        inputs = list({value.name: value for value in inputs}.values())
        given = [tensor for name, tensor in builder.given.items() if name in used]
        ends = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, _open(t)) for t in outputs]
        name = self.net.name or "net"
        kinds = [value for key, value in builder.kinds.items() if key in used]
        graph = helper.make_graph(nodes, name, inputs, ends, given, value_info=kinds)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="memcli",
            producer_version=__version__,
            ir_version=_IR_VERSION,
        )
        blocks = [self.net.layers[owner].block for owner in owners]
        layers = self.net.layers
        joined = {
            layer.block: layers[self.net.sources[position][0][0]].name
            for position, layer in enumerate(layers)
            if layer.type == "Scale" and folded_into_batch_norm(self.net, position)
        }
        return Converted(model, blocks, joined, self.notes)

    def _note_left_out(self, owners: set[int]) -> None:
        gone: dict[str, list[str]] = {}
        for position, layer in enumerate(self.net.layers):
            if layer.type in LEFT_OUT:
                gone.setdefault(layer.type, []).append(layer.name)
            elif not is_source(layer) and position not in owners:
                of_layer = [o for o in self.builder.owners if o == position]
                if of_layer:  # others compute nothing
                    gone.setdefault(f"{layer.type} that no loss needs", []).append(layer.name)
        for kind, names in gone.items():
            self.notes.append(f"left out: {kind} ({first_of(names)})")

    def _problem(self, position: int, why: str) -> None:
        layer = self.net.layers[position]
        listed = self.problems.setdefault(f"{layer.type}: {why}", [])
        where = f"{shown(layer.name)} (line {layer.line})"
        if where not in listed:
            listed.append(where)

    def _refusal(self) -> BadInput:
        listed = "; ".join(
            f"{what} ({', '.join(where[:3])}{f' and {len(where) - 3} more' if where[3:] else ''})"
            for what, where in self.problems.items()
        )
        count = sum(map(len, self.problems.values()))
        some = "a layer" if count == 1 else f"{count} layers"
        return BadInput(f"{self.net.path}: has {some} that cannot be translated: {listed}")


def _given(conversion: _Conversion) -> set[str]:
    """Names of tensors that the file gives or that come in."""
    return {*conversion.builder.given, *(blob.name for blob in conversion.free)}


def _open(tensor: Tensor) -> list[int | None]:
    """An output's shape, its leading dimension left open, where the batch may be."""
    return [None, *tensor.shape[1:]] if tensor.shape else []


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> tuple[list[bool], set[str]]:
    """Which nodes lead to the outputs, and all tensors on the way."""
    used = set(outputs)
    needed = [False] * len(nodes)
    for i in range(len(nodes) - 1, -1, -1):
        if used.intersection(nodes[i].output):
            needed[i] = True
            used.update(name for name in nodes[i].input if name)
    return needed, used


def definition_sha256(net: Net) -> str:
    """SHA-256 of what a plan depends on: the training layers, data layers' own parameters apart.

    Comments, formatting, and what only the test net has do not matter.
    """
    digest = hashlib.sha256()
    for layer in net.layers:
        if is_source(layer):
            digest.update(repr((layer.type, layer.tops)).encode())
        else:
            digest.update(layer.parameter.SerializeToString(deterministic=True))
        digest.update(b"\0")
    return digest.hexdigest()
