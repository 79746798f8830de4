"""What verifying and inspecting planned files share, whichever engine trains them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from memcli.errors import BadInput, EngineFailed, MemcliError
from memcli.formats.detect import Model, ModelSource, detect_format, read_model_bytes
from memcli.formats.node_plan import NodePlan
from memcli.formats.symbol.record import PlanRecord
from memcli.request import ShapeRequest
from memcli.results.inspected import (
    Inspected,
)
from memcli.units import format_size


def record_notes(inspected: Inspected, record: PlanRecord | NodePlan | None) -> list[str]:
    """Where what the plan says of itself does not hold for what is shown."""
    notes: list[str] = []
    if record is None or inspected.planned is None:
        return notes
    shapes = {row.name: row.shape for row in inspected.inputs}
    if shapes != record.shapes or inspected.dtype != record.dtype:
        notes.append("these are not the shapes, or not the type, that the plan was made for")
        return notes
    said = record.memory.get("planned_bytes")
    if said is not None and said != inspected.planned.pool_bytes:
        notes.append(
            f"the plan says {format_size(said)}, and the graph as it is now takes "
            f"{format_size(inspected.planned.pool_bytes)}: it was changed since, or planned by "
            "another version of memcli"
        )
    return notes


def scaled_request(request: ShapeRequest, old: int, new: int) -> ShapeRequest:
    """The shapes with another batch.

    Args:
        request: the shapes.
        old: the batch; leading dimensions that are a multiple of it are scaled.
        new: what the batch becomes.
    """
    shapes = {
        n: [s[0] // old * new, *s[1:]] if s and s[0] % old == 0 else s
        for n, s in request.shapes.items()
    }
    return dataclasses.replace(request, shapes=shapes, batch=None, unnamed=None)


PLAN_TAKEN_OFF = "the planned file with its plan taken off"


class _Hashed(Protocol):
    sha256: str


class _Shaped(Protocol):
    inputs: dict[str, list[int]]
    dtype: str
    frozen: tuple[str, ...]


HashedFile = TypeVar("HashedFile", bound=_Hashed)


Bound = TypeVar("Bound", bound=_Shaped)


def original_beside(
    planned_path: str, name: str, sha256: str, read: Callable[[Model], HashedFile]
) -> tuple[HashedFile, str] | None:
    """The file that a plan was made from, in the plan's folder or the current one, and where it is.

    A file of that name is looked into only where its SHA-256 is the record's.

    Args:
        planned_path: of the planned file.
        name: the original's, by the record.
        sha256: the original's, by the record.
        read: reads a file; may raise MemcliError, as a file that cannot be read is not the one.
    """
    for folder in {os.path.dirname(os.path.abspath(planned_path)), os.getcwd()}:
        path = os.path.join(folder, os.path.basename(name))
        if not os.path.isfile(path):
            continue
        try:
            data, found = read_model_bytes(path)
            if found != sha256:
                continue
            original = read(ModelSource(path, data, found, detect_format(data, path)))
        except MemcliError:
            continue
        return original, f"{os.path.relpath(path)} (its SHA-256 matches)"
    return None


def fit_batch(
    analysis: Bound,
    asked: int,
    free: int,
    needed_by: Callable[[Bound], int],
    analysis_of: Callable[[ShapeRequest], Bound],
) -> tuple[Bound, dict[str, Any] | None]:
    """The analysis at a batch whose baseline step fits ``free`` bytes, and what was changed.

    Args:
        analysis: of the graph.
        asked: the batch of ``analysis``.
        free: bytes that verifying may take.
        needed_by: bytes that verifying takes at most, of an analysis.
        analysis_of: the analysis at other shapes.

    Raises:
        EngineFailed: not even a batch of one fits.
    """
    batch = asked
    scaled = None
    while True:
        needed = needed_by(analysis)
        if needed <= free:
            return analysis, scaled
        if batch <= 1:
            raise EngineFailed(
                f"a step of this graph takes {format_size(needed)} even at batch {batch}, and "
                f"{format_size(free)} are free here",
                "verify on a machine with more memory, or at a smaller --shape",
            )
        smaller = max(1, int(batch * free / needed * 0.95))
        smaller = 1 << (min(smaller, batch - 1).bit_length() - 1)
        scaled = {
            "from_batch": asked,
            "to_batch": smaller,
            "why": f"a step takes {format_size(needed)}, and {format_size(free)} are free",
        }
        request = ShapeRequest(
            shapes=dict(analysis.inputs),
            dtype=analysis.dtype,
            frozen=analysis.frozen,
            imports=getattr(analysis, "imports", ()),
        )
        analysis = analysis_of(scaled_request(request, batch, smaller))
        batch = smaller


def scaled_notes(scaled: dict[str, Any] | None) -> list[str]:
    """What :func:`fit_batch` changed, in words."""
    if scaled is None:
        return []
    return [f"batch {scaled['from_batch']} scaled down to {scaled['to_batch']}: {scaled['why']}"]


def shapes_to_verify(
    record: PlanRecord | NodePlan | None, request: ShapeRequest | None
) -> ShapeRequest:
    """The plan's shapes, with what the user says in their place.

    Shapes that the user gives replace the plan's altogether: those of labels follow from them.
    """
    if record is None:
        return request or ShapeRequest()
    shapes = {name: list(shape) for name, shape in record.shapes.items()}
    result = ShapeRequest(shapes=shapes, dtype=record.dtype, frozen=tuple(record.frozen))
    if request is None:
        return result
    result.imports = request.imports
    if request.dtype is not None:
        result.dtype = request.dtype
    result.frozen = request.frozen or result.frozen
    if request.shapes or request.unnamed is not None:
        return dataclasses.replace(request, dtype=result.dtype, frozen=result.frozen)
    leading = [shape[0] for shape in shapes.values() if shape]
    if request.batch is not None and leading:
        result = scaled_request(result, leading[0], request.batch)
    return result


def refuse_kernels() -> BadInput:
    """``--kernels`` of ``verify`` where it says nothing."""
    return BadInput("--kernels is for MXNet graphs that MXNet trains on the CPU")
