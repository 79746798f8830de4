"""MXNet symbol files: read, marked for recomputation, and unmarked again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from memcli.errors import BadInput
from memcli.formats.detect import read_model_bytes, unpacked
from memcli.formats.symbol.check import (
    Entry,
    SymbolNode,
    attribute_keys,
    checked_graph,
    control_dependencies,
    depth_first_order,
)
from memcli.formats.symbol.edits import undo
from memcli.formats.symbol.record import PLAN_KEY, PlanRecord
from memcli.formats.symbol.text import parse_symbol_text, symbol_text
from memcli.quoting import shown_path

__all__ = ["LEGACY_MARK_KEY", "MARK_KEY", "SymbolFile", "SymbolNode"]

MARK_KEY = "__force_mirroring__"
# How files of MXNet before 1.9.1 may spell it; the loader renames it.
LEGACY_MARK_KEY = "force_mirroring"
_CURRENT_VERSION = 10901
# What a node's marks were before memcli planned it: JSON list of [table, key, value]. On the node
# itself, because MXNet may number the nodes anew when it saves the planned graph.
ORIGINAL_MARK_KEY = "__memcli_original_mark__"

# Which other attributes memcli gave a node: JSON list of keys that it did not have before, and of
# [key, table, value] of those that it had.
ADDED_KEY = "__memcli_added__"

_TABLES = ("attrs", "attr", "param")


@dataclass
class SymbolFile:
    """A symbol file that MXNet's loader accepts (operators' existence apart)."""

    path: str
    sha256: str  # of the file as stored
    raw: dict[str, Any] = field(repr=False)  # the parsed JSON; never changed
    nodes: list[SymbolNode] = field(repr=False)  # in the file's order: inputs may come later
    heads: list[Entry]  # outputs: (node position, output index)

    format = "mxnet-symbol"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SymbolFile:
        """Reads a symbol file, gzipped or not.

        Raises:
            BadInput: it cannot be read or MXNet would not load it.
        """
        data, sha256 = read_model_bytes(path)
        return cls._from_text(data, os.fspath(path), sha256)

    @classmethod
    def from_bytes(
        cls, data: bytes, path: str | os.PathLike[str], sha256: str | None = None
    ) -> SymbolFile:
        """As :meth:`read` on bytes at hand.

        Args:
            data: the content, gzip taken off.
            path: for messages.
            sha256: of what is stored on the disk, where that is not ``data``.
        """
        digest = sha256 or hashlib.sha256(data).hexdigest()
        name = shown_path(os.fspath(path))
        return cls._from_text(unpacked(data, name), os.fspath(path), digest)

    @classmethod
    def _from_text(cls, data: bytes, path: str, sha256: str) -> SymbolFile:
        name = shown_path(path)
        raw = parse_symbol_text(data, name)
        nodes, heads = checked_graph(raw, name)
        return cls(path, sha256, raw, nodes, heads)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return os.path.basename(self.path)

    @property
    def node_count(self) -> int:
        """Variables and operators; nodes within subgraphs not counted."""
        return len(self.nodes)

    @property
    def operator_count(self) -> int:
        """Nodes that are no variables."""
        return sum(not node.is_variable for node in self.nodes)

    def execution_order(self) -> list[int]:
        """Positions in the order in which MXNet visits (and saves) nodes.

        Nodes that no output needs are left out: MXNet drops them, too.
        """
        return depth_first_order(self.nodes, self.heads, control_dependencies(self.raw))[0]

    def existing_marks(self) -> dict[int, tuple[str, str]]:
        """{position: (key, value)} of the mirroring marks in the file, in either spelling.

        Where a node has both, MXNet's own spelling is the one given. The value is the file's
        text: 'False' is a mark that marks nothing.
        """
        found = {}
        for position, node in enumerate(self.nodes):
            for key in (MARK_KEY, LEGACY_MARK_KEY):
                if key in node.attrs:
                    found[position] = (key, node.attrs[key])
                    break
        return found

    def marked(self) -> set[int]:
        """Positions of the nodes that the file marks for recomputation."""
        marks = self.existing_marks().items()
        return {p for p, (_, value) in marks if value.strip().lower() in ("true", "1")}

    def plan(self) -> PlanRecord | None:
        """The plan that the file carries, or None.

        Raises:
            BadInput: it carries one that cannot be understood.
        """
        for position, node in enumerate(self.nodes):
            if PLAN_KEY in node.attrs:
                where = f"{shown_path(self.path)}: nodes[{position}]: {PLAN_KEY}"
                return PlanRecord.from_text(node.attrs[PLAN_KEY], where)
        return None

    def with_marks(
        self,
        mirrored: Collection[int],
        plan: PlanRecord | None,
        added: Mapping[int, Mapping[str, str]] | None = None,
        replaced: Mapping[int, Mapping[str, str]] | None = None,
    ) -> bytes:
        """The file's JSON with exactly the nodes at positions ``mirrored`` marked.

        Everything else stays as it was, key order included. With ``plan``, the first variable that
        an output needs carries it, and nodes that had marks of their own remember them, so that
        :meth:`stripped` brings them back. A plan that is there already is taken off first.

        Args:
            mirrored: positions of nodes to recompute.
            plan: the plan.
            added: by position, other attributes to give a node; what it has already stays.
            replaced: the same, in place of what it has.

        Raises:
            ValueError: a position is not one of this file.
            BadInput: a plan is to go on a graph without nodes.
        """
        wanted = frozenset(mirrored)
        if not all(0 <= position < len(self.nodes) for position in wanted):
            raise ValueError(f"positions must be in 0..{len(self.nodes) - 1}")
        carrier = self._carrier() if plan is not None else None
        was_planned, renamed = self._has_plan(), self._is_current()
        nodes = []
        for position, raw in enumerate(self.raw["nodes"]):
            node = _Tables(_without_plan(raw, was_planned, renamed))
            if plan is not None:
                own = node.marks()
                if own:
                    node.set(ORIGINAL_MARK_KEY, json.dumps(own, separators=(",", ":")))
            node.drop(LEGACY_MARK_KEY)
            if position in wanted:
                node.set(MARK_KEY, "True")
            else:
                node.drop(MARK_KEY)
            noted: list[str | list[str]] = []
            for key, value in (added or {}).get(position, {}).items():
                if node.get(key) is None:
                    noted.append(key)
                    node.set(key, value)
            for key, value in (replaced or {}).get(position, {}).items():
                table = node.table_of(key)
                if table is None:
                    noted.append(key)
                elif node.get(key) != value:
                    noted.append([key, table, str(node.get(key))])
                node.set(key, value, table)
            if noted:
                node.set(ADDED_KEY, json.dumps(noted, separators=(",", ":")))
            if plan is not None and position == carrier:
                node.set(PLAN_KEY, plan.to_text())
            nodes.append(node.result())
        return symbol_text({**self.raw, "nodes": nodes})

    def stripped(self) -> SymbolFile:
        """The graph with its plan taken off and the marks that it had before put back.

        Nodes that memcli put in are gone, inputs that it changed are as they were. Works on a file
        that MXNet saved anew, as well. A file without a plan comes back as is, with all its marks.

        Raises:
            BadInput: the graph was changed since, so that a rewrite cannot be taken back.
        """
        if not self._has_plan():
            return self
        renamed = self._is_current()
        raw = undo(self.raw, shown_path(self.path))
        nodes = [_without_plan(node, True, renamed) for node in raw["nodes"]]
        data = symbol_text({**raw, "nodes": nodes})
        return SymbolFile.from_bytes(data, self.path)

    def with_content(self, raw: dict[str, Any]) -> SymbolFile:
        """The file as if it held ``raw``; path and digest stay.

        Raises:
            BadInput: MXNet would not load it.
        """
        nodes, heads = checked_graph(raw, shown_path(self.path))
        return SymbolFile(self.path, self.sha256, raw, nodes, heads)

    def to_bytes(self) -> bytes:
        """The graph as JSON that MXNet loads (not the file's own bytes)."""
        return symbol_text(self.raw)

    def _has_plan(self) -> bool:
        keys = (PLAN_KEY, ORIGINAL_MARK_KEY, ADDED_KEY)
        return any(key in n.attrs for n in self.nodes for key in keys)

    def _is_current(self) -> bool:
        """Whether MXNet 1.9.1 wrote the file: it then loads no legacy mark from it."""
        version = self.raw.get("attrs", {}).get("mxnet_version", ["int", 0])[1]
        return version >= _CURRENT_VERSION

    def _carrier(self) -> int:
        """Where the plan goes: a node that MXNet keeps when it saves the graph."""
        order = self.execution_order()
        kept = sorted(order) or range(len(self.nodes))
        for position in kept:
            if self.nodes[position].is_variable:
                return position
        if not self.nodes:
            raise BadInput(f"{shown_path(self.path)}: has no nodes, so there is nothing to plan")
        return kept[0]


class _Tables:
    """A copy-on-write view of one node's attribute tables."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self._raw = raw
        self._copied = False

    def marks(self) -> list[list[str]]:
        """[table, key, value] of each mirroring mark."""
        return [
            [table, key, self._raw[table][key]]
            for table in _TABLES
            for key in (MARK_KEY, LEGACY_MARK_KEY)
            if key in self._raw.get(table, ())
        ]

    def table_of(self, key: str) -> str | None:
        """The table in which MXNet finds the attribute."""
        return next((t for t in attribute_keys(self._raw) if key in self._raw[t]), None)

    def get(self, key: str) -> str | None:
        table = self.table_of(key)
        return None if table is None else self._raw[table][key]

    def set(self, key: str, value: str, table: str | None = None) -> None:
        """Sets the attribute where MXNet looks first; ``table``, where it is there, instead."""
        own = attribute_keys(self._raw)
        if table is None or table not in self._raw:
            table = own[0] if own and own[0] != "param" else ("attr" if own else "attrs")
        if self._raw.get(table, {}).get(key) == value:
            return
        self._copy()
        if table not in self._raw:
            self._add_table(table)
        attributes = self._raw[table]
        in_order = sorted(attributes) == list(attributes)
        attributes[key] = value
        if in_order:  # as MXNet writes them, and as they were before a mark was taken off
            self._raw[table] = dict(sorted(attributes.items()))

    def _add_table(self, table: str) -> None:
        """An empty attribute table, 'attrs' where MXNet writes it: before the inputs."""
        behind = ("inputs", "control_deps", "subgraphs") if table == "attrs" else ()
        items = list(self._raw.items())
        self._raw = {k: v for k, v in items if k not in behind}
        self._raw[table] = {}
        self._raw.update({k: v for k, v in items if k in behind})

    def drop(self, key: str) -> None:
        """Removes the attribute from every table, and a table that memcli added for it."""
        for table in _TABLES:
            if key in self._raw.get(table, ()):
                self._copy()
                del self._raw[table][key]
                # MXNet writes no empty 'attrs'; an empty 'attr' beside 'param' was for the mark.
                added = table == "attrs" or (table == "attr" and "param" in self._raw)
                if added and not self._raw[table]:
                    del self._raw[table]

    def result(self) -> dict[str, Any]:
        return self._raw

    def _copy(self) -> None:
        if not self._copied:
            copied = {k: dict(v) if k in _TABLES else v for k, v in self._raw.items()}
            self._raw, self._copied = copied, True


def _without_plan(raw: dict[str, Any], was_planned: bool, renamed: bool) -> dict[str, Any]:
    """One node without what memcli put there.

    ``was_planned``: the file has a plan, so that the marks in it are the plan's. ``renamed``: a
    mark in legacy spelling has to come back in MXNet's own, since MXNet saved the file anew.
    """
    node = _Tables(raw)
    text = node.get(ORIGINAL_MARK_KEY)
    if was_planned:
        node.drop(MARK_KEY)
        node.drop(LEGACY_MARK_KEY)
    node.drop(PLAN_KEY)
    node.drop(ORIGINAL_MARK_KEY)
    for key, before in _added(node.get(ADDED_KEY)):
        if before is None:
            node.drop(key)
        else:
            node.set(key, before[1], before[0])
    node.drop(ADDED_KEY)
    for table, key, value in _original_marks(text):
        node.set(MARK_KEY if renamed else key, value, table)
    return node.result()


def _added(text: str | None) -> list[tuple[str, tuple[str, str] | None]]:
    """What ADDED_KEY holds: keys, each with the table and value that it had, if any.

    Anything else in it is passed over.
    """
    try:
        noted = json.loads(text) if text is not None else []
    except (ValueError, RecursionError):
        return []
    found: list[tuple[str, tuple[str, str] | None]] = []
    for entry in noted if isinstance(noted, list) else []:
        if isinstance(entry, str):
            found.append((entry, None))
        elif (
            isinstance(entry, list)
            and len(entry) == 3
            and all(isinstance(part, str) for part in entry)
            and entry[1] in _TABLES
        ):
            found.append((entry[0], (entry[1], entry[2])))
    return found


def _original_marks(text: str | None) -> list[tuple[str, str, str]]:
    """What ORIGINAL_MARK_KEY holds; anything else in it is passed over."""
    try:
        entries = json.loads(text) if text is not None else []
    except (ValueError, RecursionError):
        return []
    if not isinstance(entries, list):
        return []
    return [
        (entry[0], entry[1], entry[2])
        for entry in entries
        if isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(part, str) for part in entry)
        and entry[0] in _TABLES
        and entry[1] in (MARK_KEY, LEGACY_MARK_KEY)
    ]
