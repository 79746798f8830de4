"""Files that PyTorch trains, whatever they are written in: read, taken off their plan, written."""

from __future__ import annotations

from memcli.formats.caffe.file import CaffeFile, is_onnx_name, parse_caffe
from memcli.formats.detect import Model, read_source
from memcli.formats.onnx.file import OnnxFile, parse_onnx, read_onnx
from memcli.formats.onnx.plan import strip_plan, write_plan
from memcli.formats.onnx.record import OnnxPlan
from memcli.formats.onnx.shapes import ShapesAsked


def read_model(model: Model, asked: ShapesAsked, *, as_planned: bool = False) -> OnnxFile:
    """An ONNX file, or a Caffe net as the graph that it becomes at the shapes asked for.

    ``as_planned``: a net's plan gives the shapes that are not asked for.

    Raises:
        BadInput: it cannot be read, or is neither.
    """
    source = read_source(model)
    if source.format != "caffe-prototxt":
        return read_onnx(source)
    return parse_caffe(source.data, source.path, source.sha256, asked, as_planned=as_planned)


def unplanned_file(file: OnnxFile) -> OnnxFile:
    """The file without the plan that it carries.

    Raises:
        BadInput: it carries none, or one that cannot be understood.
    """
    if isinstance(file, CaffeFile):
        return file.unplanned()
    return parse_onnx(strip_plan(file).data, file.path)


def written_as(file: OnnxFile, out: str) -> OnnxFile:
    """The file in the format that the name of the output asks for."""
    return file.as_onnx() if isinstance(file, CaffeFile) and is_onnx_name(out) else file


def write_planned(
    file: OnnxFile, plan: OnnxPlan, out: str, *, overwrite: bool
) -> list[str]:
    """Writes the file with its plan, whole or not at all; what the user should know is returned.

    Raises:
        BadInput: ``out`` cannot be written, or exists and ``overwrite`` is false.
    """
    if isinstance(file, CaffeFile):
        file.write_plan(plan, out, overwrite=overwrite)
        return []
    return write_plan(file, plan, out, overwrite=overwrite)
