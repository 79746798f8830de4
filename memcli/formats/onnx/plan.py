"""Plans in ONNX files: put into the metadata, and taken off again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from memcli.errors import BadInput
from memcli.formats.detect import LARGEST_FILE
from memcli.formats.node_plan import NodePlan
from memcli.formats.onnx.external import check_locations, data_folder, external_tensors
from memcli.formats.onnx.file import OnnxFile
from memcli.formats.onnx.record import MARK_KEY, PLAN_KEY
from memcli.formats.onnx.wire import with_metadata, without_metadata
from memcli.formats.output import write_output
from memcli.quoting import STANDARD, first_of, shown, shown_path


@dataclass(frozen=True)
class Stripped:
    """An ONNX file without its plan."""

    data: bytes
    exact: bool  # byte for byte what the plan was put into


def planned_bytes(file: OnnxFile, plan: NodePlan) -> bytes:
    """The file's bytes with ``plan`` in its metadata, and mirrored node by node.

    Nothing else changes; a plan that is there already is taken off first. Nodes that come from
    the model's own functions have no place of their own in the file: there the plan alone is.

    Raises:
        BadInput: the result would be larger than an ONNX file can be.
    """
    base = unplanned_bytes(file)
    mirrored = {}
    if not file.has_functions:
        mirrored = {
            position: {MARK_KEY: plan.marks[name]}
            for position, name in enumerate(file.node_names)
            if name in plan.marks
        }
    data = with_metadata(base, {PLAN_KEY: plan.to_text()}, mirrored)
    # Protobuf's own limit is one byte less.
    if len(data) >= LARGEST_FILE:
        raise BadInput(
            f"{shown_path(file.path)}: with the plan it takes more than the 2 GiB of an ONNX file",
            "keep its weights in a file of their own (onnx.save, save_as_external_data=True)",
        )
    return data


def write_plan(
    file: OnnxFile, plan: NodePlan, out: str | os.PathLike[str], *, overwrite: bool
) -> list[str]:
    """Writes the planned file, whole or not at all. What the user should know of it is returned.

    Raises:
        BadInput: ``out`` cannot be written, or exists and ``overwrite`` is false.
    """
    write_output(out, planned_bytes(file, plan), overwrite=overwrite)
    return moved_notes(file, out)


def moved_notes(file: OnnxFile, out: str | os.PathLike[str]) -> list[str]:
    """What to say where ``out`` is not in the folder that the file's external data is in."""
    locations = check_locations(external_tensors(file.model), file.path)
    if locations and data_folder(file.path) is None:
        return [
            f"the model refers to weights in {first_of(map(shown, locations))}, which a pipe does "
            "not bring along: put the planned file beside them to run it"
        ]
    if os.fspath(out) == STANDARD:
        return []
    here, there = (os.path.realpath(Path(p).parent) for p in (file.path, out))
    present = [location for location, path in locations.items() if path.is_file()]
    if here == there or not present:
        return []
    listed = first_of(map(shown, present))
    return [
        f"{shown_path(os.fspath(out))} refers to weights beside {file.name} ({listed}): "
        f"copy or link them into {shown_path(Path(out).parent)} to run it"
    ]


def strip_plan(file: OnnxFile) -> Stripped:
    """The file without the plan: the very bytes that the plan was put into, where nobody else
    has written the file since.

    Raises:
        BadInput: the file carries no plan, or one that cannot be understood.
    """
    plan = file.carried_plan()
    if plan is None:
        raise BadInput(f"{shown_path(file.path)}: carries no plan of memcli")
    data = unplanned_bytes(file)
    return Stripped(data, hashlib.sha256(data).hexdigest() == plan.base_sha256)


def unplanned_bytes(file: OnnxFile) -> bytes:
    """The file's bytes, with a plan taken off where there is one."""
    carried = any(entry.key == PLAN_KEY for entry in file.model.metadata_props) or any(
        entry.key == MARK_KEY for node in file.model.graph.node for entry in node.metadata_props
    )
    return without_metadata(file.data, PLAN_KEY, MARK_KEY) if carried else file.data
