"""Reserved blocks: the pool has the blocks that a plan needs before anything asks for one.

MXNet's pool gives a tensor the free block that fits best, or a smaller one that grows, or a new
one, in the order of execution, knowing nothing of what comes. A block that grew for one moment is
large for all of the step, so that the pool is larger than what any pool needs, by 1 to 30%. Blocks
that are allocated, and freed, in front of everything else are there when they are asked for, and
most tensors find one of their own size; which, the search tries out with the marks. What is
reserved at the right sizes at once keeps the pool at what the plan needs.

Rules:

1. ``_zeros`` nodes make the blocks. A chain of slices reads them, each one element wide or some,
   so that all of them are alive at once, then none.
2. ``reshape_like`` hands a small argument on to its one reader, as it is; it looks at the last
   slice's shape alone, which makes MXNet run the chain first. The argument's gradient comes back
   through an identity.
3. The argument is not written to by its reader (BatchNorm's ``gamma``, auxiliary states), is read
   once, and is small: a copy of it stays for the whole step.
4. Its reader runs before, or close to, everything else.

Exact: nothing reads what the blocks hold, and the argument's values and gradient pass unchanged.
The zeros are written once a step: some milliseconds for each GB on a GPU. The sizes are those of
the batch that the plan is for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from memcli.graph.training import TrainingGraph

# Readers, and which of their inputs they only read.
_READERS = {
    "Convolution": (1, 2),
    "Deconvolution": (1, 2),
    "FullyConnected": (0, 1, 2),
    "BatchNorm": (2,),
    "LayerNorm": (1, 2),
    "dot": (0, 1),
    "batch_dot": (0, 1),
    "elemwise_add": (0, 1),
    "elemwise_mul": (0, 1),
    "broadcast_add": (0, 1),
    "broadcast_mul": (0, 1),
}
# The argument is at most this part of the largest tensor; one of so many bytes is as good as any.
_SMALL = 1 / 256
_TINY = 4096
# How many operators may run before: what they leave in the pool is not foreseen.
_EARLY = 24


@dataclass(frozen=True)
class Carrier:
    """The argument in front of whose reader the blocks are allocated, by places in the file."""

    reader: int
    slot: int
    argument: int
    axis: int  # of the argument, the same at every batch
    width: int  # along it: the least elements of a block
    before: int  # the reader among the graph's forward nodes
    size: int  # bytes of the argument


def find_carrier(graph: TrainingGraph, inputs: Collection[str]) -> Carrier | None:
    """Where a graph may reserve blocks; None where no argument is suited.

    ``inputs``: names of the arguments that are fed, whose leading dimension is the batch.
    """
    forward = graph.in_entry[: graph.in_ptr[graph.n_forward]]
    times_read = np.bincount(forward, minlength=graph.n_entries)
    most = _SMALL * int(graph.entry_bytes.max(initial=0))
    alone = graph.alone()
    found: list[tuple[int, Carrier]] = []
    seen = 0
    for node in range(graph.n_forward):
        if graph.variable[node]:
            continue
        seen += 1
        if seen > _EARLY:
            break
        for slot in _READERS.get(graph.op(node), ()):
            at = int(graph.in_ptr[node]) + slot
            if at >= graph.in_ptr[node + 1]:
                continue
            entry, source = int(graph.in_entry[at]), int(graph.in_node[at])
            shape, size = graph.shape(entry), int(graph.entry_bytes[entry])
            axis = len(shape) - 1 if graph.names[source] in inputs else 0
            if (
                graph.variable[source]
                and times_read[entry] == 1
                and 0 < size <= most
                and (axis > 0 or graph.names[source] not in inputs)
                and alone[node]
                and alone[source]
            ):
                places = int(graph.position[node]), slot, int(graph.position[source])
                found.append((size, Carrier(*places, axis, shape[axis], node, size)))
        if any(size <= _TINY for size, _ in found):
            break
    return min(found, key=lambda pair: pair[0])[1] if found else None


def block_dtype(graph: TrainingGraph) -> tuple[str, int]:
    """The type of what fills most of the pool, and bytes of an element."""
    pooled = np.flatnonzero((graph.external == 0) & (graph.elements > 0))
    sizes, items = graph.entry_bytes[pooled], graph.itemsize[pooled]
    return ("float16", 2) if 2 * sizes[items == 2].sum() > sizes.sum() else ("float32", 4)
