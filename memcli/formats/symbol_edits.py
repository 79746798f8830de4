"""Edits to a symbol's content that can be taken back: inserted identities and rewired inputs.

An inserted node hands each input on unchanged as the output of the same number: ``_copy`` one,
``amp_multicast`` several of one type. Both share their inputs' memory in both directions.
``reshape_like`` hands its first input on, whose shape it keeps; behind its second one are nodes
that nobody else reads (:func:`insert_reservation`). Where a node runs in pieces
(:func:`insert_splits`), it is the first of them, so that its inputs and readers find one another.

What an edit replaced travels in attributes of the nodes that it touched, by node names, so that
it can be undone on a file that MXNet saved anew (and numbered anew), as well.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memcli.errors import BadInput
from memcli.formats.symbol_check import attribute, attribute_keys, attributes
from memcli.formats.wording import shown, whole_number

# On a node that memcli put in: the identity is bypassed and dropped when the plan is taken off.
INSERTED_KEY = "__memcli_inserted__"
# How a save barrier is called: as what it keeps, and this.
BARRIER_SUFFIX = "_kept"
# On a node whose inputs memcli changed: JSON {"inputs": [[name, output], ...], "attrs": {...}}.
REWIRED_KEY = "__memcli_original_inputs__"

_IDENTITY = "_copy"
_JOIN = "amp_multicast"
_PASSES_ON = "reshape_like"
_BLOCK = "_zeros"
_SLICES = ("slice_axis", "slice_like")
_CUT = "SliceChannel"
_GLUE = "Concat"
_PIECES = ("LeakyReLU", "Activation")
_LARGEST_BLOCK = 1 << 40  # elements, that a file may say of one
_LEAST_BLOCK = 1 << 16  # elements, of a block that is scaled down
_MEND = "plan the original again"

Raw = dict[str, Any]


@dataclass(frozen=True)
class Rewiring:
    """New inputs of the node at ``position``: (position, output) pairs, and changed attributes."""

    position: int
    inputs: Sequence[tuple[int, int]]
    attrs: Mapping[str, str] = field(default_factory=dict)


def rewire(raw: Raw, changes: Sequence[Rewiring]) -> Raw:
    """The content with other inputs for some nodes; positions stay as they were.

    The nodes that lose an input must be told apart by name, or the change could not be undone.
    """
    nodes = list(raw["nodes"])
    for change in changes:
        node = dict(nodes[change.position])
        table = next((t for t in attribute_keys(node)), "attrs")
        attributes = dict(node.get(table, {}))
        before = {
            "inputs": [[nodes[i[0]]["name"], i[1] if len(i) > 1 else 0] for i in node["inputs"]],
            "attrs": {key: attributes[key] for key in change.attrs if key in attributes},
        }
        attributes.update(change.attrs)
        attributes.setdefault(REWIRED_KEY, json.dumps(before, separators=(",", ":")))
        node[table] = attributes
        node["inputs"] = [[p, output, 0] for p, output in change.inputs]
        nodes[change.position] = node
    return {**raw, "nodes": nodes}


class _Rebuilt:
    """The nodes of a file with others put between them, in the order of the calls."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._names = {node["name"] for node in raw["nodes"]}
        self._nodes: list[Raw] = []
        self._origin: list[int | None] = []  # old position, None for what is inserted
        self.moved: dict[int, int] = {}
        # (old position of the reader, slot): what it reads instead
        self.turned: dict[tuple[int, int], tuple[int, int]] = {}

    def keep(self, position: int) -> None:
        """The next node of the file."""
        self.moved[position] = len(self._nodes)
        self._nodes.append(dict(self._raw["nodes"][position]))
        self._origin.append(position)

    def insert(self, op: str, name: str, inputs: list[list[int]], **attrs: str) -> int:
        """A node that reads ``inputs``, given at new positions; its own position."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        attributes = {INSERTED_KEY: "1", **attrs}
        self._nodes.append({"op": op, "name": name, "attrs": attributes, "inputs": inputs})
        self._origin.append(None)
        return len(self._nodes) - 1

    def finished(self) -> Raw:
        """The new content, once all nodes of the file are kept."""
        for position, node in zip(self._origin, self._nodes, strict=True):
            if position is None:
                continue
            node["inputs"] = [
                [*self.turned[position, slot], *source[2:]]
                if (position, slot) in self.turned
                else [self.moved[source[0]], *source[1:]]
                for slot, source in enumerate(node["inputs"])
            ]
            if "control_deps" in node:
                node["control_deps"] = [self.moved[p] for p in node["control_deps"]]
        return _renumbered(self._raw, self._nodes, self.moved, self._origin)


def insert_identities(
    raw: Raw, after: Collection[int], suffix: str = BARRIER_SUFFIX
) -> tuple[Raw, dict[int, int]]:
    """An identity behind each output that is read of the nodes at positions ``after``.

    All readers of those outputs read the identities instead; the graph's own outputs stay. Each
    identity stands right behind its node.

    Returns:
        The new content, and the new position of each old one.
    """
    chosen = set(after)
    readers: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for reader, node in enumerate(raw["nodes"]):
        for slot, source in enumerate(node["inputs"]):
            if source[0] in chosen:
                output = source[1] if len(source) > 1 else 0
                readers.setdefault(source[0], {}).setdefault(output, []).append((reader, slot))
    new = _Rebuilt(raw)
    for position, node in enumerate(raw["nodes"]):
        new.keep(position)
        outputs = readers.get(position, {})
        for output in sorted(outputs):
            name = node["name"] + suffix + (str(output) if len(outputs) > 1 else "")
            place = new.insert(_IDENTITY, name, [[new.moved[position], output, 0]])
            new.turned.update(dict.fromkeys(outputs[output], (place, 0)))
    return new.finished(), new.moved


@dataclass(frozen=True)
class Chain:
    """Readers (position, slot) of output ``output`` of ``position``, in the order of the file.

    ``together``: all of them read one identity, rather than one behind the other.
    """

    position: int
    output: int
    readers: Sequence[tuple[int, int]]
    together: bool = False


def insert_chains(raw: Raw, chains: Sequence[Chain], suffix: str = "_shared") -> Raw:
    """Identities between a tensor and its readers, so that gradients are added two by two.

    The first reader reads the tensor, the second an identity of it, the third an identity of that
    and so on; the last two read the same one. The gradient of the last reader is then added to
    that of the one before, the sum to that of the one before that: a chain of sums of two.
    """
    behind: dict[int, list[Chain]] = {}
    for chain in chains:
        behind.setdefault(chain.position, []).append(chain)
    new = _Rebuilt(raw)
    for position, node in enumerate(raw["nodes"]):
        new.keep(position)
        for chain in behind.get(position, ()):
            source = (new.moved[position], chain.output)
            if chain.together:
                at = new.insert(_IDENTITY, f"{node['name']}{suffix}", [[*source, 0]])
                new.turned.update(dict.fromkeys(chain.readers, (at, 0)))
                continue
            for number, reader in enumerate(chain.readers[1:], start=1):
                if number < len(chain.readers) - 1:
                    name = f"{node['name']}{suffix}{number}"
                    source = (new.insert(_IDENTITY, name, [[*source, 0]]), 0)
                new.turned[reader] = source
    return new.finished()


@dataclass(frozen=True)
class Join:
    """Inputs ``slot`` of the nodes at ``readers``, each given as (position, slot), as one node."""

    readers: Sequence[tuple[int, int]]
    name: str


def insert_joins(raw: Raw, joins: Sequence[Join]) -> tuple[Raw, dict[int, int]]:
    """A node in front of each join's readers that hands all their inputs on together.

    It stands right before the first of the readers; what they read must come before that, and no
    reader may be in two joins at the same slot.

    Returns:
        The new content, and the new position of each old one.
    """
    at: dict[int, list[Join]] = {}
    for join in joins:
        at.setdefault(min(position for position, _ in join.readers), []).append(join)
    new = _Rebuilt(raw)
    for position in range(len(raw["nodes"])):
        for join in at.get(position, ()):
            sources = [raw["nodes"][reader]["inputs"][slot] for reader, slot in join.readers]
            inputs = [[new.moved[source[0]], *source[1:]] for source in sources]
            place = new.insert(_JOIN, join.name, inputs, num_outputs=str(len(inputs)))
            for output, reader in enumerate(join.readers):
                new.turned[reader] = (place, output)
        new.keep(position)
    return new.finished(), new.moved


@dataclass(frozen=True)
class Reservation:
    """Blocks of memory that are there, and free, before a node of the file runs.

    ``blocks``: elements of each, no less than ``width``, which is the argument's size along
    ``axis``. The argument is the node's input ``slot``.
    """

    reader: int
    slot: int
    axis: int
    width: int
    blocks: Sequence[int]
    dtype: str


def insert_reservation(raw: Raw, wanted: Reservation) -> tuple[Raw, dict[int, int]]:
    """Nodes that make the blocks, and an identity behind the argument that waits for all of them.

    Returns:
        The new content, and the new position of each old one.
    """
    new = _Rebuilt(raw)
    for position, node in enumerate(raw["nodes"]):
        if position == wanted.reader:
            source = node["inputs"][wanted.slot]
            argument = raw["nodes"][source[0]]["name"]
            read: list[list[int]] = []
            for number, elements in enumerate(wanted.blocks):
                name = f"{argument}_reserved{number}"
                shape = f"({elements},)"
                block = new.insert(_BLOCK, name, [], shape=shape, dtype=wanted.dtype)
                first = {} if read else {"axis": "0", "begin": "0", "end": str(wanted.width)}
                op = _SLICES[len(read)]
                part = new.insert(op, f"{name}_read", [[block, 0, 0], *read], **first)
                read = [[part, 0, 0]]
            place = new.insert(
                _PASSES_ON, f"{argument}_behind", [[new.moved[source[0]], *source[1:]], *read],
                lhs_begin=str(wanted.axis), lhs_end=str(wanted.axis + 1),
                rhs_begin="0", rhs_end="1",
            )  # fmt: skip
            new.turned[position, wanted.slot] = (place, 0)
        new.keep(position)
    return new.finished(), new.moved


@dataclass(frozen=True)
class Split:
    """The node at ``position``, of one input and one output, in ``parts`` pieces along axis 1."""

    position: int
    parts: int


def insert_splits(raw: Raw, splits: Sequence[Split]) -> tuple[Raw, dict[int, int]]:
    """Each split's node on the first piece of what it reads, nodes like it on the others.

    All that read the node read the pieces put together instead. What it reads must come before it
    in the file, and it must be no output of the graph.

    Returns:
        The new content, and the new position of each old one.
    """
    parts = {split.position: split.parts for split in splits}
    readers: dict[int, list[tuple[int, int]]] = {p: [] for p in parts}
    for reader, node in enumerate(raw["nodes"]):
        for slot, source in enumerate(node["inputs"]):
            if source[0] in readers:
                readers[source[0]].append((reader, slot))
    new = _Rebuilt(raw)
    for position, node in enumerate(raw["nodes"]):
        if position not in parts:
            new.keep(position)
            continue
        count, name = str(parts[position]), node["name"]
        source = node["inputs"][0]
        read = [new.moved[source[0]], *source[1:]]
        if (position, 0) in new.turned:  # the whole of what is in pieces, too
            read = [*new.turned[position, 0], *source[2:]]
        cut = new.insert(_CUT, f"{name}_pieces", [read], num_outputs=count, axis="1")
        new.turned[position, 0] = (cut, 0)
        new.keep(position)
        own = {k: v for k, v in attributes(node).items() if not k.startswith("__")}
        pieces = [new.moved[position]]
        for k in range(1, parts[position]):
            pieces.append(new.insert(node["op"], f"{name}_piece{k}", [[cut, k, 0]], **own))
        whole = new.insert(
            _GLUE, f"{name}_whole", [[p, 0, 0] for p in pieces], num_args=count, dim="1"
        )
        new.turned.update(dict.fromkeys(readers[position], (whole, 0)))
    return new.finished(), new.moved


def waiting_arguments(raw: Raw) -> list[int]:
    """Positions of the arguments that an identity of :func:`insert_reservation` is behind."""
    nodes = raw["nodes"]
    return [nodes[p]["inputs"][0][0] for p in reservation(raw) if nodes[p]["op"] == _PASSES_ON]


def reservation(raw: Mapping[str, Any]) -> list[int]:
    """Positions of all that :func:`insert_reservation` put into the content."""
    return [
        position
        for position, node in enumerate(raw["nodes"])
        if node["op"] in (_BLOCK, *_SLICES, _PASSES_ON)
        and attribute(node, INSERTED_KEY) is not None
    ]


def own_positions(raw: Mapping[str, Any]) -> list[int]:
    """Positions of the nodes that no edit put in: what :func:`undo` leaves, in its order."""
    nodes = raw["nodes"]
    return [p for p, node in enumerate(nodes) if attribute(node, INSERTED_KEY) is None]


def changes_tensors(raw: Mapping[str, Any]) -> bool:
    """Whether an edit makes other tensors, or in another order, than the graph without it does.

    Identities share what they read, and what :func:`insert_reservation` put in is no tensor of the
    network.
    """
    reserving = set(reservation(raw))
    return any(
        attribute(node, REWIRED_KEY) is not None
        or (
            attribute(node, INSERTED_KEY) is not None
            and node["op"] != _IDENTITY
            and position not in reserving
        )
        for position, node in enumerate(raw["nodes"])
    )


def scaled_reservation(raw: Raw, new: int, old: int) -> Raw:
    """The content with blocks for a batch of ``new`` that were reserved for one of ``old``.

    Raises:
        BadInput: a block whose size cannot be read.
    """
    nodes = list(raw["nodes"])
    for position in reservation(raw):
        node = nodes[position]
        if node["op"] != _BLOCK:
            continue
        table = next((t for t in attribute_keys(node) if "shape" in node[t]), "")
        shape = node[table]["shape"] if table else None
        size = None if shape is None else whole_number(shape.strip("()[], "), _LARGEST_BLOCK)
        if size is None:
            raise BadInput(f"nodes[{position}]: a reserved block of shape {shown(shape)}", _MEND)
        # a slice of each is read, as long as some dimension of an argument
        elements = max(size * new // old, min(size, _LEAST_BLOCK))
        nodes[position] = {**node, table: {**node[table], "shape": f"({elements},)"}}
    return {**raw, "nodes": nodes}


def undo(raw: Raw, where: str) -> Raw:
    """The content as it was before :func:`rewire` and :func:`insert_identities`.

    Raises:
        BadInput: what an edit wrote down does not fit the graph any more; begins with ``where``.
    """
    old: list[Raw] = raw["nodes"]
    inserted = {p for p, node in enumerate(old) if attribute(node, INSERTED_KEY) is not None}
    rewired = {p for p, node in enumerate(old) if attribute(node, REWIRED_KEY) is not None}
    if not inserted and not rewired:
        return raw
    for p in inserted:
        known = (_IDENTITY, _JOIN, _PASSES_ON, *_SLICES, _CUT) if old[p]["inputs"] else (_BLOCK,)
        if old[p]["op"] not in known and not _is_of_split(old, p, inserted):
            raise BadInput(f"{where}: nodes[{p}]: {INSERTED_KEY} is on no identity", _MEND)
    return _without(raw, inserted, rewired, where)


def _is_of_split(nodes: Sequence[Raw], position: int, inserted: Collection[int]) -> bool:
    """Whether a node is one of the pieces of :func:`insert_splits`, or puts them together."""

    def maker(source: Sequence[int]) -> int:
        """What made a tensor, save barriers aside."""
        p = source[0]
        for _ in range(len(nodes)):  # a damaged file may have them in a circle
            if p not in inserted or nodes[p]["op"] != _IDENTITY or not nodes[p]["inputs"]:
                break
            p = nodes[p]["inputs"][0][0]
        return p

    def is_piece(p: int) -> bool:
        read = [maker(source) for source in nodes[p]["inputs"]]
        cut = len(read) == 1 and read[0] in inserted and nodes[read[0]]["op"] == _CUT
        return cut and nodes[p]["op"] in _PIECES

    if nodes[position]["op"] != _GLUE:
        return is_piece(position)
    pieces = [maker(source) for source in nodes[position]["inputs"]]
    return bool(pieces) and all(map(is_piece, pieces))


def without_reservation(raw: Raw, where: str) -> Raw:
    """The content without what :func:`insert_reservation` put into it; all else stays.

    Raises:
        BadInput: the graph was changed since; begins with ``where``.
    """
    inserted = set(reservation(raw))
    return _without(raw, inserted, (), where) if inserted else raw


def _without(raw: Raw, inserted: Collection[int], rewired: Collection[int], where: str) -> Raw:
    """The content with nodes bypassed and dropped, and the inputs of others as they were."""
    old: list[Raw] = raw["nodes"]

    def root(source: Sequence[int]) -> list[int]:
        entry = list(source)
        for _ in range(len(old)):
            if entry[0] not in inserted:
                return entry
            inputs = old[entry[0]]["inputs"]
            output = entry[1] if len(entry) > 1 else 0
            if output >= len(inputs):
                break
            entry = list(inputs[output])
        raise BadInput(f"{where}: nodes[{source[0]}]: identities in a circle", _MEND)

    moved: dict[int, int] = {}
    for p in range(len(old)):
        if p not in inserted:
            moved[p] = len(moved)
    by_name: dict[str, int] = {}
    if rewired:
        by_name = {node["name"]: moved[p] for p, node in enumerate(old) if p not in inserted}
    nodes = []
    for p, node in enumerate(old):
        if p in inserted:
            continue
        node = dict(node)
        node["inputs"] = [[moved[s[0]], *s[1:]] for s in map(root, node["inputs"])]
        if "control_deps" in node:
            node["control_deps"] = [moved[root([c])[0]] for c in node["control_deps"]]
        text = attribute(node, REWIRED_KEY)
        if text is not None and p in rewired:
            _restore(node, text, by_name, f"{where}: nodes[{p}]: {REWIRED_KEY}")
        nodes.append(node)
    heads = [root(head) for head in raw["heads"]]
    return _renumbered({**raw, "heads": heads}, nodes, moved, list(moved))


def _restore(node: Raw, text: str, by_name: Mapping[str, int], where: str) -> None:
    """Give ``node`` back the inputs and attributes that ``text`` holds."""
    try:
        before = json.loads(text)
        inputs = [[by_name[name], _output(output), 0] for name, output in before["inputs"]]
        attrs = {str(key): str(value) for key, value in before["attrs"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{where}: does not fit the graph", _MEND) from error
    node["inputs"] = inputs
    for table in attribute_keys(node):
        if REWIRED_KEY in node[table]:
            node[table] = {k: v for k, v in node[table].items() if k != REWIRED_KEY}
        for key, value in attrs.items():
            if key in node[table]:
                node[table] = {**node[table], key: value}


def _output(value: object) -> int:
    """The number of an output; ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError
    return value


def _renumbered(
    raw: Raw, nodes: list[Raw], moved: Mapping[int, int], origin: Sequence[int | None]
) -> Raw:
    """The content around new ``nodes``: heads, the list of variables and the row index."""
    result = {**raw, "nodes": nodes}
    result["heads"] = [[moved[h[0]], *h[1:]] for h in raw["heads"]]
    if isinstance(raw.get("arg_nodes"), list):
        result["arg_nodes"] = [moved[p] for p in raw["arg_nodes"] if p in moved]
    rows = raw.get("node_row_ptr")
    if isinstance(rows, list) and len(rows) == len(raw["nodes"]) + 1:
        # an inserted node has one output but where it says how many
        widths = [
            rows[p + 1] - rows[p]
            if p is not None
            else int(node["attrs"].get("num_outputs", 1))
            for p, node in zip(origin, nodes, strict=True)
        ]
        total = [0]
        for width in widths:
            total.append(total[-1] + width)
        result["node_row_ptr"] = total
    else:
        result.pop("node_row_ptr", None)
    return result
