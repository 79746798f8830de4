"""What a planned graph says about its plan: carried inside the graph, as one text attribute."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import ClassVar

from memcli.errors import BadInput
from memcli.formats.record_checks import (
    Check,
    common_fields,
    dict_of,
    is_count,
    is_text,
    list_of,
    read_record,
)
from memcli.version import __version__

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
    kernels: str = ""  # that run it: plain, any (oneDNN's or cuDNN's); '' where an older file
    original_marks: dict[int, list[str]] = field(default_factory=dict)  # position: [key, value]
    cuts: list[int] = field(default_factory=list)  # positions of the nodes that are kept
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    recompute: dict[str, int | float] = field(default_factory=dict)  # FLOPs and fractions
    frozen: list[str] = field(default_factory=list)  # globs of parameters that are not trained
    memcli_version: str = __version__
    schema: int = SCHEMA

    # MXNet's memory is the same on all devices, its graphs are always in both modes, and each of
    # several workers runs the same graph.
    device: ClassVar[str] = ""
    as_training: ClassVar[tuple[str, ...]] = ()
    workers: ClassVar[int] = 1

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
        """Read what :meth:`to_text` wrote; keys that a later memcli may add are passed over.

        Args:
            text: a JSON object.
            where: the place that it is kept at, for messages.

        Raises:
            BadInput: not such a text; the message begins with ``where`` and names the field.
        """
        # the first plans trained every parameter, and did not say so
        checked = read_record(text, where, _FIELDS, SCHEMA, _MEND, optional=("frozen",))
        checked["original_marks"] = {int(k): v for k, v in checked["original_marks"].items()}
        record = cls(**checked)
        if record.cuts and max(record.cuts) >= record.n_nodes:
            raise BadInput(
                f"{where}: keeps node {max(record.cuts)}, but there are {record.n_nodes}", _MEND
            )
        return record


_MEND = "plan the original again, or take the attribute off"


def _is_mark(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_text, value))


_POSITION = re.compile("[0-9]{1,9}", re.ASCII)
_FIELDS: dict[str, tuple[Check, str]] = {
    **common_fields(SCHEMA),
    "original_marks": (
        dict_of(_is_mark, _POSITION.fullmatch),
        "a table from node positions to [key, value]",
    ),
    "cuts": (list_of(is_count), "a list of node positions"),
    "frozen": (list_of(is_text), "a list of strings"),
}
