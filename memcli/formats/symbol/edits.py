"""How a rewrite is written into a symbol's content, and taken off again.

A rewrite puts in nodes (``INSERTED_KEY``) and changes the inputs of others (``REWIRED_KEY``).
An inserted node counts as a bypass: its input k stands for its output k once it is dropped. What a
node read before travels in an attribute of that node, by names, so that it can be restored on a
file that MXNet saved anew (and numbered anew), as well.

Which inserted nodes are genuine, each rewrite knows of its own
(:mod:`memcli.engines.mxnet.rewrites.base`). The rewrites are built upon this module, so that they
are found by name when a plan is taken off.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memcli.errors import BadInput
from memcli.formats.symbol.check import attribute, attribute_keys

# On a node that memcli put in: it is bypassed and dropped when the plan is taken off.
INSERTED_KEY = "__memcli_inserted__"
# On a node whose inputs memcli changed: JSON {"inputs": [[name, output], ...], "attrs": {...}}.
REWIRED_KEY = "__memcli_original_inputs__"
# The operator of an inserted identity node. It shares its input's memory, and so does its gradient.
IDENTITY = "_copy"

# What tells the user how to mend a file whose rewrites cannot be undone.
MEND = "plan the original again"
# Where the tuple of all rewrites is.
_REWRITES = "memcli.engines.mxnet.rewrites.registry:REWRITES"

Raw = dict[str, Any]


class Recognizer(Protocol):
    """The part of a rewrite that taking a plan off needs."""

    def recognizes(self, nodes: Sequence[Raw], position: int) -> bool:
        """Whether an inserted node is one that this rewrite puts in; identities aside."""


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


class GraphBuilder:
    """The nodes of a file with others inserted between them, in the order of the calls.

    Attributes:
        moved: the new position of each old one that was kept so far.
        turned: what a reader, (old position, slot), is to read instead, as (new position, output).
    """

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._names = {node["name"] for node in raw["nodes"]}
        self._nodes: list[Raw] = []
        self._origin: list[int | None] = []  # old position, None for what is inserted
        self.moved: dict[int, int] = {}
        self.turned: dict[tuple[int, int], tuple[int, int]] = {}

    def keep(self, position: int) -> None:
        """Append the node of the file at ``position``."""
        self.moved[position] = len(self._nodes)
        self._nodes.append(dict(self._raw["nodes"][position]))
        self._origin.append(position)

    def insert(self, op: str, name: str, inputs: list[list[int]], **attrs: str) -> int:
        """Append a new node.

        Args:
            op: the operator.
            name: made unique by underscores.
            inputs: entries at new positions.
            attrs: the operator's parameters.

        Returns:
            The node's position.
        """
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


def insert_identities(raw: Raw, after: Collection[int], suffix: str) -> tuple[Raw, dict[int, int]]:
    """Insert an identity behind each output that is read of some nodes.

    All readers of those outputs read the identities instead; the graph's own outputs stay. Each
    identity stands right behind its node.

    Args:
        raw: the content.
        after: positions of the nodes.
        suffix: an identity is called as its node, and this.

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
    new = GraphBuilder(raw)
    for position, node in enumerate(raw["nodes"]):
        new.keep(position)
        outputs = readers.get(position, {})
        for output in sorted(outputs):
            name = node["name"] + suffix + (str(output) if len(outputs) > 1 else "")
            place = new.insert(IDENTITY, name, [[new.moved[position], output, 0]])
            new.turned.update(dict.fromkeys(outputs[output], (place, 0)))
    return new.finished(), new.moved


def inserted_positions(raw: Mapping[str, Any]) -> list[int]:
    """Positions of the nodes that rewrites put in."""
    nodes = raw["nodes"]
    return [p for p, node in enumerate(nodes) if attribute(node, INSERTED_KEY) is not None]


def own_positions(raw: Mapping[str, Any]) -> list[int]:
    """Positions of the nodes that no rewrite put in: what :func:`undo` leaves, in its order."""
    nodes = raw["nodes"]
    return [p for p, node in enumerate(nodes) if attribute(node, INSERTED_KEY) is None]


def known_rewrites() -> Sequence[Any]:
    """All rewrites, :data:`memcli.engines.mxnet.rewrites.registry.REWRITES`."""
    found: Sequence[Any] = pkgutil.resolve_name(_REWRITES)
    return found


def undo(raw: Raw, where: str, rewrites: Sequence[Recognizer] | None = None) -> Raw:
    """The content as it was before any rewrite.

    Args:
        raw: the content.
        where: begins each message: the file's name.
        rewrites: those that may have put nodes in; by default all that there are.

    Raises:
        BadInput: what a rewrite wrote down does not fit the graph any more.
    """
    nodes: list[Raw] = raw["nodes"]
    inserted = inserted_positions(raw)
    rewired = {p for p, node in enumerate(nodes) if attribute(node, REWIRED_KEY) is not None}
    if not inserted and not rewired:
        return raw
    if inserted and rewrites is None:
        rewrites = known_rewrites()
    for p in inserted:
        is_identity = nodes[p]["op"] == IDENTITY and nodes[p]["inputs"]
        if not is_identity and not any(r.recognizes(nodes, p) for r in rewrites or ()):
            raise BadInput(f"{where}: nodes[{p}]: {INSERTED_KEY} is on no identity", MEND)
    return without_nodes(raw, set(inserted), where, rewired)


def without_nodes(
    raw: Raw, inserted: Collection[int], where: str, rewired: Collection[int] = ()
) -> Raw:
    """The content with nodes bypassed and dropped, and the inputs of others restored.

    Args:
        raw: the content.
        inserted: positions of the nodes to drop.
        where: begins each message.
        rewired: positions of the nodes that get back the inputs that they remember.

    Raises:
        BadInput: the graph was changed since the nodes were inserted.
    """
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
        raise BadInput(f"{where}: nodes[{source[0]}]: identities in a circle", MEND)

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
        raise BadInput(f"{where}: does not fit the graph", MEND) from error
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
            rows[p + 1] - rows[p] if p is not None else int(node["attrs"].get("num_outputs", 1))
            for p, node in zip(origin, nodes, strict=True)
        ]
        total = [0]
        for width in widths:
            total.append(total[-1] + width)
        result["node_row_ptr"] = total
    else:
        result.pop("node_row_ptr", None)
    return result
