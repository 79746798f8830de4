"""``memcli export``: a plan as code for a framework's own checkpoints."""

from __future__ import annotations

from memcli.commands.about import about
from memcli.errors import BadInput
from memcli.export.exporting import export_plan
from memcli.formats.detect import Model, read_source
from memcli.quoting import shown_path
from memcli.request import Progress
from memcli.results.exported import Exported


def export(planned: Model, target: str, *, on_progress: Progress | None = None) -> Exported:
    """Groups the layers of a planned file so that a framework can wrap them.

    Args:
        planned: its path, or what was read.
        target: one of ``TARGETS``.
        on_progress: told what is being done.

    Raises:
        BadInput: the file cannot be read, is neither ONNX nor an exported program, or carries no
            plan.
        AnswerIsNo: nothing that the framework can wrap takes less memory than no plan.
        EngineFailed: PyTorch, whose memory is counted, is missing or crashed.
    """
    source = read_source(planned)
    if not source.kind.exports:
        raise BadInput(
            f"{shown_path(source.path)}: is neither ONNX nor an exported program, and its plan is "
            "not for PyTorch, TensorFlow or JAX",
            "it takes ONNX and .pt2 files that memcli plan wrote; MXNet trains planned symbols as "
            "they are",
        )
    with about(source):
        return export_plan(source, target, on_progress)
