"""PyTorch programs that ``torch.export.save`` wrote (``.pt2``): read, checked, and planned."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from memcli.errors import BadInput
from memcli.formats.detect import LARGEST_FILE, ModelSource
from memcli.formats.node_plan import NodePlan
from memcli.formats.output import write_output
from memcli.formats.pt2.archive import Archive, open_archive, with_member, without_member
from memcli.formats.pt2.canonical import canonical, references
from memcli.formats.pt2.graph import (
    DTYPES,
    ExportedGraph,
    ExportedNode,
    Held,
    Ref,
    Special,
    parse_graph,
    size_of,
    symbols_of,
)
from memcli.formats.pt2.training import in_mode, losses, mode_in_words
from memcli.formats.pt2.values import Reader
from memcli.formats.scopes import Path as Scope
from memcli.formats.scopes import Scopes, dotted
from memcli.formats.stripped import Stripped
from memcli.formats.symbol.values import LARGEST_TENSOR
from memcli.formats.trained_file import Leaf, Loss, Role, TensorValue, fitting_plan
from memcli.quoting import first_of, shown, shown_path

# The member that holds the plan. ``torch.export.load(path, extra_files={NAME: ""})`` gives it, and
# loads the program as it is.
PLAN_NAME = "memcli.plan.json"
PLAN_MEMBER = f"extra/{PLAN_NAME}"
_WEIGHTS = "data/weights"
_CONSTANTS = "data/constants"
_LARGEST_PLAN = 64 << 20


@dataclass(frozen=True)
class Payload:
    """Where a tensor's elements are: a member of raw bytes, of which it is a view."""

    member: str
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    requires_grad: bool
    pickled: bool


@dataclass
class Pt2File:
    """An exported program whose graph is sound."""

    path: str
    sha256: str  # of the file as stored
    archive: Archive = field(repr=False)
    graph: ExportedGraph = field(repr=False)
    payloads: Mapping[str, Payload] = field(repr=False)  # by name in the module
    batch: int | None = None
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    format = "pt2"
    fixed_mode = ""
    # What is fixed in the file was fixed when it was exported, in its operators as well.
    fixed_sizes = True

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return os.path.basename(self.path)

    @property
    def node_names(self) -> list[str]:
        """Of all nodes, in the order in which they run."""
        return [node.name for node in self.graph.nodes]

    @property
    def node_count(self) -> int:
        """Nodes of the graph, those of its parts included."""
        return len(self.graph.nodes)

    @property
    def opsets(self) -> dict[str, int]:
        """Versions of the sets of operators."""
        return dict(self.graph.opsets)

    @property
    def producer(self) -> str:
        """The PyTorch that wrote the file."""
        return f"PyTorch {self.graph.torch_version}".strip()

    @property
    def described(self) -> str:
        """What it is and holds, in words."""
        mode = mode_in_words(self.graph)
        return (
            f"exported program, by {self.producer}, {self.node_count} nodes"
            f"{f' ({mode})' if mode else ''}"
        )

    @property
    def inputs(self) -> list[TensorValue]:
        """The free inputs, in the order of the call."""
        return [TensorValue(name, meta.dtype, meta.sizes) for name, meta in self.graph.inputs]

    @property
    def outputs(self) -> list[TensorValue]:
        """The tensors that the program gives, in its order."""
        rows = zip(self.graph.outputs, self.graph.output_metas, strict=True)
        return [
            TensorValue(o.name, meta.dtype if meta else "", meta.sizes if meta else None)
            for o, meta in rows
            if isinstance(o, Ref)
        ]

    def operators(self) -> list[str]:
        """The operator of each node."""
        return [node.operator for node in self.graph.nodes]

    def node_outputs(self) -> list[list[str]]:
        """Names of what each node gives."""
        return [[name for name in node.first_outputs if name] for node in self.graph.nodes]

    def first_outputs(self) -> list[str]:
        """The name of each node's first output; with the name of the node where it has none."""
        return [next(iter(o), n) for o, n in zip(self.node_outputs(), self.node_names, strict=True)]

    @cached_property
    def states(self) -> frozenset[str]:
        """The buffers that a training step changes, by name in the module."""
        return _states(self.graph)

    def leaves(self) -> dict[str, Leaf]:
        """Every tensor that the program reads, by its name in the module."""
        found: dict[str, Leaf] = {}
        first: dict[Any, str] = {}
        for held in self.graph.held:
            payload = self.payloads[held.target]
            role: Role = "constant"
            if held.kind == "parameter":
                role = "parameter"
            elif held.target in self.states:
                role = "state"
            place = (payload.member, payload.sizes, payload.strides, payload.offset)
            tied = first.setdefault(place, held.target) if role == "parameter" else held.target
            found[held.target] = Leaf(
                held.target,
                role,
                payload.dtype,
                payload.sizes,
                None,
                tied if tied != held.target else None,
                payload.requires_grad or role != "parameter",
            )
        return found

    def losses(self) -> list[Loss]:
        """What is in evaluation mode."""
        return losses(self.graph)

    def scopes(self) -> Scopes:
        """The module that each node stands in; one without is with what it reads."""
        made: dict[str, Scope] = {}
        paths: list[Scope] = []
        called: set[Scope] = set()
        sequences: set[Scope] = set()
        for node in self.graph.nodes:
            path = dotted(node.scopes[-1]) if node.scopes else ()
            if not path:
                read = (name for a in node.arguments for name in references(a.value))
                path = next((made[name] for name in read if made.get(name)), ())
            paths.append(path)
            made.update(dict.fromkeys(node.first_outputs, path))
            called.update(map(dotted, node.scopes))
            for scope, kind in zip(node.scopes, node.classes, strict=True):
                if kind.endswith(".container.Sequential"):
                    sequences.add(dotted(scope))
        return Scopes("torch", paths, frozenset(called), frozenset(sequences))

    def as_training(self) -> tuple[Pt2File, list[str]]:
        """The program with BatchNorm, Dropout and the like in training mode, and what was set."""
        graph, done = in_mode(self.graph, True)
        return (dataclasses.replace(self, graph=graph), done) if done else (self, done)

    def check_operators(self) -> None:
        """Nothing: other operators than PyTorch's own are refused when the file is read."""

    def check_trainable(self, training: bool) -> None:
        """Nothing: the operators are those of the module."""

    def graph_sha256(self) -> str:
        """Hash of nodes, arguments and names and types of tensors; not of weights or sizes."""
        digest = hashlib.sha256()
        for part in _hashed(self.graph, self.payloads):
            digest.update(json.dumps(part, separators=(",", ":")).encode())
        return digest.hexdigest()

    def unplanned_bytes(self) -> bytes:
        """The archive without a plan."""
        if PLAN_MEMBER not in self.archive:
            return self.archive.data
        return without_member(self.archive, PLAN_MEMBER)

    def base_sha256(self) -> str:
        """Hash of the archive without a plan."""
        return hashlib.sha256(self.unplanned_bytes()).hexdigest()

    def carried_plan(self) -> NodePlan | None:
        """The plan in the archive's extra files.

        Raises:
            BadInput: it carries one that cannot be understood.
        """
        if PLAN_MEMBER not in self.archive:
            return None
        where = f"{shown_path(self.path)}: {PLAN_NAME}"
        try:
            text = self.archive.read(PLAN_MEMBER, _LARGEST_PLAN).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{where}: is not UTF-8 text", "plan the original again") from error
        return NodePlan.from_text(text, where)

    def plan(self) -> NodePlan | None:
        """The plan that the file carries; None without one.

        Raises:
            BadInput: as :func:`memcli.formats.trained_file.fitting_plan`.
        """
        return fitting_plan(self)

    def unplanned(self) -> Pt2File:
        """The same without its plan."""
        bare = parse_pt2(self.unplanned_bytes(), self.path, self.sha256)
        return dataclasses.replace(bare, notes=self.notes)

    def written_as(self, out: str) -> Pt2File:
        """Itself: there is one format to write it in."""
        return self

    def planned_bytes(self, plan: NodePlan) -> bytes:
        """The archive with a plan, in the place of one that is there.

        Raises:
            BadInput: it would be larger than memcli reads.
        """
        bare = open_archive(self.unplanned_bytes(), shown_path(self.path))
        data = with_member(bare, PLAN_MEMBER, plan.to_text().encode())
        if len(data) > LARGEST_FILE:
            raise BadInput(f"{shown_path(self.path)}: with the plan it takes more than 2 GiB")
        return data

    def write_planned(self, plan: NodePlan, out: str, *, overwrite: bool) -> list[str]:
        """Writes the archive with its plan, whole or not at all.

        Raises:
            BadInput: ``out`` cannot be written, or exists and ``overwrite`` is false.
        """
        write_output(out, self.planned_bytes(plan), overwrite=overwrite)
        return []

    def likely_size(self, dim: str, symbols: Mapping[str, int]) -> int | None:
        """The size of the example that it was exported with, or what follows from other sizes."""
        hints: dict[str, int] = {}
        for _, meta in self.graph.inputs:
            hints |= meta.hints
        return size_of(dim, {**hints, **symbols}) if dim not in hints else hints[dim]

    def check_sizes(self, symbols: Mapping[str, int]) -> None:
        """Refuses sizes outside of what the program was exported for.

        Raises:
            BadInput: which, and what it may be.
        """
        name = shown_path(self.path)
        for dim, size in symbols.items():
            low, high = self.graph.ranges.get(dim, (None, None))
            if (low is not None and size < low) or (high is not None and size > high):
                most = "" if high is None else f" to {high}"
                raise BadInput(
                    f"{name}: a dimension of {size} is not within {low or 0}{most}, for which it "
                    "was exported",
                    "export it with a wider torch.export.Dim",
                )
            wanted = size_of(dim, symbols)
            if wanted is not None and wanted != size:
                raise BadInput(f"{name}: the dimension {shown(dim)} would be {size}, not {wanted}")

    def job(self, path: Path, *, values: bool) -> dict[str, Any]:
        """Leaves the checked graph at ``path``, and the archive beside it where ``values``."""
        path.write_bytes(pickle.dumps(dataclasses.replace(self, archive=self._without_data())))
        job = {"exported": str(path)}
        if values:
            archive = path.with_name(f"{path.name}.archive")
            archive.write_bytes(self.archive.data)
            job["archive"] = str(archive)
        return job

    def _without_data(self) -> Archive:
        return dataclasses.replace(self.archive, data=b"", members={})


def read_pt2(source: ModelSource, asked: object, as_planned: bool) -> Pt2File:
    """:func:`parse_pt2` of what was read; the graph depends on no shapes that are asked for."""
    file = parse_pt2(source.data, source.path, source.sha256)
    return dataclasses.replace(file, notes=source.notes)


def parse_pt2(data: bytes, path: str, sha256: str) -> Pt2File:
    """A program of an archive's bytes, in training mode where its plan was made in that.

    Raises:
        BadInput: a damaged archive, one that holds no program or several, operators that are not
            PyTorch's own, weights that are pickled or missing, or a graph that is not sound.
    """
    name = shown_path(path)
    archive = open_archive(data, name)
    programs = [m for m in archive.members if m.startswith("models/") and m.endswith(".json")]
    if len(programs) != 1:
        held = first_of(map(shown, programs)) if programs else "none: is it compiled code?"
        raise BadInput(
            f"{name}: holds {len(programs)} programs ({held}), and memcli reads files of one",
            "torch.export.save writes such a file",
        )
    order = archive.read("byteorder", 64) if "byteorder" in archive else b"little"
    if order.strip() != b"little":
        raise BadInput(f"{name}: its numbers are not stored little end first", "save it again")
    graph = canonical(parse_graph(archive.read(programs[0]), name))
    payloads = _payloads(archive, _stem(programs[0]), graph)
    if not graph.outputs or not any(isinstance(o, Ref) for o in graph.outputs):
        raise BadInput(f"{name}: gives no tensor, so that there is nothing to train")
    file = Pt2File(path, sha256, archive, graph, payloads)
    with contextlib.suppress(BadInput):  # who asks for the plan is told
        plan = file.carried_plan()
        if plan is not None and plan.as_training:
            return file.as_training()[0]
    return file


def strip_pt2(source: ModelSource, out: str) -> Stripped:
    """A program without its plan.

    Raises:
        BadInput: it carries none, or one that cannot be understood.
    """
    file = parse_pt2(source.data, source.path, source.sha256)
    plan = file.carried_plan()
    if plan is None:
        raise BadInput(f"{shown_path(file.path)}: carries no plan", "memcli plan makes one")
    data = file.unplanned_bytes()
    marks = sum(mark != "kept" for mark in plan.marks.values())
    exact = hashlib.sha256(data).hexdigest() == plan.original_sha256
    notes = []
    if plan.as_training:
        notes.append("the program itself is in the mode that it was exported in")
    name = os.path.basename(plan.original_name)
    return Stripped(file.path, "pt2", data, name, exact, marks, 0, notes)


def _stem(member: str) -> str:
    return member.removeprefix("models/").removesuffix(".json")


# -- weights -------------------------------------------------------------------------------------


def _payloads(archive: Archive, model: str, graph: ExportedGraph) -> dict[str, Payload]:
    """Where each tensor that the graph reads is.

    Raises:
        BadInput: a table is damaged, or a tensor is pickled, not there, or of the wrong size.
    """
    tables = [
        _table(archive, _WEIGHTS, f"{model}_weights_config.json"),
        _table(archive, _CONSTANTS, f"{model}_constants_config.json"),
    ]
    found: dict[str, Payload] = {}
    for held in graph.held:
        payload = next((table[held.target] for table in tables if held.target in table), None)
        if payload is None:
            raise BadInput(f"{archive.name}: has no tensor {shown(held.target)}, which it reads")
        if payload.pickled:
            raise BadInput(
                f"{archive.name}: {shown(held.target)} is pickled, and memcli unpickles nothing",
                "make it a plain tensor before the export",
            )
        _check_payload(archive, held, payload)
        found[held.target] = payload
    return found


def _table(archive: Archive, folder: str, member: str) -> dict[str, Payload]:
    path = f"{folder}/{member}"
    if path not in archive:
        return {}
    reader = Reader(f"{archive.name}: {member}")
    rows = reader.table(reader.parsed(archive.read(path)).get("config"), "config")
    return {name: _payload(reader, folder, name, row) for name, row in rows.items()}


def _payload(reader: Reader, folder: str, name: str, raw: Any) -> Payload:
    place = f"the tensor {shown(name)}"
    row = reader.table(raw, place)
    pickled = reader.flag(row.get("use_pickle"), place)
    member = f"{folder}/{reader.name(row.get('path_name'), place)}"
    if pickled:
        return Payload(member, "", (), (), 0, False, True)
    meta = reader.table(row.get("tensor_meta"), place)

    def numbers(key: str) -> tuple[int, ...]:
        items = [reader.table(item, place) for item in reader.rows(meta.get(key), place)]
        return tuple(reader.size(item.get("as_int"), place) for item in items)

    kind = reader.whole(meta.get("dtype"), place)
    if kind not in DTYPES:
        raise BadInput(f"{reader.where}: {place} is of no type that memcli knows")
    sizes, strides = numbers("sizes"), numbers("strides")
    offset = reader.size(reader.table(meta.get("storage_offset"), place).get("as_int"), place)
    if len(sizes) != len(strides):
        raise BadInput(f"{reader.where}: {place} has {len(sizes)} sizes and {len(strides)} strides")
    trained = reader.flag(meta.get("requires_grad"), place)
    return Payload(member, DTYPES[kind], sizes, strides, offset, trained, False)


_BYTES = {"64": 8, "32": 4, "16": 2, "128": 16}


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    digits = "".join(c for c in dtype if c.isdigit())
    return 1 if dtype.startswith("float8") else _BYTES.get(digits, 1)


def _check_payload(archive: Archive, held: Held, payload: Payload) -> None:
    elements, last = 1, payload.offset
    for size, stride in zip(payload.sizes, payload.strides, strict=True):
        elements *= size
        last += (size - 1) * stride
    if elements > LARGEST_TENSOR or last > LARGEST_TENSOR:
        raise BadInput(f"{archive.name}: {shown(held.target)} is larger than any tensor")
    info = archive.members.get(payload.member)
    if info is None:
        raise BadInput(f"{archive.name}: the data of {shown(held.target)} is not in the archive")
    if elements and (last + 1) * itemsize(payload.dtype) > info.file_size:
        raise BadInput(
            f"{archive.name}: {shown(held.target)} needs {(last + 1) * itemsize(payload.dtype)} "
            f"bytes, and the archive has {info.file_size} of it"
        )


# -- what a plan depends on ----------------------------------------------------------------------


def _states(graph: ExportedGraph) -> frozenset[str]:
    buffers = {h.value: h.target for h in graph.held if h.kind == "buffer"}
    found = {target for target, _ in graph.updates}
    alias = dict(buffers)
    for node in graph.nodes:
        if node.operator in ("batch_norm", "instance_norm"):
            found |= _normalization_states(node, buffers)
        first = node.arguments[0].value if node.arguments else None
        source = alias.get(first.name) if isinstance(first, Ref) else None
        if source is not None and writes_in_place(node.target):
            found.add(source)
        if source is not None:
            # a view or the same tensor again: what is written there is written to the buffer
            for name in node.first_outputs:
                if writes_in_place(node.target) or node.operator in _VIEWS:
                    alias[name] = source
    return frozenset(found)


_VIEWS = frozenset(
    {
        "view",
        "slice",
        "select",
        "reshape",
        "unsqueeze",
        "squeeze",
        "t",
        "transpose",
        "permute",
        "detach",
        "alias",
        "narrow",
        "expand",
        "as_strided",
        "diagonal",
    }
)


def writes_in_place(target: str) -> bool:
    """Whether an operator changes its first argument: its name ends in one underscore."""
    name = target.split(".")[3] if target.startswith("torch.ops.") else ""
    return name.endswith("_") and not name.endswith("__")


def _normalization_states(node: ExportedNode, buffers: Mapping[str, str]) -> set[str]:
    named = {a.name: a.value for a in node.arguments}
    trains = named.get("training", named.get("use_input_stats"))
    read = [named.get("running_mean"), named.get("running_var")]
    if not trains:
        return set()
    return {buffers[b.name] for b in read if isinstance(b, Ref) and b.name in buffers}


def _hashed(graph: ExportedGraph, payloads: Mapping[str, Payload]) -> list[Any]:
    types = {target: payload.dtype for target, payload in payloads.items()}
    return [
        ["held", [[h.value, h.target, h.kind, types[h.target]] for h in graph.held]],
        ["inputs", [[name, meta.dtype, len(meta.sizes)] for name, meta in graph.inputs]],
        ["fixed", [[name, str(value)] for name, value in graph.fixed.items()]],
        ["outputs", [references(o) for o in graph.outputs], list(map(list, graph.updates))],
        *(
            [
                node.target,
                [[a.name, _plain(a.value)] for a in node.arguments],
                list(node.outputs),
                node.gradients,
                [[a.device, a.dtype, a.enabled] for a in node.autocast],
            ]
            for node in graph.nodes
        ),
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Special):
        # the device is where it was exported, and may be another one
        return [value.kind, value.name if value.kind != "device" else ""]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (int, str)) else repr(value)


def symbols_in(graph: ExportedGraph) -> set[str]:
    """All symbols of the inputs' dimensions."""
    return {
        symbol
        for _, meta in graph.inputs
        for dim in meta.sizes
        if isinstance(dim, str)
        for symbol in symbols_of(dim)
    }
