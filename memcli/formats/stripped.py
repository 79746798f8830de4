"""A file without its plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from memcli.quoting import shown


@dataclass
class Stripped:
    """A file without its plan."""

    path: str  # of the planned file
    format: str
    data: bytes
    original_name: str | None  # of the file that was planned, as its plan says; None: no record
    exact: bool  # byte for byte that file
    marks: int  # nodes that were marked for recomputation
    removed: int  # nodes that rewrites had put in
    notes: list[str] = field(default_factory=list)
    output: str | None = None

    @property
    def sha256(self) -> str:
        """Of the file without its plan."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def what(self) -> str:
        """What was written, in words."""
        if self.original_name is None:
            return "the graph without its marks"
        name = shown(self.original_name)
        return f"{name}, byte for byte" if self.exact else f"the graph of {name}"

    def to_json(self) -> dict[str, Any]:
        """The object that ``strip --json`` prints."""
        return {
            "schema": 1,
            "planned": self.path,
            "format": self.format,
            "output": self.output,
            "sha256": self.sha256,
            "original_name": self.original_name,
            "is_original": self.exact,
            "marks": self.marks,
            "removed_nodes": self.removed,
            "notes": self.notes,
        }
