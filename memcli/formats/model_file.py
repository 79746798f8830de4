"""Files that PyTorch trains, whatever they are written in."""

from __future__ import annotations

from typing import Any

from memcli.formats.detect import Model, read_source
from memcli.formats.input_shapes import ShapesAsked


def read_model(model: Model, asked: ShapesAsked, *, as_planned: bool = False) -> Any:
    """The file of a model: a :class:`memcli.formats.trained_file.TrainedFile` of its format.

    A Caffe net is read as the graph that it becomes at the shapes asked for; ``as_planned``: its
    plan gives the shapes that are not asked for.

    Raises:
        BadInput: it cannot be read, or PyTorch does not train such files.
    """
    source = read_source(model)
    return source.kind.read(source, asked, as_planned)
