"""Inputs for benchmarks/fuzz.py: a small valid file of each format, and how files are mutated.

A mutation is a handful of edits, each drawn by hypothesis: of the structure (a value in place of
another, a field or a node twice, moved or gone, in JSON, protobuf or text, and within JSON that
stands in a text, as plan records do), or of the bytes. Places are drawn by what they are (``all
kernels of nodes``) before which, so that the record is edited as often as the nodes' inputs.
"""

from __future__ import annotations

import copy
import dataclasses
import gzip
import io
import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from memcli.engines.mxnet.rewrites.gradient_joins import Join, insert_joins
from memcli.engines.mxnet.rewrites.reserved_blocks import (
    Reservation,
    insert_reservation,
    waiting_arguments,
)
from memcli.engines.mxnet.rewrites.save_barriers import BARRIER_SUFFIX
from memcli.engines.mxnet.rewrites.split_activation_functions import SplitActivation, insert_splits
from memcli.formats.caffe.file import CaffeFile
from memcli.formats.detect import ModelSource, detect_format
from memcli.formats.input_shapes import bind_shapes
from memcli.formats.model_file import read_model
from memcli.formats.onnx.plan import planned_bytes
from memcli.formats.onnx.record import MARK_KEY as ONNX_MARK_KEY
from memcli.formats.onnx.record import PLAN_KEY as ONNX_PLAN_KEY
from memcli.formats.pt2.file import Pt2File
from memcli.formats.symbol.edits import (
    INSERTED_KEY,
    REWIRED_KEY,
    Rewiring,
    insert_identities,
    rewire,
)
from memcli.formats.symbol.environment import ALLOWED
from memcli.formats.symbol.file import ADDED_KEY, MARK_KEY, ORIGINAL_MARK_KEY, SymbolFile
from memcli.formats.symbol.record import PLAN_KEY, PlanRecord
from memcli.formats.trained_file import new_plan
from memcli.request import ShapeRequest

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Base:
    """A valid file. ``kind``: symbol, onnx, caffe or costs; ``planned``: it carries a plan."""

    name: str  # of the file; its ending says how it is mutated
    data: bytes = dataclasses.field(repr=False)
    kind: str
    planned: bool = False


# -- values ------------------------------------------------------------------------------------

_LIMITS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    255,
    65535,
    65536,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 53,
    (1 << 63) - 1,
    -(1 << 63),
    1 << 63,
    10**18,
    10**30,
]
_TEXTS = [
    "",
    "None",
    "True",
    "False",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "0",
    "-1",
    "²",
    "٣",
    "1_000",
    "(0,0)",
    "(-1,2)",
    "(3,3)",
    "(2,3,8,8)",
    "(0, -1)",
    "[[]]",
    "{}",
    "{[]: 1}",
    "(9999999999,3)",
    "(1,1,1,1,1,1,1,1)",
    "9" * 400,
    "(" * 200,
    "add",
    "null",
    "valid",
    "channel",
    "é",
    "\u202e",
    "a\x1b[31mb",
    "\x1b]0;t\x07",
    "a\nb",
    "a\rb",
    "\t",
    "\x9b",
    "a\x00b",
    "n0",
    "data",
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "%s%n",
    "{0}",
    "$(id)",
    "float16",
    "float32",
    "int64",
    "LD_PRELOAD",
    "MXNET_LIBRARY_PATH",
    "__import__('os')",
    "😀" * 30,
    "x" * 3000,
]
_KEYS = [
    PLAN_KEY,
    MARK_KEY,
    ORIGINAL_MARK_KEY,
    ADDED_KEY,
    INSERTED_KEY,
    REWIRED_KEY,
    "force_mirroring",
    "__shape__",
    "__dtype__",
    "__init__",
    "__lr_mult__",
    "__ctx_group__",
    "__storage_type__",
    "num_args",
    "num_outputs",
    "num_group",
    "kernel",
    "stride",
    "pad",
    "shape",
    "axis",
    "dim",
    "num_hidden",
    "num_filter",
    "mode",
    "p",
    "op_type",
    "sparse_grad",
    "dtype",
    *ALLOWED,
    ONNX_PLAN_KEY,
    ONNX_MARK_KEY,
    "subgraphs",
    "control_deps",
    "order",
    "graph",
    "schema",
]
OPERATORS = [
    "null",
    "Convolution",
    "BatchNorm",
    "Pooling",
    "FullyConnected",
    "Reshape",
    "Concat",
    "RNN",
    "SliceChannel",
    "Dropout",
    "_copy",
    "_zeros",
    "amp_multicast",
    "reshape_like",
    "elemwise_add",
    "SoftmaxOutput",
    "MakeLoss",
    "BlockGrad",
    "Custom",
    "_foreach",
    "_cond",
    "Embedding",
    "transpose",
    "Deconvolution",
    "UpSampling",
    "Crop",
    "ROIPooling",
    "LRN",
    "slice",
    "tile",
    "broadcast_add",
    "topk",
    "one_hot",
    "Cast",
    "stack",
    "batch_dot",
    "LayerNorm",
    "L2Normalization",
    "_subgraph_op",
]
ONNX_OPERATORS = [
    "Relu",
    "Conv",
    "Reshape",
    "Gemm",
    "MatMul",
    "Add",
    "Concat",
    "Slice",
    "Shape",
    "Gather",
    "If",
    "Loop",
    "Scan",
    "Constant",
    "ConstantOfShape",
    "Expand",
    "SplitActivation",
    "Squeeze",
    "Unsqueeze",
    "Pad",
    "Resize",
    "LSTM",
    "GRU",
    "RNN",
    "BatchNormalization",
    "Dropout",
    "Softmax",
    "ReduceMean",
    "Cast",
    "TopK",
    "Where",
    "Range",
    "Tile",
    "NonZero",
    "OneHot",
    "Einsum",
    "Identity",
    "MaxPool",
    "ConvTranspose",
    "LayerNormalization",
    "SequenceConstruct",
    "Optional",
    "QuantizeLinear",
]

whole_numbers = st.sampled_from(_LIMITS) | st.integers(-4, 9) | st.integers()
texts = (
    st.sampled_from(_TEXTS)
    | st.sampled_from(_KEYS)
    | st.text(max_size=12)
    | st.builds(str, whole_numbers)
)
_REAL = [0.0, -1.0, 0.5, 1e30, 1e-30, 1e308, math.nan, math.inf]
real_numbers = st.sampled_from(_REAL) | st.floats()
simple_values = st.one_of(
    whole_numbers,
    texts,
    real_numbers,
    st.none(),
    st.booleans(),
    st.lists(whole_numbers, max_size=4),
    st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=2),
    st.dictionaries(st.just("a"), whole_numbers, max_size=1),
)


# -- JSON --------------------------------------------------------------------------------------

Slot = tuple[Any, Any]  # a container and a key of it


def _slots(tree: Any, pattern: tuple[str, ...], found: dict[tuple[str, ...], list[Slot]]) -> None:
    """All places of a JSON value, by what they are: keys, with * for positions."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            found.setdefault((*pattern, key), []).append((tree, key))
            _slots(value, (*pattern, key), found)
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            found.setdefault((*pattern, "*"), []).append((tree, position))
            _slots(value, (*pattern, "*"), found)


def _drawn_slot(draw: Draw, tree: Any) -> Slot | None:
    found: dict[tuple[str, ...], list[Slot]] = {}
    _slots(tree, (), found)
    if not found:
        return None
    places = found[draw(st.sampled_from(sorted(found)))]
    return places[draw(st.integers(0, len(places) - 1))]


def _edited_within(draw: Draw, value: Any) -> str | None:
    """A text that holds JSON with one edit of that; None for any other value."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return None
    try:
        inner = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not inner or not draw(st.integers(0, 4)):
        return None
    edit_json(draw, inner)
    return json.dumps(inner, ensure_ascii=draw(st.booleans()))


def edit_json(draw: Draw, tree: Any) -> None:
    """One edit of a JSON value, in place."""
    slot = _drawn_slot(draw, tree)
    if slot is None:
        return
    holder, key = slot
    value = holder[key]
    within = _edited_within(draw, value)
    if within is not None:
        holder[key] = within
        return
    kind = draw(st.integers(0, 8))
    if kind <= 2:
        holder[key] = draw(_like(value))
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, list):
        holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(value))
    elif kind in {4, 5}:
        if isinstance(holder, dict):
            holder[draw(st.sampled_from(_KEYS) | texts)] = draw(texts | simple_values)
        else:
            other = draw(st.integers(0, len(holder) - 1))
            holder[key], holder[other] = holder[other], holder[key]
    elif kind == 6:
        there = _drawn_slot(draw, tree)
        assert there is not None
        holder[key] = copy.deepcopy(there[0][there[1]])
    elif kind == 7 and key == "op":
        holder[key] = draw(st.sampled_from(OPERATORS))
    elif kind == 8 and isinstance(value, str) and re.search("[0-9]", value):
        holder[key] = _other_number(draw, value)
    else:
        holder[key] = draw(simple_values)


def _like(value: Any) -> st.SearchStrategy[Any]:
    """Another value of the same type, so that the file is looked into."""
    if isinstance(value, bool) or value is None:
        return st.booleans()
    if isinstance(value, int):
        return st.integers(0, 12) | whole_numbers
    if isinstance(value, float):
        return real_numbers
    return texts if isinstance(value, str) else simple_values


def _other_number(draw: Draw, text: str) -> str:
    """The text with another number in place of one of its numbers."""
    numbers = list(re.finditer(r"-?[0-9]+", text))
    found = numbers[draw(st.integers(0, len(numbers) - 1))]
    return text[: found.start()] + str(draw(whole_numbers)) + text[found.end() :]


def mutated_json(draw: Draw, data: bytes) -> bytes:
    """A JSON file with one to four edits."""
    tree = json.loads(data)
    for _ in range(draw(_COUNTS)):
        edit_json(draw, tree)
    text = json.dumps(
        tree,
        ensure_ascii=draw(st.sampled_from([False, False, True])),
        indent=draw(st.sampled_from([None, 2])),
    )
    return text.encode("utf-8", "surrogatepass")


_COUNTS = st.sampled_from([1, 1, 1, 2, 2, 3, 4])


# -- protobuf ----------------------------------------------------------------------------------


def _messages(message: Message, found: dict[str, list[Message]]) -> None:
    found.setdefault(message.DESCRIPTOR.name, []).append(message)
    for kind, value in message.ListFields():
        if kind.type == FieldDescriptor.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                _messages(part, found)


def _is_repeated(field: Any) -> bool:
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == 3


def edit_message(draw: Draw, model: Message) -> None:
    """One edit of a protobuf message, in place: of any message within it, of any of its fields."""
    found: dict[str, list[Message]] = {}
    _messages(model, found)
    chosen = found[draw(st.sampled_from(sorted(found)))]
    message = chosen[draw(st.integers(0, len(chosen) - 1))]
    fields = message.DESCRIPTOR.fields_by_name
    there = [one.name for one, _ in message.ListFields()]
    names = there if there and draw(st.integers(0, 4)) else sorted(fields)
    field = fields[draw(st.sampled_from(names))]
    value: Any = None
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        value = _field_value(draw, message, field)
    try:
        if _is_repeated(field):
            _edit_repeated(draw, getattr(message, field.name), value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE or draw(st.integers(0, 4)) == 0:
            if message.HasField(field.name):
                message.ClearField(field.name)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, value)
    except (ValueError, TypeError):
        return  # no value of this field's


def _edit_repeated(draw: Draw, values: Any, value: Any) -> None:
    if value is None and not len(values):
        values.add()
        return
    if not len(values):
        values.append(value)
        return
    at = draw(st.integers(0, len(values) - 1))
    kind = draw(st.integers(0, 4))
    if kind == 0:
        del values[at]
    elif kind == 1:
        values.append(copy.deepcopy(values[at]))
    elif kind == 2 and value is None:
        values[at].CopyFrom(copy.deepcopy(values[draw(st.integers(0, len(values) - 1))]))
    elif kind == 2:
        values.insert(at, values[at])
    elif value is not None:
        values[at] = value


def _field_value(draw: Draw, message: Message, field: Any) -> Any:
    kind = field.cpp_type
    before = getattr(message, field.name)
    if field.name == "op_type":
        return draw(st.sampled_from(ONNX_OPERATORS) | texts)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.binary(max_size=40) | st.builds(str.encode, st.sampled_from(_TEXTS)))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        within = _edited_within(draw, before)
        return draw(texts) if within is None else within
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return draw(real_numbers)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return draw(st.integers(-1, 30))
    return draw(whole_numbers)


def mutated_onnx(draw: Draw, data: bytes) -> bytes:
    """An ONNX file with one to four edits."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    for _ in range(draw(_COUNTS)):
        edit_message(draw, model)
    return model.SerializeToString()


# -- text --------------------------------------------------------------------------------------

_WORD = re.compile(r"\"[^\"\n]*\"|[A-Za-z_]+|-?[0-9.]+(?:e-?[0-9]+)?|[{}:]")
# The record of a plan in a net definition is JSON over several lines of comments.
_COMMENT = re.compile(r"(?<=# memcli\.plan )[^\n]*")
_CAFFE_WORDS = [
    "Convolution",
    "InnerProduct",
    "Pooling",
    "Slice",
    "Concat",
    "Eltwise",
    "Reshape",
    "Data",
    "Input",
    "Python",
    "HDF5Data",
    "LRN",
    "Dropout",
    "BatchNorm",
    "Scale",
    "SplitActivation",
    "TRAIN",
    "TEST",
    "layer",
    "layers",
    "include",
    "phase",
    "top",
    "bottom",
    "name",
    "type",
    "param",
    "engine",
    "num_output",
    "kernel_size",
    "stride",
    "pad",
    "group",
    "axis",
    "dim",
    "{",
    "}",
    ":",
    "true",
]


def mutated_text(draw: Draw, data: bytes) -> bytes:
    """A text file with one to four edits, of lines, words and numbers."""
    text = data.decode()
    for _ in range(draw(_COUNTS)):
        kind = draw(st.integers(0, 7))
        if kind <= 1:
            lines = text.split("\n")
            at = draw(st.integers(0, len(lines) - 1))
            if kind == 0:
                del lines[at]
            else:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            text = "\n".join(lines)
            continue
        records = list(_COMMENT.finditer(text)) if kind == 2 else []
        start, end = 0, len(text)
        if records:
            record = records[draw(st.integers(0, len(records) - 1))]
            start, end = record.span()
        words = list(_WORD.finditer(text, start, end))
        if not words:
            continue
        word = words[draw(st.integers(0, len(words) - 1))]
        if word[0][0] == '"':
            new = '"' + draw(texts).replace('"', "") + '"'
        elif word[0][-1].isdecimal():
            new = str(draw(whole_numbers | real_numbers))
        else:
            new = draw(st.sampled_from(_CAFFE_WORDS) | texts)
        text = text[: word.start()] + new + text[word.end() :]
    return text.encode("utf-8", "surrogatepass")


# -- bytes -------------------------------------------------------------------------------------


def mutated_bytes(draw: Draw, data: bytes) -> bytes:
    """A file with bytes changed, taken out, put in, moved, or cut off."""
    made = bytearray(data)
    for _ in range(draw(st.sampled_from([1, 1, 2, 4, 16]))):
        if not made:
            break
        at = draw(st.integers(0, len(made) - 1))
        kind = draw(st.integers(0, 6))
        if kind == 0:
            made[at] = draw(st.integers(0, 255))
        elif kind == 1:
            made[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 2:
            del made[at : at + draw(st.sampled_from([1, 4, 64]))]
        elif kind == 3:
            made[at:at] = made[max(0, at - draw(st.integers(1, 80))) : at]
        elif kind == 4:
            made[at:at] = draw(st.sampled_from(_TEXTS)).encode("utf-8", "surrogatepass")
        elif kind == 5:
            made[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif draw(st.integers(0, 2)) == 0:
            del made[at:]
    return bytes(made)


# -- archives ----------------------------------------------------------------------------------


def mutated_archive(draw: Draw, data: bytes) -> bytes:
    """An archive with a member changed as what it is, left out, twice, renamed or packed."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    packed = False
    for _ in range(draw(_COUNTS)):
        texts = [k for k, (_, content) in enumerate(members) if _is_json(content)]
        kind = draw(st.integers(0, 9))
        at = draw(st.sampled_from(range(len(members))))
        name, content = members[at]
        if kind <= 5 and texts:
            at = draw(st.sampled_from(texts))
            name, content = members[at]
            members[at] = name, mutated_json(draw, content)
        elif kind == 6:
            members[at] = name, mutated_bytes(draw, content)
        elif kind == 7:
            members[at] = draw(st.sampled_from(_MEMBER_NAMES)), content
        elif kind == 8 and len(members) > 1:
            del members[at]
        else:
            packed = True
    out = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue()


def _is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


_MEMBER_NAMES = [
    "net/extra/memcli.plan.json",
    "net/models/other.json",
    "net/data/weights/w0",
    "../net/evil",
    "/net/evil",
    "other/archive_format",
    "net",
    "net/",
    "net/\x07",
]

# -- all formats -------------------------------------------------------------------------------


@st.composite
def mutations(draw: Draw, bases: list[Base], bytes_too: bool = True) -> tuple[Base, bytes]:
    """A base and its mutated content; ``bytes_too``: some have their bytes edited."""
    base = draw(st.sampled_from(bases))
    data = base.data
    packed = base.name.endswith(".gz")
    if packed:
        data = gzip.decompress(data)
    structure = not bytes_too or draw(st.integers(0, 3))
    if structure:
        name = base.name.removesuffix(".gz")
        if name.endswith(".json"):
            data = mutated_json(draw, data)
        elif name.endswith(".onnx"):
            data = mutated_onnx(draw, data)
        elif name.endswith(".pt2"):
            data = mutated_archive(draw, data)
        else:
            data = mutated_text(draw, data)
    if not packed:
        return base, data if structure else mutated_bytes(draw, data)
    data = gzip.compress(data, 1, mtime=0)
    return base, data if structure else mutated_bytes(draw, data)


def unmutated_bases() -> list[Base]:
    """A valid file of each format, without a plan."""
    symbol, older = _symbol(), _older_symbol()
    return [
        Base("net.json", symbol, "symbol"),
        Base("net.json.gz", gzip.compress(symbol, 1, mtime=0), "symbol"),
        Base("older.json", older, "symbol"),
        Base("recurrent.json", _recurrent_symbol(), "symbol"),
        Base("net.onnx", _convolutions().SerializeToString(), "onnx"),
        Base("shapes.onnx", _shapes().SerializeToString(), "onnx"),
        Base("functions.onnx", _functions().SerializeToString(), "onnx"),
        Base("net.pt2", _program(), "pt2"),
        Base("net.prototxt", _CAFFE.encode(), "caffe"),
        Base("older.prototxt", _OLDER_CAFFE.encode(), "caffe"),
        Base("costs.json", _node_link(), "costs"),
        Base("layered.json", _layered(), "costs"),
        Base("chainer.txt", _chainer(), "costs"),
    ]


def planned_bases(bases: list[Base]) -> list[Base]:
    """The same with plans, made without an engine: as valid as a search's, and hardly as good."""
    made = []
    for base in bases:
        if base.name in ("net.json", "older.json"):
            made.append(_planned_symbol(base))
        elif base.kind in ("onnx", "caffe", "pt2"):
            made.append(_planned_onnx(base))
    packed = gzip.compress(made[0].data, 1, mtime=0)
    return [*made, Base("planned-net.json.gz", packed, "symbol", True)]


def _planned_symbol(base: Base) -> Base:
    """With every edit that plans make to a graph: barriers, blocks, joins, pieces, other inputs."""
    file = SymbolFile.from_bytes(base.data, base.name)
    raw = file.raw

    def position(name: str) -> int:
        return next(k for k, node in enumerate(raw["nodes"]) if node["name"] == name)

    if base.name == "net.json":
        raw, _ = insert_splits(raw, [SplitActivation(position("act1"), 2)])
        raw, _ = insert_identities(raw, [position("conv0")], BARRIER_SUFFIX)
        first = Reservation(position("bn0"), 2, 0, 8, [4096, 1024], "float32")
        raw, _ = insert_reservation(raw, first)
        joined = [(position("joined"), slot) for slot in (0, 1)]
        raw, _ = insert_joins(raw, [Join(joined, "join")])
        flat = position("flat")
        inputs = [(p, output) for p, output, *_ in raw["nodes"][flat]["inputs"]]
        raw = rewire(raw, [Rewiring(flat, inputs, {"shape": "(0, -1)"})])
    changed = file.with_content(raw)
    marked = [k for k, node in enumerate(changed.nodes) if node.op in ("BatchNorm", "Activation")]
    record = PlanRecord(
        strategy="auto",
        shapes={"data": _DATA[base.name]},
        dtype="float32",
        environment={"NNVM_EXEC_MATCH_RANGE": "4", "MXNET_MKLDNN_ENABLED": "0"},
        original_name=base.name,
        original_sha256=file.sha256,
        n_nodes=changed.node_count,
        kernels="plain",
        cuts=[len(changed.nodes) // 2],
        frozen=[_FROZEN[base.name]],
        original_marks={p: list(mark) for p, mark in changed.existing_marks().items()},
        memory={"baseline_bytes": 4096, "planned_bytes": 2048},
        recompute={"fraction": 0.25},
    )
    norms = [p for p in marked if changed.nodes[p].op == "BatchNorm"]
    added = {p: {"cudnn_off": "True"} for p in norms}
    blocked = {p: {"__shape__": "(8,)"} for p in waiting_arguments(raw)}
    data = changed.with_marks(marked, record, added, replaced=blocked)
    return Base(f"planned-{base.name}", data, "symbol", True)


_DATA = {"net.json": [4, 3, 12, 12], "older.json": [4, 16]}
_FROZEN = {"net.json": "fc_*", "older.json": "fc0_*"}


def _planned_onnx(base: Base) -> Base:
    """Each third node recomputed once, each third at each need."""
    source = ModelSource(base.name, base.data, "0" * 64, detect_format(base.data))
    file = read_model(source, ShapeRequest())
    marks = {name: ("kept", "again", "each")[k % 3] for k, name in enumerate(file.node_names)}
    plan = new_plan(
        file,
        marks,
        strategy="auto",
        shapes=bind_shapes(file, ShapeRequest(batch=2)).shapes,
        dtype="float32",
        memory={"baseline_bytes": 4096, "planned_bytes": 2048},
        recompute={"fraction": 0.25},
    )
    if isinstance(file, Pt2File):
        return Base(f"planned-{base.name}", file.planned_bytes(plan), base.kind, True)
    if isinstance(file, CaffeFile):
        plan = dataclasses.replace(plan, base_sha256=file.sha256)
        return Base(f"planned-{base.name}", file.annotated(plan), base.kind, True)
    return Base(f"planned-{base.name}", planned_bytes(file, plan), base.kind, True)


def _program() -> bytes:
    """An exported program, as torch.export.save writes it: two layers, states, an open batch."""
    nodes: list[dict[str, Any]] = []
    metas: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    symbol = {"expr_str": "Symbol('s7', positive=True, integer=True)", "hint": {"as_int": 4}}

    def meta(shape: list[int], dtype: int = 7, trained: bool = False) -> dict[str, Any]:
        strides = [math.prod(abs(n) for n in shape[k + 1 :]) for k in range(len(shape))]
        return {
            "dtype": dtype,
            "sizes": [{"as_expr": symbol} if n < 0 else {"as_int": n} for n in shape],
            "requires_grad": trained,
            "device": {"type": "cpu", "index": None},
            "strides": [{"as_int": n} for n in strides],
            "storage_offset": {"as_int": 0},
            "layout": 7,
        }

    def call(name: str, op: str, shape: list[int] | None, **given: Any) -> None:
        inputs = [
            {"name": key.rstrip("_"), "arg": {tag: value}, "kind": 1}
            for key, (tag, value) in given.items()
        ]
        output: dict[str, Any] = {"as_tensor": {"name": name}}
        if shape is None:
            output = {"as_sym_int": {"as_name": name}}
            numbers[name] = {"as_expr": symbol}
        else:
            metas[name] = meta(shape)
        stack = "L__self__,,m.Net;L__self__c,c,torch.nn.modules.conv.Conv2d"
        nodes.append(
            {
                "target": f"torch.ops.aten.{op}",
                "inputs": inputs,
                "outputs": [output],
                "metadata": {"nn_module_stack": stack},
                "name": name,
            }
        )

    def tensor(name: str) -> tuple[str, Any]:
        return "as_tensor", {"name": name}

    weights = {
        "c.weight": ([4, 3, 3, 3], 7, "parameter"),
        "n.weight": ([4], 7, "parameter"),
        "n.bias": ([4], 7, "parameter"),
        "n.running_mean": ([4], 7, "buffer"),
        "n.running_var": ([4], 7, "buffer"),
        "n.seen": ([], 5, "buffer"),
        "l.weight": ([2, 256], 7, "parameter"),
    }
    specs: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    config: dict[str, Any] = {}
    for number, (target, (shape, dtype, kind)) in enumerate(weights.items()):
        value = f"p_{target.replace('.', '_')}"
        argument = {"arg": {"name": value}, f"{kind}_name": target}
        specs.append({kind: argument | ({"persistent": True} if kind == "buffer" else {})})
        metas[value] = meta(shape, dtype, kind == "parameter")
        members[f"data/weights/w{number}"] = bytes(math.prod(shape) * (8 if dtype == 5 else 4))
        config[target] = {
            "path_name": f"w{number}",
            "is_param": kind == "parameter",
            "use_pickle": False,
            "tensor_meta": meta(shape, dtype, kind == "parameter"),
        }
    for value, shape, dtype in (("x", [-1, 3, 8, 8], 7), ("y", [-1], 5)):
        specs.append({"user_input": {"arg": {"as_tensor": {"name": value}}}})
        metas[value] = meta(shape, dtype)
    specs.append({"constant_input": {"name": "scale", "value": {"as_int": 2}}})
    call("size", "sym_size.int", None, self_=tensor("x"), dim=("as_int", 0))
    call(
        "conv2d",
        "conv2d.default",
        [-1, 4, 8, 8],
        input=tensor("x"),
        weight=tensor("p_c_weight"),
        bias=("as_none", True),
        stride=("as_ints", [1, 1]),
        padding=("as_ints", [1, 1]),
    )
    call("add_", "add_.Tensor", [], self_=tensor("p_n_seen"), other=("as_int", 1))
    call(
        "norm",
        "batch_norm.default",
        [-1, 4, 8, 8],
        input=tensor("conv2d"),
        weight=tensor("p_n_weight"),
        bias=tensor("p_n_bias"),
        running_mean=tensor("p_n_running_mean"),
        running_var=tensor("p_n_running_var"),
        training=("as_bool", True),
        momentum=("as_float", 0.1),
        eps=("as_float", 1e-5),
        cudnn_enabled=("as_bool", True),
    )
    call("relu_", "relu_.default", [-1, 4, 8, 8], self_=tensor("norm"))
    sizes = [{"as_name": "size"}, {"as_int": -1}]
    call("view", "view.default", [-1, 256], self_=tensor("relu_"), size=("as_sym_ints", sizes))
    call(
        "drop",
        "dropout.default",
        [-1, 256],
        input=tensor("view"),
        p=("as_float", 0.1),
        train=("as_bool", True),
    )
    call("linear", "linear.default", [-1, 2], input=tensor("drop"), weight=tensor("p_l_weight"))
    call("loss", "cross_entropy_loss.default", [], self_=tensor("linear"), target=tensor("y"))
    program = {
        "graph_module": {
            "graph": {
                "inputs": [],
                "outputs": [{"as_tensor": {"name": "loss"}}],
                "nodes": nodes,
                "tensor_values": metas,
                "sym_int_values": numbers,
                "sym_bool_values": {},
            },
            "signature": {
                "input_specs": specs,
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "loss"}}}}],
            },
            "module_call_graph": [],
        },
        "opset_version": {"aten": 10},
        "range_constraints": {"s7": {"min_val": 1, "max_val": 64}},
        "schema_version": {"major": 8, "minor": 20},
        "torch_version": "2.13.0",
    }
    members["data/weights/net_weights_config.json"] = json.dumps({"config": config}).encode()
    members["data/constants/net_constants_config.json"] = b'{"config": {}}'
    members["models/net.json"] = json.dumps(program).encode()
    members["data/sample_inputs/net.pt"] = b"\x80\x02."
    members["archive_format"], members["byteorder"] = b"pt2", b"little"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(f"net/{name}"), content)
    return out.getvalue()


class _Symbol:
    """Nodes of a symbol as they come, in any of its spellings."""

    def __init__(self, table: str = "attrs") -> None:
        self.table = table
        self.nodes: list[dict[str, Any]] = []

    def add(self, op: str, name: str, *inputs: Any, **attrs: str) -> int:
        """A node, its inputs as positions or (position, output); its position."""
        made: dict[str, Any] = {"op": op, "name": name}
        if attrs:
            made[self.table] = attrs
        made["inputs"] = [[i, 0, 0] if isinstance(i, int) else [i[0], i[1], 0] for i in inputs]
        self.nodes.append(made)
        return len(self.nodes) - 1

    def weight(self, name: str, **attrs: str) -> int:
        """A variable."""
        return self.add("null", name, **attrs)

    def text(self, head: int, **more: Any) -> bytes:
        """The file."""
        variables = [k for k, node in enumerate(self.nodes) if node["op"] == "null"]
        whole = {"nodes": self.nodes, "arg_nodes": variables, "heads": [[head, 0, 0]], **more}
        return json.dumps(whole, indent=2).encode()


def _symbol() -> bytes:
    s = _Symbol()
    x = s.weight("data", __shape__="(4, 3, 12, 12)")
    for k in range(3):
        x = s.add(
            "Convolution",
            f"conv{k}",
            x,
            s.weight(f"conv{k}_weight"),
            kernel="(3, 3)",
            num_filter="8",
            pad="(1, 1)",
            no_bias="True",
            num_group="1",
        )
        parts = [s.weight(f"bn{k}_{p}") for p in ("gamma", "beta")]
        moving = [s.weight(f"bn{k}_{p}", __init__='["zero", {}]') for p in ("mean", "var")]
        x = s.add("BatchNorm", f"bn{k}", x, *parts, *moving, eps="0.001", fix_gamma="False")
        x = s.add("LeakyReLU" if k else "Activation", f"act{k}", x, act_type="elu" if k else "relu")
    halves = s.add("SliceChannel", "halves", x, num_outputs="2", axis="1")
    window = {"kernel": "(2, 2)", "stride": "(2, 2)"}
    left = s.add("Pooling", "left", (halves, 0), pool_type="max", **window)
    right = s.add("Pooling", "right", (halves, 1), pool_type="avg", **window)
    x = s.add("Concat", "joined", left, right, num_args="2", dim="1")
    x = s.add("Dropout", "drop", s.add("Reshape", "flat", x, shape="(0, -1)"), p="0.5")
    x = s.add(
        "FullyConnected",
        "fc",
        x,
        s.weight("fc_weight", __lr_mult__="2.0"),
        s.weight("fc_bias"),
        num_hidden="5",
    )
    head = s.add("SoftmaxOutput", "softmax", x, s.weight("softmax_label"))
    rows = list(range(len(s.nodes) + 1))
    return s.text(head, node_row_ptr=rows, attrs={"mxnet_version": ["int", 10901]})


def _older_symbol() -> bytes:
    """As MXNet 0.8 wrote them: attributes in 'param' and 'attr', inputs of two numbers."""
    s = _Symbol("param")
    x = s.weight("data")
    s.nodes[x]["attr"] = {"__shape__": "(4, 16)", "ctx_group": "stage1"}
    for k in range(3):
        x = s.add(
            "FullyConnected",
            f"fc{k}",
            x,
            s.weight(f"fc{k}_weight"),
            s.weight(f"fc{k}_bias"),
            num_hidden="16",
            no_bias="False",
        )
        s.nodes[x]["attr"] = {"ctx_group": "stage1", "force_mirroring": "True", "lr_mult": "0.1"}
        x = s.add("Activation", f"tanh{k}", x, act_type="tanh")
    head = s.add("LinearRegressionOutput", "loss", x, s.weight("label"), grad_scale="1")
    for node in s.nodes:
        node.setdefault("param", {})
        node["inputs"] = [entry[:2] for entry in node["inputs"]]
        node["backward_source_id"] = -1
    return s.text(head).replace(b"    0,\n      0\n", b"    0, 0\n")


def _recurrent_symbol() -> bytes:
    s = _Symbol()
    x = s.weight("data", __shape__="(6, 4)")
    x = s.add("Embedding", "embed", x, s.weight("embed_weight"), input_dim="20", output_dim="8")
    states = [s.weight(f"state{k}", __shape__="(1, 4, 8)", __init__='["zero", {}]') for k in (0, 1)]
    x = s.add(
        "RNN",
        "lstm",
        x,
        s.weight("lstm_parameters"),
        *states,
        state_size="8",
        num_layers="1",
        mode="lstm",
        state_outputs="True",
    )
    x = s.add("reshape", "rows", x, shape="(-1, 8)")
    x = s.add("LayerNorm", "ln", x, s.weight("ln_gamma"), s.weight("ln_beta"), axis="-1")
    y = s.add("broadcast_mul", "scaled", x, s.add("sigmoid", "gate", x))
    z = s.add("elemwise_add", "sum", s.add("transpose", "t", s.add("transpose", "u", y)), x)
    x = s.add(
        "FullyConnected",
        "fc",
        z,
        s.weight("fc_weight"),
        num_hidden="20",
        no_bias="True",
        flatten="False",
    )
    x = s.add("mean", "mean", s.add("log_softmax", "log", x, axis="-1"))
    loss = s.add("MakeLoss", "loss", x)
    s.nodes[loss]["control_deps"] = [z]
    return s.text(loss, attrs={"mxnet_version": ["int", 10901], "names": ["list_str", ["a", "b"]]})


def _tensors(**shapes: tuple[int, ...]) -> list[TensorProto]:
    random = np.random.default_rng(0)
    return [
        numpy_helper.from_array(random.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def _numbers(**values: list[int]) -> list[TensorProto]:
    return [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in values.items()]


def _model(
    nodes: list[onnx.NodeProto],
    weights: list[TensorProto],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    functions: Any = (),
) -> onnx.ModelProto:
    def values(shapes: dict[str, Any]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    graph = helper.make_graph(nodes, "net", values(inputs), values(outputs), weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def _convolutions() -> onnx.ModelProto:
    """A residual network with BatchNorm in training mode, in modules as PyTorch names them."""
    node, nodes = helper.make_node, []
    weights = _tensors(w0=(4, 3, 3, 3), w1=(4, 4, 3, 3), fc=(5, 4), bias=(5,))
    weights += [numpy_helper.from_array(np.full(4, k % 2, np.float32), f"bn{k}") for k in range(4)]
    nodes.append(node("Conv", ["x", "w0"], ["c0"], "/stem/Conv", pads=[1] * 4, kernel_shape=[3, 3]))
    nodes.append(
        node(
            "BatchNormalization",
            ["c0", "bn1", "bn0", "bn2", "bn3"],
            ["b0", "m", "v"],
            "/stem/bn/BatchNormalization",
            training_mode=1,
            epsilon=1e-3,
        )
    )
    nodes.append(node("Relu", ["b0"], ["r0"], "/stem/Relu"))
    nodes.append(
        node("MaxPool", ["r0"], ["p0"], "/stem/MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    )
    nodes.append(node("Conv", ["p0", "w1"], ["c1"], "/blocks/0/Conv", pads=[1] * 4, group=1))
    nodes.append(node("Add", ["c1", "p0"], ["s1"], "/blocks/0/Add"))
    nodes.append(node("Sigmoid", ["s1"], ["g1"], "/blocks/0/Sigmoid"))
    nodes.append(node("GlobalAveragePool", ["g1"], ["mean"], "/GlobalAveragePool"))
    nodes.append(node("Flatten", ["mean"], ["flat"], "/Flatten", axis=1))
    nodes.append(node("Gemm", ["flat", "fc", "bias"], ["y"], "/fc/Gemm", transB=1, alpha=1.0))
    return _model(nodes, weights, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]})


def _shapes() -> onnx.ModelProto:
    """Tensors that decide about shapes, a recurrence, and branches."""
    node, nodes = helper.make_node, []
    weights = _tensors(w=(1, 16, 6), r=(1, 16, 4), out=(4, 4))
    weights += _numbers(first=[0], last=[1 << 31], axis=[0], two=[2, -1], one=[1])
    condition = numpy_helper.from_array(np.array(True), "yes")
    nodes.append(node("LSTM", ["x", "w", "r"], ["h", "", "c"], "lstm", hidden_size=4))
    nodes.append(node("Squeeze", ["h", "one"], ["s"], "squeeze"))
    nodes.append(node("Shape", ["s"], ["shape"], "shape"))
    nodes.append(node("Slice", ["shape", "first", "one", "axis"], ["lead"], "lead"))
    nodes.append(node("Concat", ["lead", "two"], ["wanted"], "wanted", axis=0))
    nodes.append(node("Reshape", ["s", "wanted"], ["turned"], "turned"))
    nodes.append(node("Reshape", ["turned", "shape"], ["back"], "back"))
    nodes.append(node("Constant", [], ["k"], "k", value=numpy_helper.from_array(np.array([3, 1]))))
    nodes.append(node("SplitActivation", ["back"], ["p", "q"], "parts", axis=2))
    nodes.append(node("Concat", ["q", "p"], ["swapped"], "swapped", axis=-1))
    nodes.append(node("MatMul", ["swapped", "out"], ["z"], "matmul"))

    def branch(op: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None)
        return helper.make_graph([node(op, ["z"], [f"{op}_y"], op)], op, [], [info])

    nodes.append(
        node("If", ["yes"], ["y"], "if", then_branch=branch("Tanh"), else_branch=branch("Relu"))
    )
    return _model(nodes, [*weights, condition], {"x": [5, "batch", 6]}, {"y": [5, "batch", 4]})


def _functions() -> onnx.ModelProto:
    """A function of the model's own, and a weight in a file beside it."""
    node = helper.make_node
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    gate = [node("Sigmoid", ["a"], ["s"], "s"), node("Mul", ["a", "s"], ["b"], "m")]
    twice = [node("Gate", [a], [b], f"gate {a}", domain="my") for a, b in ("at", "tb")]
    functions = [
        helper.make_function("my", "Gate", ["a"], ["b"], gate, opsets),
        helper.make_function("my", "Twice", ["a"], ["b"], twice, opsets),
    ]
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 8])
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "256")):
        outside.external_data.add(key=key, value=value)
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "first"),
        node("Twice", ["h"], ["g"], "twice", domain="my"),
        node("LayerNormalization", ["g", "scale"], ["n"], "norm", axis=-1),
        node("Softmax", ["n"], ["y"], "softmax", axis=-1),
    ]
    weights = [outside, *_tensors(scale=(8,))]
    return _model(nodes, weights, {"x": ["N", 8]}, {"y": ["N", 8]}, functions)


_CAFFE = """name: "net"
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 4 } } }
layer {
  name: "c1" type: "Convolution" bottom: "data" top: "c1" param { lr_mult: 1 decay_mult: 1 }
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 1 group: 1 bias_term: false
    weight_filler { type: "xavier" } }
}
layer { name: "b1" type: "BatchNorm" bottom: "c1" top: "c1" batch_norm_param { eps: 1e-5 } }
layer { name: "s1" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" relu_param { negative_slope: 0.1 } }
layer { name: "n1" type: "LRN" bottom: "c1" top: "n1"
  lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 } }
layer { name: "q1" type: "Pooling" bottom: "n1" top: "q1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "l1" type: "Slice" bottom: "q1" top: "l1" top: "l2"
  slice_param { axis: 1 slice_point: 2 } }
layer { name: "e1" type: "Eltwise" bottom: "l1" bottom: "l2" top: "e1"
  eltwise_param { operation: SUM coeff: 1 coeff: -1 } }
layer { name: "k1" type: "Concat" bottom: "e1" bottom: "l1" top: "k1" concat_param { axis: 1 } }
layer { name: "h1" type: "Reshape" bottom: "k1" top: "h1"
  reshape_param { shape { dim: 0 dim: -1 } } }
layer { name: "d1" type: "Dropout" bottom: "h1" top: "h1"
  dropout_param { dropout_ratio: 0.3 } include { phase: TRAIN } }
layer { name: "f1" type: "InnerProduct" bottom: "h1" top: "f1"
  inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f1" bottom: "label" top: "loss" }
layer { name: "acc" type: "Accuracy" bottom: "f1" bottom: "label" top: "acc"
  include { phase: TEST } }
"""
_OLDER_CAFFE = """name: "older"
input: "data" input_dim: 4 input_dim: 3 input_dim: 8 input_dim: 8
layers { name: "c1" type: CONVOLUTION bottom: "data" top: "c1" blobs_lr: 1 weight_decay: 1
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 } }
layers { name: "t1" type: TANH bottom: "c1" top: "t1" }
layers { name: "f1" type: INNER_PRODUCT bottom: "t1" top: "f1"
  inner_product_param { num_output: 3 } }
layers { name: "p1" type: SOFTMAX bottom: "f1" top: "p1" }
"""


def _node_link() -> bytes:
    length, total = 8, 16
    nodes = [{"id": k, "cost_cpu": 1.5 + k % 3, "cost_ram": 1 + k % 5} for k in range(total)]
    links = [{"source": k, "target": k + 1} for k in range(total - 1)]
    links += [{"source": k, "target": total - 1 - k} for k in range(length - 1)]
    whole = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}
    return json.dumps(whole).encode()


def _layered() -> bytes:
    nodes = [{"name": f"v{k}", "duration": k % 4, "out_cost": 1 + k % 3} for k in range(12)]
    links = [{"0": f"v{u}", "1": f"v{k}"} for k in range(12) for u in (k - 1, k - 3) if u >= 0]
    order = [f"v{k}" for k in range(12)]
    whole = {
        "directed": True,
        "graph": {"name": "layered", "order": order},
        "nodes": nodes,
        "edges": links,
    }
    return json.dumps(whole, indent=1).encode()


def _chainer() -> bytes:
    count = 5
    lines = [f"{2 * count + 2} {2 * count}"]
    lines += [f"{k} {4 * (1 + k % 3)} tensor{k}" for k in range(2 * count + 2)]
    for k in range(count):  # tensor 0 is the input, k + 1 what function k makes
        kind = "Convolution2DFunction" if k % 2 else "ReLU"
        lines += ["forward", "1 1", f"{k} _", f"{k + 1}", kind, "{}"]
    for k in range(count):  # tensor count + 1 + k is the gradient of what function k reads
        gradient = 2 * count + 1 if k == count - 1 else count + 2 + k
        lines += [
            "backward",
            "2 1",
            f"{gradient} gradient",
            f"{k} input",
            f"{count + 1 + k}",
            f"{k}Backward",
            "{}",
        ]
    return ("\n".join(lines) + "\n").encode()
