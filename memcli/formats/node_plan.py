"""A plan by nodes, as files that PyTorch trains carry it: one JSON text, whatever the format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from memcli.errors import BadInput
from memcli.formats.record_checks import (
    Check,
    common_fields,
    is_count,
    is_sha256,
    is_text,
    list_of,
    read_record,
)
from memcli.marks import ALL_MARKS
from memcli.version import __version__

SCHEMA = 1

# kept: the node's output stays for the backward pass. again: it is dropped, and recomputed once
# when the backward pass first needs it. each: it is recomputed at every need, and never stays.
# inside: what the node's function saves within itself (pooling indices, dropout masks) goes, too.
Mark = Literal["kept", "again", "each", "kept+inside", "again+inside", "each+inside"]
MARKS: tuple[str, ...] = get_args(Mark)
# The numbers by which planners and the executor know them.
MARK_NUMBERS: dict[str, int] = dict(zip(MARKS, ALL_MARKS, strict=True))
MARK_TEXTS: dict[int, str] = {number: text for text, number in MARK_NUMBERS.items()}


@dataclass(frozen=True)
class NodePlan:
    """How a planned file came about and what it was found to need.

    Fields of the same name mean what they mean in the record of MXNet files.
    """

    strategy: str
    shapes: dict[str, list[int]]  # of the free inputs
    dtype: str
    environment: dict[str, str]  # variables that the engine must run with
    original_name: str  # file name without folder
    original_sha256: str  # of the file as stored, 64 hex digits
    base_sha256: str  # of the bytes that the plan was put into: what taking it off gives back
    graph_sha256: str  # of the graph's structure
    n_nodes: int
    marks: dict[str, str]  # {node name: Mark}, in the graph's order
    outputs: dict[str, str]  # {node name: its first output}, of the same nodes
    as_training: list[str] = field(default_factory=list)  # what was restored before planning
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    recompute: dict[str, int | float] = field(default_factory=dict)  # FLOPs and fractions
    device: str = "cpu"  # whose memory was counted: cpu or cuda
    workers: int = 1  # that train together; shapes and memory are of each
    frozen: list[str] = field(default_factory=list)  # globs of parameters that are not trained
    memcli_version: str = __version__
    schema: int = SCHEMA

    def to_text(self) -> str:
        """The record as one line of ASCII JSON; nodes as [name, first output, mark]."""
        values = dataclasses.asdict(self)
        del values["marks"], values["outputs"]
        values["nodes"] = [[n, self.outputs[n], mark] for n, mark in self.marks.items()]
        return json.dumps(values, separators=(",", ":"), sort_keys=True, allow_nan=False)

    @classmethod
    def from_text(cls, text: str, where: str = "plan record") -> NodePlan:
        """Reads what :meth:`to_text` wrote; keys that a later memcli may add are passed over.

        Raises:
            BadInput: not such a text; the message begins with ``where`` and names the field.
        """
        # the first plans did not say these: the CPU, one worker, nothing frozen
        optional = ("device", "workers", "frozen")
        checked = read_record(text, where, _FIELDS, SCHEMA, _MEND, optional=optional)
        nodes = checked.pop("nodes")
        if len({n for n, _, _ in nodes}) != len(nodes) or len({o for _, o, _ in nodes}) != len(
            nodes
        ):
            raise BadInput(f"{where}: names a node twice", _MEND)
        return cls(
            **checked,
            marks={name: mark for name, _, mark in nodes},
            outputs={name: output for name, output, _ in nodes},
        )

    def with_names(self, names: Mapping[str, str]) -> NodePlan:
        """The plan with marks by other names: {first output: name}; others' marks fall away."""
        kept = [(names[o], o, self.marks[n]) for n, o in self.outputs.items() if o in names]
        return dataclasses.replace(
            self,
            marks={name: mark for name, _, mark in kept},
            outputs={name: output for name, output, _ in kept},
        )


_MEND = "plan the original again, or take the plan off"


def _is_node(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(map(is_text, value))
        and value[2] in MARKS
    )


_FIELDS: dict[str, tuple[Check, str]] = {
    **common_fields(SCHEMA),
    "base_sha256": (is_sha256, "a SHA-256 of 64 hexadecimal digits"),
    "graph_sha256": (is_sha256, "a SHA-256 of 64 hexadecimal digits"),
    "device": (lambda value: value in ("cpu", "cuda"), "cpu or cuda"),
    "workers": (lambda value: is_count(value) and 0 < value < 1 << 20, "a number of workers"),
    "nodes": (list_of(_is_node), "a list of [node, first output, kept or again or each]"),
    "as_training": (list_of(is_text), "a list of strings"),
    "frozen": (list_of(is_text), "a list of strings"),
}
