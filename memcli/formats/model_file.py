"""Files that PyTorch trains, whatever they are written in."""

from __future__ import annotations

from memcli.formats.caffe.file import parse_caffe
from memcli.formats.detect import Model, read_source
from memcli.formats.onnx.file import OnnxFile, read_onnx
from memcli.formats.onnx.shapes import ShapesAsked


def read_model(model: Model, asked: ShapesAsked, *, as_planned: bool = False) -> OnnxFile:
    """An ONNX file, or a Caffe net as the graph that it becomes at the shapes asked for.

    ``as_planned``: a net's plan gives the shapes that are not asked for.

    Raises:
        BadInput: it cannot be read, or is neither.
    """
    source = read_source(model)
    if source.kind.depends_on_shapes:
        return parse_caffe(source.data, source.path, source.sha256, asked, as_planned=as_planned)
    return read_onnx(source)
