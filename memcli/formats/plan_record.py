"""What a planned graph says about its plan: carried inside the graph, as one text attribute."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from memcli import __version__
from memcli.errors import BadInput
from memcli.formats.wording import shown

# The node attribute that holds the record. MXNet leaves ``__name__`` attributes alone.
PLAN_KEY = "__memcli_plan__"
SCHEMA = 1


@dataclass(frozen=True)
class PlanRecord:
    """How a planned graph came about and what it was measured to need.

    Positions count the nodes of the file as memcli wrote it. MXNet orders nodes anew when it
    saves a graph, so positions hold only as long as the file is the one that memcli wrote (or
    was in MXNet's own order to begin with, as everything that MXNet saved is).
    """

    strategy: str
    shapes: dict[str, list[int]]  # of the inputs
    dtype: str
    environment: dict[str, str]  # variables that the engine must run with
    original_name: str  # file name without folder
    original_sha256: str  # of the file as stored, 64 hex digits
    n_nodes: int  # of the planned graph
    original_marks: dict[int, list[str]] = field(default_factory=dict)  # position: [key, value]
    cuts: list[int] = field(default_factory=list)  # positions of the nodes that are kept
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    recompute: dict[str, int | float] = field(default_factory=dict)  # FLOPs and fractions
    memcli_version: str = __version__
    schema: int = SCHEMA

    def to_text(self) -> str:
        """The record as one line of ASCII JSON.

        ASCII, because MXNet's own JSON reader knows no Unicode escapes: inside the attribute
        they are plain text to it.
        """
        values = dataclasses.asdict(self)
        values["original_marks"] = {str(k): v for k, v in sorted(self.original_marks.items())}
        return json.dumps(values, separators=(",", ":"), sort_keys=True, allow_nan=False)

    @classmethod
    def from_text(cls, text: str, where: str = "plan record") -> PlanRecord:
        """Reads what :meth:`to_text` wrote; keys that a later memcli may add are passed over.

        Raises:
            BadInput: not such a text; the message begins with ``where`` and names the field.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: is not the JSON that memcli writes", _MEND) from error
        if not isinstance(values, dict):
            raise BadInput(f"{where}: is {shown(values)}, not an object", _MEND)
        schema = values.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise BadInput(
                f"{where}: was written by a newer memcli (schema {shown(schema)})",
                "upgrade memcli to use this plan",
            )
        checked: dict[str, Any] = {}
        for name, (is_good, wanted) in _FIELDS.items():
            if name not in values:
                raise BadInput(f"{where}: has no '{name}'", _MEND)
            if not is_good(values[name]):
                raise BadInput(f"{where}: '{name}' is not {wanted}", _MEND)
            checked[name] = values[name]
        checked["original_marks"] = {int(k): v for k, v in checked["original_marks"].items()}
        record = cls(**checked)
        if record.cuts and max(record.cuts) >= record.n_nodes:
            raise BadInput(
                f"{where}: keeps node {max(record.cuts)}, but there are {record.n_nodes}", _MEND
            )
        return record


_MEND = "plan the original again, or take the attribute off"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: object) -> bool:
    return _is_count(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _list_of(item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(item, value))


def _dict_of(
    item: Callable[[Any], bool], key: Callable[[str], object] = _is_text
) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(key(k) and item(value[k]) for k in value)


def _is_mark(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_text, value))


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


_POSITION = re.compile("[0-9]{1,9}", re.ASCII)
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "schema": (lambda value: value == SCHEMA and _is_count(value), f"the number {SCHEMA}"),
    "memcli_version": (_is_text, "a string"),
    "strategy": (_is_text, "a string"),
    "shapes": (_dict_of(_list_of(_is_count)), "a table of lists of integers"),
    "dtype": (_is_text, "a string"),
    "environment": (_dict_of(_is_text), "a table of strings"),
    "original_name": (_is_text, "a string"),
    "original_sha256": (_is_sha256, "a SHA-256 of 64 hexadecimal digits"),
    "original_marks": (
        _dict_of(_is_mark, _POSITION.fullmatch),
        "a table from node positions to [key, value]",
    ),
    "cuts": (_list_of(_is_count), "a list of node positions"),
    "n_nodes": (_is_count, "a number of nodes"),
    "memory": (_dict_of(_is_count), "a table of bytes"),
    "recompute": (_dict_of(_is_number), "a table of numbers"),
}
