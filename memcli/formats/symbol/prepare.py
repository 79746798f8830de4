"""The copy of a symbol that engines bind: unique names, a loss, and the marks of one plan."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from memcli.formats.symbol.loss_heads import add_loss_heads, has_loss
from memcli.formats.symbol.text import symbol_text

_CONTROL = re.compile("[\x00-\x1f\x7f]")
MARK_KEYS = ("__force_mirroring__", "force_mirroring")


def attribute_dicts(node: dict[str, Any]) -> list[dict[str, str]]:
    """The dictionaries of a raw node that MXNet reads attributes from, in any spelling."""
    return [node[key] for key in ("attrs", "attr", "param") if isinstance(node.get(key), dict)]


def _copied(node: dict[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, dict) else v for k, v in node.items()}


def _plain(table: dict[str, str]) -> dict[str, str]:
    """A copy of an attribute table, blanks in place of control characters.

    MXNet tells of its graph in lines, and what stands in an attribute should not look like one.
    """
    if all(value.isprintable() and key.isprintable() for key, value in table.items()):
        return dict(table)
    return {_CONTROL.sub(" ", k): _CONTROL.sub(" ", v) for k, v in table.items()}


def prepare(
    raw: dict[str, Any], *, marked: Collection[int] | None, losses: bool = True
) -> tuple[str, int]:
    """Symbol JSON text to bind, and the number of loss heads that were put on.

    Node ``i`` is renamed to ``n{i}``: names repeat in real files and what an engine reports is told
    apart by name. Names do not enter MXNet's memory plan.

    Args:
        raw: the symbol file's content.
        marked: positions to recompute; None keeps the file's own marks.
        losses: whether a graph without a loss gets one.
    """
    # what is changed below is copied, and nothing else: graphs have tens of thousands of nodes
    raw = {**raw, "nodes": [_copied(node) for node in raw["nodes"]]}
    mark = set(marked) if marked is not None else None
    for position, node in enumerate(raw["nodes"]):
        node["name"] = f"n{position}"
        if mark is None:
            continue
        for attributes in attribute_dicts(node):
            for key in MARK_KEYS:
                attributes.pop(key, None)
        if position in mark and node["op"] != "null":
            dicts = attribute_dicts(node)
            place = next((k for k in ("attrs", "attr") if isinstance(node.get(k), dict)), None)
            if place is None:
                place = "attr" if dicts else "attrs"
                node[place] = {}
            node[place]["__force_mirroring__"] = "True"
    heads = 0
    if losses and not has_loss(raw):
        heads = add_loss_heads(raw)
        for position in range(len(raw["nodes"]) - 3 * heads, len(raw["nodes"])):
            raw["nodes"][position]["name"] = f"n{position}"
    raw.pop("node_row_ptr", None)
    return symbol_text(raw, indent=None).decode(), heads
