"""Caffe net definitions as files to plan: the ONNX graph that they become, and their own text."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnx import helper

from memcli.errors import BadInput
from memcli.formats.caffe.annotate import carried_plan, with_plan, without_plan
from memcli.formats.caffe.building import OPSET
from memcli.formats.caffe.convert import converted, definition_sha256
from memcli.formats.caffe.net import Net, training_net
from memcli.formats.caffe.sources import FreeBlob, free_blobs
from memcli.formats.caffe.text import parse_net
from memcli.formats.detect import ModelSource
from memcli.formats.input_shapes import BoundShapes, ShapesAsked, bind_shapes
from memcli.formats.node_plan import NodePlan
from memcli.formats.onnx.file import OnnxFile, from_model
from memcli.formats.output import write_output
from memcli.quoting import STANDARD, shown_path

PROTOTXT_ENDINGS = (".prototxt", ".pbtxt", ".txt")
ONNX_ENDING = ".onnx"


@dataclass
class CaffeFile(OnnxFile):
    """A net definition, as the ONNX training graph that it becomes at the shapes asked for."""

    format = "caffe-prototxt"

    @property
    def described(self) -> str:
        """What it is and holds, in words."""
        return f"Caffe net, phase TRAIN, {self.node_count} operators as ONNX has them"

    text: str = field(default="", repr=False)  # without its plan
    blocks: list[int] = field(default_factory=list)  # for each node, the layer block it is of
    lines: list[int] = field(default_factory=list)  # of the layer blocks
    joined: dict[int, str] = field(default_factory=dict)  # layer blocks that are part of others
    definition: str = ""  # hash of what a plan depends on
    record: NodePlan | None = None
    notes: list[str] = field(default_factory=list)  # type: ignore[misc]

    fixed_mode = "a Caffe net is read in its phase TRAIN"

    def carried_plan(self) -> NodePlan | None:
        """The plan in the definition's comments."""
        return self.record

    def graph_sha256(self) -> str:
        """Of the definition, which other shapes of the data leave alone."""
        return self.definition

    def unplanned(self) -> CaffeFile:
        """The same without its plan."""
        return dataclasses.replace(self, record=None)

    def written_as(self, out: str) -> OnnxFile:
        """The graph as an ONNX file's where the name asks for that."""
        if is_onnx_name(out):
            return from_model(self.model, self.path, self.sha256)
        return self

    def annotated(self, plan: NodePlan) -> bytes:
        """The definition with a plan in comments."""
        owners: dict[int, list[str]] = {}
        for block, name, node in zip(self.blocks, self.node_names, self.graph.node, strict=True):
            owners.setdefault(block, []).append(f"{name}:{node.op_type}")
        return with_plan(self.text, plan, self.lines, owners, self.joined).encode()

    def write_planned(self, plan: NodePlan, out: str, *, overwrite: bool) -> list[str]:
        """Writes the definition with a plan in comments, whole or not at all.

        Raises:
            BadInput: ``out`` cannot be written, or exists and ``overwrite`` is false.
        """
        base = hashlib.sha256(self.text.encode()).hexdigest()
        plan = dataclasses.replace(plan, base_sha256=base)
        write_output(out, self.annotated(plan), overwrite=overwrite)
        return []


def check_caffe_output(out: str) -> None:
    """Refuses a name that does not say in which format a planned net is to be written.

    Raises:
        BadInput: it ends in neither ``.prototxt`` (or ``.pbtxt``, ``.txt``) nor ``.onnx``.
    """
    if out != STANDARD and not out.lower().endswith((*PROTOTXT_ENDINGS, ONNX_ENDING)):
        raise BadInput(
            f"{shown_path(out)}: a planned Caffe net is written as .prototxt or as .onnx",
            "give the output a name that ends so",
        )


def is_onnx_name(out: str) -> bool:
    """Whether the name asks for ONNX."""
    return out.lower().endswith(ONNX_ENDING)


def read_caffe(source: ModelSource, asked: ShapesAsked, as_planned: bool) -> CaffeFile:
    """:func:`parse_caffe` of what was read."""
    return parse_caffe(source.data, source.path, source.sha256, asked, as_planned=as_planned)


def parse_caffe(
    data: bytes, path: str, sha256: str, asked: ShapesAsked, *, as_planned: bool = False
) -> CaffeFile:
    """The training net of a definition, as a graph for the shapes asked for.

    ``as_planned``: a plan's shapes take the place of the definition's where none are asked for.

    Raises:
        BadInput: no net definition, one that cannot be trained or translated, or shapes that do not
            fit. Messages name the line.
    """
    name = shown_path(path)
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{name}: line {line}: is not UTF-8 text") from error
    record = carried_plan(whole, name)
    text = without_plan(whole) if record is not None else whole
    parsed = parse_net(whole, name)  # lines as the user sees them
    net = training_net(parsed, name)
    if record is not None and as_planned:
        asked = _as_planned(asked, record)
    free, declared = free_blobs(net, asked.shapes, asked.unnamed is not None)
    bound = _bound(net, free, declared, path, sha256, asked)
    assumed = {blob.name for blob in free if blob.assumed} | set(bound.assumed)
    weights = f"{Path(path).name.split('.')[0]}.weights"
    try:
        made = converted(net, free, bound.shapes, weights)
    except BadInput as error:
        if not assumed:
            raise
        shapes = " ".join(
            f"--shape {n}={','.join(map(str, bound.shapes[n]))}" for n in sorted(assumed)
        )
        hint = f"{error.hint}; shapes" if error.hint else "shapes"
        raise BadInput(error.message, f"{hint} were assumed, as if by {shapes}") from error
    file = from_model(made.model, path, sha256)
    known = {value.name: value for value in file.inputs}
    batch = next((bound.shapes[b.name][0] for b in free if b.dims and b.dims[0] == "batch"), None)
    layer_lines = parse_net(text, name).lines if record is not None else parsed.lines
    fields = {f.name: getattr(file, f.name) for f in dataclasses.fields(OnnxFile)}
    fields |= {"batch": batch, "assumed": tuple(sorted(assumed & set(known)))}
    return CaffeFile(
        **fields,
        text=text,
        blocks=made.blocks,
        joined=made.joined,
        lines=layer_lines["layer"] or layer_lines["layers"],
        definition=definition_sha256(net),
        record=record,
        notes=made.notes,
    )


def _as_planned(asked: ShapesAsked, record: NodePlan) -> ShapesAsked:
    """The plan's shapes, at the batch that is asked for, where no shapes are."""
    if asked.shapes or asked.unnamed is not None:
        return asked
    shapes = {name: list(shape) for name, shape in record.shapes.items()}
    leading = next((shape[0] for shape in shapes.values() if shape), None)
    if asked.batch is not None:
        for shape in shapes.values():
            if shape and shape[0] == leading:
                shape[0] = asked.batch
    return dataclasses.replace(asked, shapes=shapes, batch=None)  # type: ignore[type-var]


def _bound(
    net: Net,
    free: Sequence[FreeBlob],
    batch: int | None,
    path: str,
    sha256: str,
    asked: ShapesAsked,
) -> BoundShapes:
    """Shapes of the data, as of any ONNX file whose inputs have the shapes that the net says."""
    if not free:
        raise BadInput(f"{net.path}: no data layer brings in anything that a layer reads")
    inputs = [helper.make_tensor_value_info(b.name, 7 if b.integer else 1, b.dims) for b in free]
    reads = [helper.make_node("Identity", [b.name], [f"{b.name}/read"]) for b in free]
    outputs = [helper.make_tensor_value_info(f"{b.name}/read", 1, None) for b in free]
    graph = helper.make_graph(reads, "data", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    file = dataclasses.replace(from_model(model, path, sha256), batch=batch)
    return bind_shapes(file, asked)
