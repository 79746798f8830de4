"""The graph of an exported program, read from its JSON (schema 8 of ``torch._export.serde``).

Everything that an engine is to be told of is in :class:`ExportedGraph`, and nothing else is read:
neither the code of guards nor pickles, nor texts that PyTorch's own reader hands to ``eval``
(sizes in symbols). Operators are of PyTorch's own set; see :func:`operator_of`.

Parts that stand within ``torch.no_grad()`` or ``torch.autocast`` are graphs of their own in the
file. Here their nodes stand in the one graph, under the part's name (``submod_1/mul``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from memcli.errors import BadInput
from memcli.formats.pt2.values import Reader
from memcli.quoting import shown

SCHEMA = 8
_MOST_NODES = 1 << 20
_MOST_DEPTH = 8  # of parts within parts
_MODULE = re.compile(r"(?!_empty_nn_module_stack)[\w@]+(\.[\w@]+)*", re.ASCII)
_DIM_PART = re.compile(r"\w+", re.ASCII)

# Numbers of torch's ScalarType as the schema has them.
DTYPES: dict[int, str] = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
_STRIDED = 7
_MEMORY_FORMATS = {
    1: "contiguous_format",
    2: "channels_last",
    3: "channels_last_3d",
    4: "preserve_format",
}

_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
_HIGHER = "torch.ops.higher_order."
_WITHOUT_GRADIENTS = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"
_NUMBERS = re.compile(r"(_operator|math|torch)\.(\w+)", re.ASCII)
# Read or write files, or print: no part of a network.
_NEVER = frozenset({"from_file", "save", "_print", "_save", "load", "_from_file"})
_NAMES = {
    "_operator": {
        *("add", "sub", "mul", "floordiv", "mod", "neg", "pos", "truediv", "pow", "abs"),
        *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "xor", "getitem"),
    },
    "math": {"ceil", "floor", "trunc"},
    "torch": {
        *("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite", "sym_sum"),
        "_sym_sqrt",
    },
}
# Texts that operators take: modes and the like. No operator that is allowed takes the name of a
# file, and none is to get one.
_TEXT = re.compile(r"[A-Za-z_]{0,24}|[A-Za-z.]+(,\s*[A-Za-z.]+)*\s*->\s*[A-Za-z.]*|-?inf")


@dataclass(frozen=True, slots=True)
class Ref:
    """In an argument: what a node or an input of this name gives."""

    name: str


@dataclass(frozen=True, slots=True)
class Special:
    """In an argument: a constant of PyTorch's. ``kind``: dtype, memory_format, layout, device."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Named:
    """An argument by its name in the operator's schema."""

    name: str
    value: Any  # numbers, texts, None, lists, Ref, Special
    positional: bool


@dataclass(frozen=True, slots=True)
class Autocast:
    """``torch.autocast`` of a part of the program."""

    device: str
    dtype: str | None  # None: the device's own
    enabled: bool


@dataclass(frozen=True, slots=True)
class ExportedNode:
    """A call of an operator.

    ``outputs``: names of what it gives, in order; '' for what nothing takes, a list for a list of
    tensors. ``gradients``: whether it runs with them. ``autocast``: under which, beside the
    caller's. ``scopes``: dotted names of the modules that it stands in, outermost first.
    """

    name: str
    target: str
    arguments: tuple[Named, ...]
    outputs: tuple[str | tuple[str, ...], ...]
    gradients: bool = True
    autocast: tuple[Autocast, ...] = ()
    scopes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # of those modules

    @property
    def operator(self) -> str:
        """The operator's name alone: ``conv2d``."""
        parts = self.target.split(".")
        return parts[3] if self.target.startswith("torch.ops.") else parts[-1]

    @property
    def first_outputs(self) -> list[str]:
        """All names, lists taken apart."""
        return [
            name
            for output in self.outputs
            for name in ((output,) if isinstance(output, str) else output)
        ]


@dataclass(frozen=True)
class Held:
    """A parameter, buffer or constant: ``value`` in the graph, ``target`` in the module."""

    value: str
    target: str
    kind: str  # parameter, buffer, constant
    persistent: bool = True


@dataclass(frozen=True)
class Meta:
    """What the file says of a tensor. A dimension in symbols is a text."""

    dtype: str
    sizes: tuple[int | str, ...]
    hints: Mapping[str, int] = field(default_factory=dict)  # sizes of the example, by symbol
    requires_grad: bool = False


@dataclass(frozen=True)
class ExportedGraph:
    """A program. ``inputs``: (name, what it is) of free inputs; fixed ones are in ``fixed``."""

    nodes: tuple[ExportedNode, ...]
    held: tuple[Held, ...]
    inputs: tuple[tuple[str, Meta], ...]
    order: tuple[str, ...]  # of all inputs that the user gives, the fixed ones included
    fixed: Mapping[str, Any]  # None, numbers and texts that the call was exported with
    outputs: tuple[Any, ...]  # Ref, or a number or None
    output_metas: tuple[Meta | None, ...]
    updates: tuple[tuple[str, str], ...]  # (buffer, value that it gets)
    ranges: Mapping[str, tuple[int | None, int | None]]
    torch_version: str
    opsets: Mapping[str, int]
    in_spec: str
    out_spec: str
    argument_names: tuple[str, ...]


def operator_of(target: str) -> tuple[str, str, str] | None:
    """(namespace, name, overload) of one of PyTorch's own operators; None for anything else."""
    found = _OPERATOR.fullmatch(target)
    if found is None or found.group(2) in _NEVER:
        return None
    return found.group(1), found.group(2), found.group(3)


def is_number_function(target: str) -> bool:
    """Whether a target computes a number from numbers: sizes, mostly."""
    found = _NUMBERS.fullmatch(target)
    return found is not None and found.group(2) in _NAMES[found.group(1)]


def parse_graph(data: bytes, name: str) -> ExportedGraph:
    """The program of a member ``models/NAME.json``.

    Raises:
        BadInput: not of this schema, operators or arguments that memcli does not know.
    """
    return _Program(Reader(name), data).whole()


class _Program:
    def __init__(self, reader: Reader, data: bytes) -> None:
        self.reader = reader
        raw = reader.parsed(data)
        version = reader.table(raw.get("schema_version"), "schema_version")
        major = reader.whole(version.get("major"), "schema_version")
        if major != SCHEMA:
            raise BadInput(
                f"{reader.where}: is of schema {major} of torch.export, and memcli reads {SCHEMA}",
                "save it again with PyTorch 2.13: torch.export.save(torch.export.load(old), new)",
            )
        self.raw = raw
        self.module = reader.table(raw.get("graph_module"), "graph_module")
        self.nodes: list[ExportedNode] = []
        self.names: set[str] = set()  # of values
        self.node_names: set[str] = set()
        self.metas: dict[str, Any] = {}

    def whole(self) -> ExportedGraph:
        reader, raw = self.reader, self.raw
        graph = reader.table(self.module.get("graph"), "graph")
        self.metas = reader.table(graph.get("tensor_values"), "tensor_values")
        signature = reader.table(self.module.get("signature"), "signature")
        held, inputs, order, fixed = self._inputs(signature)
        scope = {name: Ref(name) for name in [*(h.value for h in held), *order]}
        scope |= fixed
        self._nodes(graph, scope, "", True, (), 0)
        outputs, updates = self._outputs(signature, scope)
        in_spec, out_spec, arguments = self._call_spec()
        opsets = reader.table(raw.get("opset_version"), "opset_version")
        return ExportedGraph(
            nodes=tuple(self.nodes),
            held=tuple(held),
            inputs=tuple(inputs),
            order=tuple(order),
            fixed=fixed,
            outputs=tuple(outputs),
            output_metas=tuple(
                self._meta(o.name) if isinstance(o, Ref) and o.name in self.metas else None
                for o in outputs
            ),
            updates=tuple(updates),
            ranges=self._ranges(),
            torch_version=reader.text(raw.get("torch_version", ""), "torch_version"),
            opsets={
                reader.name(key, "opset_version"): reader.whole(value, "opset_version")
                for key, value in opsets.items()
            },
            in_spec=in_spec,
            out_spec=out_spec,
            argument_names=arguments,
        )

    # -- signature -----------------------------------------------------------------------------

    def _inputs(
        self, signature: dict[str, Any]
    ) -> tuple[list[Held], list[tuple[str, Meta]], list[str], dict[str, Any]]:
        reader = self.reader
        held: list[Held] = []
        inputs: list[tuple[str, Meta]] = []
        order: list[str] = []
        fixed: dict[str, Any] = {}
        for spec in reader.rows(signature.get("input_specs"), "input_specs"):
            kind, row = reader.union(spec, "an input")
            row = reader.table(row, "an input")
            if kind == "user_input":
                tag, value = reader.union(row.get("arg"), "an input")
                if tag != "as_tensor":
                    raise BadInput(
                        f"{reader.where}: takes an input that is no tensor and may change "
                        f"({shown(tag)})",
                        "export it with that input as a fixed value",
                    )
                name = self._new(reader.table(value, "an input").get("name"), "an input")
                inputs.append((name, self._meta(name)))
                order.append(name)
            elif kind == "constant_input":
                name = self._new(row.get("name"), "an input")
                tag, value = reader.union(row.get("value"), "an input")
                fixed[name] = None if tag == "as_none" else self._constant(tag, value)
                order.append(name)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                word = "constant" if kind == "tensor_constant" else kind
                argument = reader.table(row.get("arg"), "an input")
                name = self._new(argument.get("name"), "an input")
                target = reader.name(row.get(f"{kind}_name"), "a tensor's name")
                if not all(target.split(".")):
                    raise reader.wrong("a tensor's name", "a dotted name", target)
                persistent = kind != "buffer" or reader.flag(row.get("persistent"), "persistent")
                held.append(Held(name, target, word, persistent))
            else:
                raise BadInput(
                    f"{reader.where}: reads a {shown(kind)}, which is no tensor",
                    "memcli plans programs of tensors alone",
                )
        targets = [h.target for h in held]
        if len(set(targets)) != len(targets):
            raise BadInput(f"{reader.where}: reads one tensor of the module under two names")
        return held, inputs, order, fixed

    def _new(self, value: Any, place: str) -> str:
        name = self.reader.name(value, place)
        if name in self.names:
            raise BadInput(f"{self.reader.where}: the name {shown(name)} is there twice")
        self.names.add(name)
        return name

    def _constant(self, tag: str, value: Any) -> Any:
        reader = self.reader
        readers: dict[str, Any] = {
            "as_int": reader.whole,
            "as_float": reader.number,
            "as_bool": reader.flag,
            "as_string": reader.text,
        }
        if tag not in readers:
            raise reader.wrong("a fixed input", "a number or text", tag)
        return readers[tag](value, "a fixed input")

    def _outputs(
        self, signature: dict[str, Any], scope: Mapping[str, Any]
    ) -> tuple[list[Any], list[tuple[str, str]]]:
        reader = self.reader
        outputs: list[Any] = []
        updates: list[tuple[str, str]] = []
        for spec in reader.rows(signature.get("output_specs"), "output_specs"):
            kind, row = reader.union(spec, "an output")
            row = reader.table(row, "an output")
            if kind == "user_output":
                outputs.append(self._argument(row.get("arg"), scope, "an output"))
            elif kind in ("buffer_mutation", "loss_output"):
                argument = reader.table(row.get("arg"), "an output")
                value = self._ref(argument, scope, "an output")
                if kind == "loss_output":
                    outputs.append(value)
                elif isinstance(value, Ref):
                    updates.append((reader.name(row.get("buffer_name"), "a buffer"), value.name))
            else:
                raise BadInput(
                    f"{reader.where}: changes what it is given ({shown(kind)})",
                    "a forward pass that is planned may not change its inputs or parameters",
                )
        return outputs, updates

    def _ranges(self) -> dict[str, tuple[int | None, int | None]]:
        reader = self.reader
        found: dict[str, tuple[int | None, int | None]] = {}
        rows = reader.table(self.raw.get("range_constraints"), "range_constraints")
        for symbol, row in rows.items():
            row = reader.table(row, "range_constraints")
            low, high = (
                None if row.get(key) is None else reader.whole(row[key], "range_constraints")
                for key in ("min_val", "max_val")
            )
            found[reader.name(symbol, "range_constraints")] = (low, high)
        return found

    def _call_spec(self) -> tuple[str, str, tuple[str, ...]]:
        """Texts of how arguments and outputs are nested, and names of forward's parameters."""
        reader = self.reader
        calls = reader.rows(self.module.get("module_call_graph", []), "module_call_graph")
        for call in calls:
            call = reader.table(call, "module_call_graph")
            if call.get("fqn") == "" and call.get("signature") is not None:
                row = reader.table(call["signature"], "module_call_graph")
                names = row.get("forward_arg_names") or []
                return (
                    reader.text(row.get("in_spec", ""), "in_spec"),
                    reader.text(row.get("out_spec", ""), "out_spec"),
                    tuple(reader.name(n, "forward_arg_names") for n in reader.rows(names, "names")),
                )
        return "", "", ()

    # -- nodes ---------------------------------------------------------------------------------

    def _nodes(
        self,
        graph: dict[str, Any],
        scope: dict[str, Any],
        prefix: str,
        gradients: bool,
        autocast: tuple[Autocast, ...],
        depth: int,
    ) -> None:
        reader = self.reader
        if prefix:
            self.metas |= {
                prefix + str(name): meta
                for name, meta in reader.table(graph.get("tensor_values"), "values").items()
            }
        for row in reader.rows(graph.get("nodes"), "nodes"):
            row = reader.table(row, "a node")
            target = reader.name(row.get("target"), "a node's target")
            label = row.get("name") or self._label(row)
            place = f"node {shown(prefix + reader.name(label, 'a node'))}"
            inputs = reader.rows(row.get("inputs"), place)
            if target.startswith(_HIGHER):
                part = target[len(_HIGHER) :]
                self._part(part, row, inputs, scope, prefix + label, gradients, autocast, depth)
                continue
            if operator_of(target) is None and not is_number_function(target):
                raise BadInput(
                    f"{reader.where}: {place} calls {shown(target)}, which is not among PyTorch's "
                    "own operators",
                    "memcli runs operators of aten alone; export the model without it",
                )
            arguments = tuple(self._named(given, scope, place) for given in inputs)
            outputs = self._node_outputs(row, scope, prefix, place)
            scopes, classes = self._scopes(row, place)
            self.nodes.append(
                ExportedNode(
                    self._own_name(prefix + label),
                    target,
                    arguments,
                    outputs,
                    gradients,
                    autocast,
                    scopes,
                    classes,
                )
            )
            if len(self.nodes) > _MOST_NODES:
                raise BadInput(f"{reader.where}: has more than {_MOST_NODES} nodes")

    def _own_name(self, name: str) -> str:
        """A name for a node; as its first output, where it has one, but no other node's."""
        unique, count = name, 1
        while unique in self.node_names:
            unique, count = f"{name}_{count}", count + 1
        self.node_names.add(unique)
        return unique

    def _label(self, row: dict[str, Any]) -> str:
        """What a node without a name (older files) is called."""
        for output in self.reader.rows(row.get("outputs"), "outputs"):
            tag, value = self.reader.union(output, "an output")
            if tag == "as_tensor":
                return str(self.reader.table(value, "an output").get("name"))
            if tag in ("as_sym_int", "as_sym_bool", "as_sym_float"):
                return str(self.reader.table(value, "an output").get("as_name"))
        return str(row.get("target"))

    def _part(
        self,
        kind: str,
        row: dict[str, Any],
        inputs: list[Any],
        scope: dict[str, Any],
        label: str,
        gradients: bool,
        autocast: tuple[Autocast, ...],
        depth: int,
    ) -> None:
        """A part of the graph with a mode of its own, put in its place."""
        reader = self.reader
        place = f"node {shown(label)}"
        if kind not in (_WITHOUT_GRADIENTS, _AUTOCAST) or depth >= _MOST_DEPTH:
            raise BadInput(
                f"{reader.where}: {place} is a {shown(kind)}",
                "plans need graphs without control flow on values",
            )
        raw = [reader.table(given, place).get("arg") for given in inputs]
        tags = [reader.union(argument, place)[0] for argument in raw]
        if "as_graph" not in tags:
            raise reader.wrong(place, "a part of a graph", kind)
        at = tags.index("as_graph")
        settings = [self._argument(argument, scope, place) for argument in raw[:at]]
        given = [self._argument(argument, scope, place) for argument in raw[at + 1 :]]
        body = reader.table(reader.union(raw[at], place)[1], place)
        inner_graph = reader.table(body.get("graph"), place)
        if kind == _WITHOUT_GRADIENTS:
            if settings[:1] == [True] and not gradients:
                raise BadInput(
                    f"{reader.where}: {place} switches gradients on within a part that has none"
                )
            gradients = gradients and settings[:1] != [False]
        else:
            autocast = (*autocast, self._autocast(settings, place))
        inner: dict[str, Any] = {}
        parameters = reader.rows(inner_graph.get("inputs"), place)
        if len(parameters) != len(given):
            raise BadInput(f"{reader.where}: {place} gets {len(given)} of {len(parameters)} inputs")
        for parameter, value in zip(parameters, given, strict=True):
            tag, held = reader.union(parameter, place)
            if tag == "as_tensor":
                inner[reader.name(reader.table(held, place).get("name"), place)] = value
            elif tag == "as_sym_int":
                inner[reader.name(reader.table(held, place).get("as_name"), place)] = value
        prefix = f"{label}/"
        self._nodes(inner_graph, inner, prefix, gradients, autocast, depth + 1)
        found = [
            self._argument(output, inner, place)
            for output in reader.rows(inner_graph.get("outputs"), place)
        ]
        names: list[str] = []
        for output in reader.rows(row.get("outputs"), place):
            tag, value = reader.union(output, place)
            if tag == "as_tensor":
                names.append(reader.name(reader.table(value, place).get("name"), place))
            elif tag == "as_tensors":
                names += [
                    reader.name(reader.table(one, place).get("name"), place)
                    for one in reader.rows(value, place)
                ]
            elif tag == "as_none":
                names.append("")
            else:
                raise reader.wrong(place, "a part that gives tensors", tag)
        for name, value in zip(names, found, strict=False):
            if name:
                scope[name] = value

    def _autocast(self, settings: list[Any], place: str) -> Autocast:
        device, dtype, enabled = (*settings, None, None, None)[:3]
        known = dtype is None or (isinstance(dtype, Special) and dtype.kind == "dtype")
        if device not in ("cpu", "cuda") or not known or not isinstance(enabled, bool):
            raise self.reader.wrong(place, "an autocast of the CPU or a card", device)
        return Autocast(device, None if dtype is None else dtype.name, enabled)

    def _node_outputs(
        self, row: dict[str, Any], scope: dict[str, Any], prefix: str, place: str
    ) -> tuple[str | tuple[str, ...], ...]:
        reader = self.reader

        def own(value: Any) -> str:
            name = reader.name(reader.table(value, place).get("name"), place)
            full = self._new(prefix + name, place)
            scope[name] = Ref(full)
            return full

        found: list[str | tuple[str, ...]] = []
        for output in reader.rows(row.get("outputs"), place):
            tag, value = reader.union(output, place)
            if tag == "as_tensor":
                found.append(own(value))
            elif tag == "as_tensors":
                found.append(tuple(own(one) for one in reader.rows(value, place)))
            elif tag in ("as_sym_int", "as_sym_bool", "as_sym_float"):
                number = reader.table(value, place)
                if "as_name" in number:
                    name = reader.name(number["as_name"], place)
                    full = self._new(prefix + name, place)
                    scope[name] = Ref(full)
                    found.append(full)
                else:
                    found.append("")
            elif tag == "as_none":
                found.append("")
            elif tag == "as_optional_tensor":
                inner, one = reader.union(value, place)
                found.append(own(one) if inner == "as_tensor" else "")
            elif tag == "as_optional_tensors":
                items = [reader.union(one, place) for one in reader.rows(value, place)]
                found.append(tuple(own(one) if k == "as_tensor" else "" for k, one in items))
            else:
                raise reader.wrong(f"an output of {place}", "a tensor or a number", tag)
        return tuple(found)

    def _named(self, given: Any, scope: Mapping[str, Any], place: str) -> Named:
        reader = self.reader
        row = reader.table(given, place)
        name = reader.text(row.get("name", ""), place)
        value = self._argument(row.get("arg"), scope, place)
        return Named(name, value, row.get("kind") != 2)

    # -- arguments -----------------------------------------------------------------------------

    def _argument(self, argument: Any, scope: Mapping[str, Any], place: str) -> Any:
        reader = self.reader
        tag, value = reader.union(argument, f"an argument of {place}")
        if tag == "as_none":
            return None
        if tag == "as_tensor":
            return self._ref(reader.table(value, place), scope, place)
        if tag in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._number(value, scope, place)
        simple = _SIMPLE.get(tag)
        if simple is not None:
            return getattr(reader, simple)(value, place)
        if tag == "as_string":
            return self._mode(value, place)
        if tag == "as_strings":
            return [self._mode(item, place) for item in reader.rows(value, place)]
        if tag in _LISTS:
            items = reader.rows(value, place)
            return [self._argument({_LISTS[tag]: item}, scope, place) for item in items]
        if tag == "as_optional_tensor":
            return self._argument(value, scope, place)
        if tag == "as_optional_tensors":
            return [self._argument(item, scope, place) for item in reader.rows(value, place)]
        if tag == "as_scalar_type":
            return Special("dtype", self._chosen(value, DTYPES, place))
        if tag == "as_memory_format":
            return Special("memory_format", self._chosen(value, _MEMORY_FORMATS, place))
        if tag == "as_layout":
            return Special("layout", self._chosen(value, {_STRIDED: "strided"}, place))
        if tag == "as_device":
            kind = reader.name(reader.table(value, place).get("type"), place)
            return Special("device", kind)
        if tag == "as_complex":
            parts = reader.table(value, place)
            return complex(
                reader.number(parts.get("real"), place), reader.number(parts.get("imag"), place)
            )
        raise BadInput(
            f"{reader.where}: {place} takes a {shown(tag)}, which memcli does not read",
            "memcli plans graphs of tensors and numbers",
        )

    def _chosen(self, value: Any, among: Mapping[int, str], place: str) -> str:
        number = self.reader.whole(value, place)
        if number not in among:
            raise BadInput(f"{self.reader.where}: {place} takes a type or layout of no known kind")
        return among[number]

    def _mode(self, value: Any, place: str) -> str:
        text = self.reader.text(value, place)
        return text if _TEXT.fullmatch(text) else Unread(text)

    def _ref(self, row: dict[str, Any], scope: Mapping[str, Any], place: str) -> Any:
        name = self.reader.name(row.get("name"), place)
        if name not in scope:
            raise BadInput(
                f"{self.reader.where}: {place} reads {shown(name)}, which nothing before it gives"
            )
        return scope[name]

    def _number(self, value: Any, scope: Mapping[str, Any], place: str) -> Any:
        reader = self.reader
        tag, held = reader.union(value, place)
        if tag == "as_name":
            return self._ref({"name": held}, scope, place)
        readers = {"as_int": reader.whole, "as_float": reader.number, "as_bool": reader.flag}
        if tag not in readers:
            raise reader.wrong(place, "a number", tag)
        return readers[tag](held, place)

    # -- what is known of tensors ----------------------------------------------------------------

    def _meta(self, name: str) -> Meta:
        reader = self.reader
        place = f"the tensor {shown(name)}"
        if name not in self.metas:
            raise BadInput(f"{reader.where}: says nothing of {place}")
        row = reader.table(self.metas[name], place)
        sizes: list[int | str] = []
        hints: dict[str, int] = {}
        for size in reader.rows(row.get("sizes"), place):
            tag, value = reader.union(size, place)
            if tag == "as_int":
                sizes.append(reader.size(value, place))
                continue
            expression = reader.table(value, place)
            text = dimension(reader.text(expression.get("expr_str"), place), reader, place)
            hint = expression.get("hint")
            if hint is not None:
                hints[text] = reader.size(reader.table(hint, place).get("as_int"), place)
            sizes.append(text)
        dtype = self._chosen(row.get("dtype"), DTYPES, place)
        return Meta(dtype, tuple(sizes), hints, row.get("requires_grad") is True)

    def _scopes(self, row: dict[str, Any], place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names and classes of the modules that a node stands in, without the outermost."""
        metadata = self.reader.table(row.get("metadata", {}), place)
        stack = metadata.get("nn_module_stack", "")
        if not isinstance(stack, str):
            return (), ()
        parts = [entry.split(",") for entry in stack.split(";") if entry]
        known = [(p[1], p[2]) for p in parts if len(p) == 3 and _MODULE.fullmatch(p[1])]
        return tuple(name for name, _ in known), tuple(kind for _, kind in known)


class Unread(str):
    """A text that no operator may be given, what an assertion says: it might name a file."""

    __slots__ = ()


_SIMPLE = {"as_int": "whole", "as_float": "number", "as_bool": "flag"}
_LISTS = {
    "as_ints": "as_int",
    "as_floats": "as_float",
    "as_bools": "as_bool",
    "as_tensors": "as_tensor",
    "as_sym_ints": "as_sym_int",
    "as_sym_bools": "as_sym_bool",
    "as_sym_floats": "as_sym_float",
    "as_int_lists": "as_ints",
    "as_float_lists": "as_floats",
    "as_nested_tensors": "as_tensors",
}


# -- sizes in symbols ----------------------------------------------------------------------------

_ARITHMETIC = {"Add": " + ", "Mul": "*", "Max": "max", "Min": "min"}
_MOST_EXPRESSION = 2000


def dimension(text: str, reader: Reader, place: str) -> str:
    """A dimension as a short text (``s77``, ``2*s77``) from sympy's ``srepr``; nothing is run.

    Raises:
        BadInput: anything but symbols, whole numbers and their arithmetic.
    """
    try:
        if len(text) > _MOST_EXPRESSION:
            raise ValueError
        return _dimension(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise reader.wrong(f"a size of {place}", "an expression of symbols", text) from None


def _dimension(node: ast.expr) -> str:
    if isinstance(node, ast.Name) and _DIM_PART.fullmatch(node.id):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return str(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "Symbol":
            (name,) = (a.value for a in node.args if isinstance(a, ast.Constant))
            if isinstance(name, str) and _DIM_PART.fullmatch(name):
                return name
        elif node.func.id == "Integer":
            return _dimension(node.args[0])
        elif node.func.id in ("Add", "Mul"):
            parts = [_dimension(argument) for argument in node.args]
            if node.func.id == "Mul":
                parts = [f"({part})" if " + " in part else part for part in parts]
            return _ARITHMETIC[node.func.id].join(parts)
        elif node.func.id in ("FloorDiv", "Mod", "PythonMod", "Max", "Min", "CleanDiv"):
            parts = [_dimension(argument) for argument in node.args]
            return f"{node.func.id}({', '.join(parts)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return f"-{_dimension(node.operand)}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult)):
        sign = {ast.Add: " + ", ast.Sub: " - ", ast.Mult: "*"}[type(node.op)]
        return f"{_dimension(node.left)}{sign}{_dimension(node.right)}"
    raise ValueError


def size_of(text: str, symbols: Mapping[str, int]) -> int | None:
    """What :func:`dimension` wrote, at sizes of its symbols; None where one is not known."""
    try:
        return _size(ast.parse(text, mode="eval").body, symbols)
    except (KeyError, ZeroDivisionError, SyntaxError, RecursionError):
        return None


def symbols_of(text: str) -> Iterator[str]:
    """The symbols of a dimension."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Name) and node.id not in _FUNCTIONS:
            yield node.id


_FUNCTIONS: dict[str, Any] = {
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "Max": max,
    "Min": min,
}


def _size(node: ast.expr, symbols: Mapping[str, int]) -> int:
    if isinstance(node, ast.Name):
        return symbols[node.id]
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp):
        return -_size(node.operand, symbols)
    if isinstance(node, ast.BinOp):
        left, right = _size(node.left, symbols), _size(node.right, symbols)
        if isinstance(node.op, ast.Add):
            return left + right
        return left - right if isinstance(node.op, ast.Sub) else left * right
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return int(_FUNCTIONS[node.func.id](*(_size(a, symbols) for a in node.args)))
