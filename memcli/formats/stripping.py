"""Takes a plan off a file: the graph that it was made from, rewrites undone."""

from __future__ import annotations

import hashlib
import os

from memcli.errors import BadInput
from memcli.formats.caffe.annotate import carried_plan, without_plan
from memcli.formats.detect import ModelSource
from memcli.formats.node_plan import NodePlan
from memcli.formats.onnx.plan import moved_notes, strip_plan
from memcli.formats.stripped import Stripped
from memcli.formats.symbol.file import SymbolFile
from memcli.formats.symbol.record import PlanRecord
from memcli.quoting import shown_path
from memcli.request import ShapeRequest


def strip_symbol(source: ModelSource, out: str) -> Stripped:
    """An MXNet symbol without its plan, or without marks that something else put there.

    Raises:
        BadInput: no plan and no marks, or a rewrite that cannot be undone.
    """
    file = SymbolFile.from_bytes(source.data, source.path, source.sha256)
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


def strip_onnx(source: ModelSource, out: str) -> Stripped:
    """An ONNX file without its plan.

    Raises:
        BadInput: no plan, or a file that was changed since.
    """
    from memcli.formats.model_file import read_model

    file = read_model(source, ShapeRequest())
    plan = file.carried_plan()
    notes = moved_notes(file, out)
    if plan is not None and plan.as_training:
        notes.append("what --as-training put back into training mode stays so")
    marks = 0 if plan is None else sum(mark != "kept" for mark in plan.marks.values())
    return _stripped(source.path, "onnx", strip_plan(file).data, plan, marks, notes)


def strip_caffe(source: ModelSource, out: str) -> Stripped:
    """A Caffe net without its plan, which stands in comments.

    Raises:
        BadInput: no plan, or no text.
    """
    path, data = source.path, source.data
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
    kind: str,
    data: bytes,
    plan: PlanRecord | NodePlan | None,
    marks: int,
    notes: list[str],
) -> Stripped:
    name = None if plan is None else os.path.basename(plan.original_name)
    exact = plan is not None and hashlib.sha256(data).hexdigest() == plan.original_sha256
    return Stripped(path, kind, data, name, exact, marks, 0, notes)


def _no_plan(path: str) -> BadInput:
    return BadInput(f"{shown_path(path)}: carries no plan", "memcli plan makes one")
