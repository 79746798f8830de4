"""ONNX files: read, checked, and with a name for every node."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from memcli.errors import BadInput
from memcli.formats.detect import Model, ModelSource, read_source
from memcli.formats.node_plan import NodePlan
from memcli.formats.onnx.check import check_graph, check_texts, domain_of, impossible, subgraphs
from memcli.formats.onnx.external import check_locations, external_tensors
from memcli.formats.onnx.functions import with_functions_inlined
from memcli.formats.onnx.hash import graph_sha256
from memcli.formats.onnx.record import PLAN_KEY
from memcli.formats.onnx.types import element_types
from memcli.formats.onnx.value_inputs import with_values
from memcli.formats.scopes import Scopes
from memcli.formats.trained_file import Leaf, Loss, TensorValue, fitting_plan
from memcli.quoting import shown, shown_path

OLDEST_OPSET = 9
_LARGEST_DIMENSION = 1 << 31
_LARGEST_OPSET = (1 << 31) - 1  # that onnx's own library takes


@dataclass
class OnnxFile:
    """An ONNX file whose graph is sound (that its operators are known apart)."""

    path: str
    sha256: str  # of the file as stored
    data: bytes = field(repr=False)  # gzip taken off
    model: ModelProto = field(repr=False)  # as in the file; never changed
    # What is planned and run: the file's graph, with its functions put in place and small tensors
    # that shapes depend on loaded. The same object as ``model`` where there are none of either.
    working: ModelProto = field(repr=False)
    node_names: list[str] = field(repr=False)  # of working.graph.node, unique
    # The batch that it is for where its inputs leave it open, and inputs whose other dimensions
    # were guessed: what a graph made from another format knows.
    batch: int | None = None
    assumed: tuple[str, ...] = ()

    format = "onnx"
    # Told to the user where the model is read.
    notes: ClassVar[Sequence[str]] = ()
    # Why it cannot be put into training mode; '' where it can.
    fixed_mode: ClassVar[str] = ""
    # A size in the file may be the exporter's example.
    fixed_sizes: ClassVar[bool] = False

    def unplanned(self) -> OnnxFile:
        """The same without the plan that it carries.

        Raises:
            BadInput: it carries none, or one that cannot be understood.
        """
        from memcli.formats.onnx.plan import strip_plan

        return parse_onnx(strip_plan(self).data, self.path)

    def written_as(self, out: str) -> OnnxFile:
        """In the format that the name of the output asks for."""
        return self

    def write_planned(self, plan: NodePlan, out: str, *, overwrite: bool) -> list[str]:
        """Writes the file with its plan, whole or not at all; what the user should know.

        Raises:
            BadInput: ``out`` cannot be written, or exists and ``overwrite`` is false.
        """
        from memcli.formats.onnx.plan import write_plan

        return write_plan(self, plan, out, overwrite=overwrite)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return os.path.basename(self.path)

    @property
    def graph(self) -> GraphProto:
        """The graph that is planned and run."""
        return self.working.graph

    @property
    def opsets(self) -> dict[str, int]:
        """{domain: version}, ``""`` for ONNX's own operators."""
        return opset_versions(self.working)

    @property
    def producer(self) -> str:
        """What wrote the file, with its version; '' where it does not say."""
        return f"{self.model.producer_name} {self.model.producer_version}".strip()

    @property
    def described(self) -> str:
        """What it is and holds, in words."""
        sets = [f"{domain} {version}" for domain, version in self.opsets.items() if domain]
        more = f" (and {', '.join(sets)})" if sets else ""
        source = f", by {self.producer}" if self.producer else ""
        return f"ONNX, operator set {self.opset}{more}{source}, {self.node_count} nodes"

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return self.opsets[""]

    @property
    def node_count(self) -> int:
        """Nodes of the graph, those within subgraphs not counted."""
        return len(self.graph.node)

    @property
    def inputs(self) -> list[TensorValue]:
        """The free inputs, in the file's order: those that are not initializers as well."""
        held = {tensor.name for tensor in self.graph.initializer}
        return [_value(v) for v in self.graph.input if v.name not in held]

    @property
    def outputs(self) -> list[TensorValue]:
        """The graph's outputs, in the file's order."""
        return [_value(value) for value in self.graph.output]

    def operators(self) -> list[str]:
        """The operator of each node; with its domain where that is not ONNX's own."""
        return [
            node.op_type if not domain_of(node) else f"{node.domain}.{node.op_type}"
            for node in self.graph.node
        ]

    def node_outputs(self) -> list[list[str]]:
        """Names of what each node gives."""
        return [[name for name in node.output if name] for node in self.graph.node]

    def leaves(self) -> dict[str, Leaf]:
        """Every tensor that the file gives, by name, and what it is."""
        from memcli.formats.onnx.roles import tensor_roles

        return tensor_roles(self)

    def losses(self) -> list[Loss]:
        """What the file has lost of the network that it was exported from."""
        from memcli.formats.onnx.export_defects import losses

        return losses(self)

    def scopes(self) -> Scopes:
        """Where in the model that it was exported from each node stands."""
        from memcli.formats.onnx.scopes import scopes_of

        return scopes_of(self)

    def as_training(self) -> tuple[OnnxFile, list[str]]:
        """See :func:`memcli.formats.onnx.training.as_training`."""
        from memcli.formats.onnx.training import as_training

        return as_training(self)

    def check_trainable(self, training: bool) -> None:
        """Refuses random numbers drawn by what ONNX does not define.

        Raises:
            BadInput: which, and what puts Dropout in its place.
        """
        from memcli.formats.onnx.tf_layers import draws_undefined

        undefined = draws_undefined(self.working)
        if undefined:
            raise BadInput(
                f"{shown_path(self.path)}: draws random numbers with an operator of TensorFlow's, "
                f"which ONNX does not define ({len(undefined)} nodes: {shown(undefined[0])}, ...)",
                "--as-training puts Dropout in its place"
                if not training
                else "export the model with training=False, and plan it with --as-training",
            )

    def likely_size(self, dim: str, symbols: Mapping[str, int]) -> int | None:
        """Nothing: a symbolic dimension of ONNX has a name alone."""
        return None

    def check_sizes(self, symbols: Mapping[str, int]) -> None:
        """Nothing: any size may be."""

    def base_sha256(self) -> str:
        """Hash of the file's bytes without a plan."""
        from memcli.formats.onnx.plan import unplanned_bytes

        return hashlib.sha256(unplanned_bytes(self)).hexdigest()

    def job(self, path: Path, *, values: bool) -> dict[str, Any]:
        """Leaves the graph for an engine's process at ``path``; what it is to be told."""
        path.write_bytes(self.working.SerializeToString())
        return {"model": str(path)}

    @property
    def has_functions(self) -> bool:
        """Whether the graph's nodes are other ones than the file's: functions put in place."""
        return bool(self.model.functions)

    def element_types(self) -> dict[str, int]:
        """{tensor: TensorProto.DataType}, as far as it can be told."""
        return element_types(self.graph, self.opsets)

    def foreign_operators(self) -> dict[str, list[str]]:
        """{domain.operator: names of its nodes} for all that are not ONNX's own operators."""
        found: dict[str, list[str]] = {}
        for node, name in zip(self.graph.node, self.node_names, strict=True):
            if domain_of(node):
                found.setdefault(f"{node.domain}.{node.op_type}", []).append(name)
            for subgraph in subgraphs(node):
                for inner in _foreign_within(subgraph):
                    found.setdefault(inner, []).append(name)
        return found

    def check_operators(self) -> None:
        """Refuses a graph with operators of domains other than ONNX's own.

        Raises:
            BadInput: names every such operator, how often it is there, and the first of its nodes.
        """
        foreign = self.foreign_operators()
        if foreign:
            listed = ", ".join(
                f"{operator} ({len(names)}: {', '.join(map(shown, names[:3]))}"
                f"{', ...' if len(names) > 3 else ''})"
                for operator, names in sorted(foreign.items())
            )
            raise BadInput(
                f"{shown_path(self.path)}: has operators that ONNX does not define: {listed}",
                "export the model before it is quantized or optimized for one runtime",
            )

    def graph_sha256(self) -> str:
        """Hash of the graph's structure, which metadata, names of nodes and weights leave alone."""
        return graph_sha256(self.graph, self.opsets)

    def carried_plan(self) -> NodePlan | None:
        """The plan that the file carries, fitting or not; marks by the names it was made with.

        Raises:
            BadInput: it carries one that cannot be understood.
        """
        texts = [entry.value for entry in self.model.metadata_props if entry.key == PLAN_KEY]
        where = f"{shown_path(self.path)}: {PLAN_KEY}"
        if len(texts) > 1:
            raise BadInput(f"{where}: is there {len(texts)} times", "plan the original again")
        return NodePlan.from_text(texts[0], where) if texts else None

    def plan(self) -> NodePlan | None:
        """The plan that the file carries, with marks by this file's node names; None without one.

        A tool that renamed nodes does no harm: they are found by their first outputs.

        Raises:
            BadInput: it carries one that cannot be understood, or that was made for another graph.
        """
        return fitting_plan(self)

    def first_outputs(self) -> list[str]:
        """The name of each node's first output; with the name of the node where it has none."""
        return [
            next((o for o in node.output if o), name)
            for node, name in zip(self.graph.node, self.node_names, strict=True)
        ]


def read_onnx(model: Model) -> OnnxFile:
    """Reads an ONNX file, gzipped or not. External data may be missing.

    Raises:
        BadInput: it cannot be read, is no ONNX, of an operator set before 9 or after what the
            installed ``onnx`` knows, its graph is unsound, external data is outside of the model's
            folder, or tensors that shapes depend on are in a file that is not there.
    """
    source = read_source(model)
    if source.format != "onnx":
        raise BadInput(f"{shown_path(source.path)}: is {source.format}, not ONNX")
    return parse_onnx(source.data, source.path, source.sha256)


def read_planned_onnx(source: ModelSource, asked: object, as_planned: bool) -> OnnxFile:
    """:func:`read_onnx`: the graph depends on no shapes that are asked for."""
    return read_onnx(source)


def parse_onnx(data: bytes, path: str | os.PathLike[str], sha256: str | None = None) -> OnnxFile:
    """As :func:`read_onnx` on bytes at hand; external data is looked for beside ``path``.

    ``sha256`` where ``data`` is not what is stored on the disk (gzip taken off).
    """
    name = shown_path(os.fspath(path))
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise BadInput(
            f"{name}: is damaged or cut short: not a whole ONNX model",
            "copy or download it again",
        ) from error
    check_texts(model, name)
    digest = sha256 or hashlib.sha256(data).hexdigest()
    return _checked(model, data, os.fspath(path), digest)


def from_model(model: ModelProto, path: str, sha256: str) -> OnnxFile:
    """A file of a model that memcli changed; ``sha256`` of the file that it came from.

    Raises:
        BadInput: as :func:`read_onnx`; the model takes more than 2 GiB.
    """
    try:
        data = model.SerializeToString()
    except (ValueError, MemoryError) as error:  # protobuf's own limit
        raise BadInput(
            f"{shown_path(path)}: takes more than the 2 GiB that one ONNX file can hold",
            "keep its weights in a file of their own (onnx.save, save_as_external_data=True)",
        ) from error
    return _checked(model, data, path, sha256)


def opset_versions(model: ModelProto) -> dict[str, int]:
    """{domain: version} of a model, ``""`` for ONNX's own operators."""
    return {
        "" if opset.domain == "ai.onnx" else opset.domain: opset.version
        for opset in model.opset_import
    }


def _checked(model: ModelProto, data: bytes, path: str, sha256: str) -> OnnxFile:
    name = shown_path(path)
    if not model.HasField("graph"):
        raise BadInput(f"{name}: has no graph", "is it a whole ONNX model?")
    _check_opsets(model, name)
    working = with_functions_inlined(model, name)
    opsets = opset_versions(working)
    check_graph(working.graph, opsets, name)
    external = external_tensors(model)
    if external:
        check_locations(external, path)
        types = element_types(working.graph, opsets)
        working = with_values(working, types, path, copy=working is model)
    file = OnnxFile(path, sha256, data, model, working, _unique_names(working.graph))
    for value in file.inputs + file.outputs:
        known = [d for d in value.dims or () if isinstance(d, int)]
        if impossible(known) or any(d >= _LARGEST_DIMENSION for d in known):
            raise BadInput(
                f"{name}: {shown(value.name)} has the impossible shape "
                f"({', '.join(map(shown, value.dims or ()))})"
            )
    return file


def _check_opsets(model: ModelProto, name: str) -> None:
    of_functions = (opset for function in model.functions for opset in function.opset_import)
    for opset in (*model.opset_import, *of_functions):
        if not 0 <= opset.version <= _LARGEST_OPSET:
            raise BadInput(
                f"{name}: uses version {shown(opset.version)} of the operators of domain "
                f"{shown(opset.domain)}, which no version is"
            )
    version = opset_versions(model).get("")
    if version is None:
        raise BadInput(f"{name}: does not say which version of ONNX's operators it uses")
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise BadInput(
            f"{name}: is of operator set {version}, and onnx {onnx.__version__} knows up to "
            f"{newest}",
            "pip install --upgrade onnx",
        )
    if version < OLDEST_OPSET:
        raise BadInput(
            f"{name}: is of operator set {version}; memcli reads {OLDEST_OPSET} and later",
            "convert it: onnx.version_converter.convert_version(model, 13)",
        )


def _unique_names(graph: GraphProto) -> list[str]:
    """A name for each node: its own, else its first output's; repeated ones get a number.

    The first node of a name keeps it; a number never makes a name that the file has already.
    """
    wanted = [
        node.name or next((output for output in node.output if output), node.op_type)
        for node in graph.node
    ]
    # Names that the file gives go before those taken from outputs.
    taken = {node.name for node in graph.node if node.name}
    used: set[str] = set()
    counts: dict[str, int] = {}
    names = []
    for node, name in zip(graph.node, wanted, strict=True):
        own = bool(node.name)
        unique = name
        while unique in used or (unique in taken and not (own and unique == name)):
            counts[name] = counts.get(name, 0) + 1
            unique = f"{name}_{counts[name]}"
        used.add(unique)
        names.append(unique)
    return names


def _foreign_within(graph: GraphProto) -> list[str]:
    found = [f"{node.domain}.{node.op_type}" for node in graph.node if domain_of(node)]
    for node in graph.node:
        for subgraph in subgraphs(node):
            found += _foreign_within(subgraph)
    return found


def _value(value: ValueInfoProto) -> TensorValue:
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise BadInput(f"{shown(value.name)}: is a {kind.removesuffix('_type')}, not a tensor")
    tensor = value.type.tensor_type
    dims: tuple[int | str | None, ...] | None = None
    if tensor.HasField("shape"):
        dims = tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None)
            for d in tensor.shape.dim
        )
    return TensorValue(value.name, dtype_name(tensor.elem_type), dims)


def dtype_name(kind: int) -> str:
    """``float32`` for TensorProto.FLOAT and so on; ``unknown`` for 0 and what ONNX lacks."""
    if kind == TensorProto.UNDEFINED or kind not in TensorProto.DataType.values():
        return "unknown"
    name = TensorProto.DataType.Name(kind).lower()  # type: ignore[arg-type]
    return {"float": "float32", "double": "float64"}.get(name, name)
