"""``memcli inspect``: what a model holds, and where its training memory goes."""

from __future__ import annotations

from memcli.commands.about import about
from memcli.engine import engine_of
from memcli.formats.detect import Model, read_source
from memcli.frameworks.figures import NO_MODELS, ModelRequest
from memcli.request import Progress, ShapeRequest
from memcli.results.inspected import Inspected


def inspect(
    model: Model,
    request: ShapeRequest | None = None,
    *,
    dtype: str | None = None,
    top: int = 10,
    models: ModelRequest = NO_MODELS,
    on_progress: Progress | None = None,
) -> Inspected:
    """Looks into a saved or planned model; a planned one is seen at its plan's shapes.

    Args:
        model: its path, or what was read.
        request: shapes in place of those of the file or plan.
        dtype: the same for the type.
        top: how many of the largest tensors.
        models: other frameworks' buffers to show.
        on_progress: told what is being done.

    Raises:
        BadInput: no such model, or its shapes cannot be told.
        EngineFailed: the engine is missing or crashed.
    """
    source = read_source(model)
    with about(source):
        return engine_of(source).inspect(
            source, request, dtype=dtype, top=top, models=models, on_progress=on_progress
        )
