"""Errors name the file that they are about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memcli.engines.processes.parent_side import WorkerFailed
from memcli.errors import BadInput
from memcli.formats.detect import Model, model_path
from memcli.quoting import shown_path


@contextmanager
def about(*models: Model | None) -> Iterator[None]:
    """Errors of what is done with these files name one of them, whoever raises them."""
    try:
        yield
    except (BadInput, WorkerFailed) as error:
        names = [shown_path(model_path(model)) for model in models if model is not None]
        said = error.message
        if not any(name in said for name in names):
            error.message = f"{names[0]}: {said}"
        raise
