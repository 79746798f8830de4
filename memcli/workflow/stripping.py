"""Takes a plan off a file: the graph that it was made from, rewrites undone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

from memcli.engines.analysis import ShapeRequest
from memcli.errors import BadInput
from memcli.formats.caffe.annotate import carried_plan, without_plan
from memcli.formats.detect import Model, ModelFormat, ModelSource, read_source
from memcli.formats.mxnet_symbol import SymbolFile
from memcli.formats.onnx_plan import moved_notes, strip_plan
from memcli.formats.onnx_plan_record import OnnxPlan
from memcli.formats.output import check_output, write_output
from memcli.formats.plan_record import PlanRecord
from memcli.formats.wording import shown, shown_path


@dataclass
class Stripped:
    """A file without its plan."""

    path: str
    format: ModelFormat
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


def strip(planned: Model, out: str, *, force: bool = False) -> Stripped:
    """``memcli strip``: write the graph of a planned file, in its format, without the plan.

    ``planned`` and ``out`` may be ``-``, standard input and output.

    Raises:
        BadInput: unreadable, without a plan, changed since it was planned so that a rewrite
            cannot be undone, or an output that cannot or must not be written.
    """
    check_output(planned, out, force)
    source = read_source(planned)
    if source.format == "mxnet-symbol":
        found = _symbol(SymbolFile.from_bytes(source.data, source.path, source.sha256))
    elif source.format == "onnx":
        found = _onnx(source, out)
    else:
        found = _caffe(source.path, source.data)
    write_output(out, found.data, overwrite=force)
    found.output = out
    return found


def _symbol(file: SymbolFile) -> Stripped:
    record = file.plan()
    marks = len(file.marked())
    bare = file.stripped()
    notes = []
    if record is None:
        if not file.existing_marks():
            raise _no_plan(file.path)
        bare = SymbolFile.from_bytes(bare.with_marks((), None), file.path)
        taken = "1 mark was" if marks == 1 else f"{marks} marks were"
        notes.append(f"the file has no record of a plan; {taken} taken off")
    found = _stripped(file.path, "mxnet-symbol", bare.to_bytes(), record, marks, notes)
    found.removed = file.node_count - bare.node_count
    return found


def _onnx(source: ModelSource, out: str) -> Stripped:
    from memcli.formats.model_file import read_model

    file = read_model(source, ShapeRequest())
    plan = file.carried_plan()
    notes = moved_notes(file, out)
    if plan is not None and plan.as_training:
        notes.append("what --as-training put back into training mode stays so")
    marks = 0 if plan is None else sum(mark != "kept" for mark in plan.marks.values())
    return _stripped(source.path, "onnx", strip_plan(file).data, plan, marks, notes)


def _caffe(path: str, data: bytes) -> Stripped:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{shown_path(path)}: is not UTF-8 text") from None
    plan = carried_plan(text, shown_path(path))
    if plan is None:
        raise _no_plan(path)
    marks = sum(mark != "kept" for mark in plan.marks.values())
    return _stripped(path, "caffe-prototxt", without_plan(text).encode(), plan, marks, [])


def _stripped(
    path: str,
    kind: ModelFormat,
    data: bytes,
    plan: PlanRecord | OnnxPlan | None,
    marks: int,
    notes: list[str],
) -> Stripped:
    name = None if plan is None else os.path.basename(plan.original_name)
    exact = plan is not None and hashlib.sha256(data).hexdigest() == plan.original_sha256
    return Stripped(path, kind, data, name, exact, marks, 0, notes)


def _no_plan(path: str) -> BadInput:
    return BadInput(f"{shown_path(path)}: carries no plan", "memcli plan makes one")


def what_it_is(stripped: Stripped) -> str:
    """What was written, in words."""
    if stripped.original_name is None:
        return "the graph without its marks"
    name = shown(stripped.original_name)
    return f"{name}, byte for byte" if stripped.exact else f"the graph of {name}"
