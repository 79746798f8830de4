"""A batch over several workers that train one model together, each with an equal part."""

from __future__ import annotations

import dataclasses

from memcli.errors import BadInput
from memcli.formats.input_shapes import batch_dims, bind_shapes
from memcli.formats.trained_file import TrainedFile
from memcli.quoting import shown_path
from memcli.request import ShapeRequest
from memcli.results.planned import BatchSplit


def split_request(
    file: TrainedFile, request: ShapeRequest, workers: int, parts: int = 1
) -> tuple[ShapeRequest, BatchSplit, list[str]]:
    """What each of some workers runs, where ``request`` is what all run together.

    ``parts``: ``request`` is one of so many equal parts of the whole. Also returned: the inputs
    with a dimension that was guessed.

    Raises:
        BadInput: shapes that cannot be, no batch that could be split, or not into equal parts.
    """
    bound = bind_shapes(file, dataclasses.replace(request, dtype=None))
    where = batch_dims(file)
    if not where:
        raise BadInput(
            f"{shown_path(file.path)}: no input has a batch to split over {workers} workers",
            "its inputs are of fixed shapes; export it with a dynamic batch",
        )
    name, positions = next(iter(where.items()))
    part = bound.shapes[name][positions[0]]
    batch = part * parts
    if batch % workers:
        nearest = max(1, batch // workers) * workers
        raise BadInput(
            f"a batch of {batch} cannot be split over {workers} workers into equal parts",
            f"take a multiple of {workers}: --batch {nearest}",
        )
    shapes = {name: list(shape) for name, shape in bound.shapes.items()}
    for name, positions in where.items():
        for position in positions:
            if shapes[name][position] % part == 0:  # labels may be a multiple of it
                shapes[name][position] = shapes[name][position] // part * (batch // workers)
    asked = dataclasses.replace(request, shapes=shapes, unnamed=None, batch=None)
    return asked, BatchSplit(workers, batch, batch // workers), bound.assumed
