"""Where the nodes of a training graph are in the file that it was made from."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from memcli.graph.training import Flags, TrainingGraph


def with_merged(graph: TrainingGraph, positions: Collection[int]) -> set[int]:
    """Positions and those of the equal nodes that MXNet merges into them.

    What is done to one must be done to all, so that they are merged again.
    """
    return set(positions) | {p for p, stays in graph.alias.items() if stays in positions}


def positions_of(graph: TrainingGraph, flags: Flags) -> set[int]:
    """Positions of the operators among flagged forward nodes, with those merged into them.

    Args:
        graph: the training graph.
        flags: over forward nodes.
    """
    n_file = len(graph.file_names)
    positions = {
        int(graph.position[v])
        for v in np.flatnonzero(flags)
        if 0 <= graph.position[v] < n_file and not graph.variable[v]
    }
    return with_merged(graph, positions)
