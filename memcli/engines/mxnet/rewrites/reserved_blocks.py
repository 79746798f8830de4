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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.mxnet.rewrites.base import Rewrite
from memcli.errors import BadInput
from memcli.formats.symbol.check import attribute, attribute_keys
from memcli.formats.symbol.edits import INSERTED_KEY, MEND, GraphBuilder, Raw, without_nodes
from memcli.graph.training import TrainingGraph
from memcli.quoting import shown, whole_number

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis
    from memcli.graph.training import Plan

_PASSES_ON = "reshape_like"
_BLOCK = "_zeros"
_SLICES = ("slice_axis", "slice_like")
_LARGEST_BLOCK = 1 << 40  # elements, that a file may say of one
_LEAST_BLOCK = 1 << 16  # elements, of a block that is scaled down
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
class Reservation:
    """Blocks of memory that are there, and free, before a node of the file runs.

    ``blocks``: elements of each, no less than ``width``, which is the argument's size along
    ``axis``. The argument is the node's input ``slot``.
    """

    reader: int
    slot: int
    axis: int
    width: int
    blocks: Sequence[int]
    dtype: str

    def argument_of(self, raw: Raw) -> int:
        """The position of the argument that waits for the blocks."""
        position: int = raw["nodes"][self.reader]["inputs"][self.slot][0]
        return position


class ReservedBlocks(Rewrite[Reservation]):
    """Blocks that the pool has before the step needs them; see the module's text."""

    name = "reserved blocks"
    makes_tensors = False

    def find_for_plan(self, raw: Raw, analysis: Analysis, plan: Plan) -> Reservation | None:
        """The blocks that a plan reserves; None where no argument can wait for them."""
        if not len(plan.reserved):
            return None
        carrier = find_carrier(analysis.graph, analysis.inputs)
        if carrier is None or plan.reserved[0] < carrier.width:
            return None
        dtype, _ = block_dtype(analysis.graph)
        # at a smaller batch than it was searched for at, a block may be too small to be read
        blocks = [elements for elements in plan.reserved.tolist() if elements >= carrier.width]
        return Reservation(carrier.reader, carrier.slot, carrier.axis, carrier.width, blocks, dtype)

    def relocated(self, found: Reservation, moved: Mapping[int, int]) -> Reservation:
        """See :meth:`Rewrite.relocated`."""
        return replace(found, reader=moved[found.reader])

    def apply(self, raw: Raw, found: Reservation) -> tuple[Raw, dict[int, int]]:
        """See :func:`insert_reservation`."""
        return insert_reservation(raw, found)

    def recognizes(self, nodes: Sequence[Raw], position: int) -> bool:
        """The blocks, which read nothing, the slices of them, and what hands the argument on."""
        op, reads = nodes[position]["op"], bool(nodes[position]["inputs"])
        return op in (_PASSES_ON, *_SLICES) if reads else op == _BLOCK

    def describe(self, found: Reservation) -> str:
        """See :meth:`Rewrite.describe`."""
        return f"{len(found.blocks)} reserved blocks"


def insert_reservation(raw: Raw, wanted: Reservation) -> tuple[Raw, dict[int, int]]:
    """Nodes that make the blocks, and an identity behind the argument that waits for all of them.

    Returns:
        The new content, and the new position of each old one.
    """
    new = GraphBuilder(raw)
    for position, node in enumerate(raw["nodes"]):
        if position == wanted.reader:
            source = node["inputs"][wanted.slot]
            argument = raw["nodes"][source[0]]["name"]
            read: list[list[int]] = []
            for number, elements in enumerate(wanted.blocks):
                name = f"{argument}_reserved{number}"
                shape = f"({elements},)"
                block = new.insert(_BLOCK, name, [], shape=shape, dtype=wanted.dtype)
                first = {} if read else {"axis": "0", "begin": "0", "end": str(wanted.width)}
                op = _SLICES[len(read)]
                part = new.insert(op, f"{name}_read", [[block, 0, 0], *read], **first)
                read = [[part, 0, 0]]
            place = new.insert(
                _PASSES_ON,
                f"{argument}_behind",
                [[new.moved[source[0]], *source[1:]], *read],
                lhs_begin=str(wanted.axis),
                lhs_end=str(wanted.axis + 1),
                rhs_begin="0",
                rhs_end="1",
            )
            new.turned[position, wanted.slot] = (place, 0)
        new.keep(position)
    return new.finished(), new.moved


def waiting_arguments(raw: Raw) -> list[int]:
    """Positions of the arguments that an identity of :func:`insert_reservation` is behind."""
    nodes = raw["nodes"]
    return [nodes[p]["inputs"][0][0] for p in reservation(raw) if nodes[p]["op"] == _PASSES_ON]


def reservation(raw: Mapping[str, Any]) -> list[int]:
    """Positions of all that :func:`insert_reservation` put into the content."""
    return [
        position
        for position, node in enumerate(raw["nodes"])
        if node["op"] in (_BLOCK, *_SLICES, _PASSES_ON)
        and attribute(node, INSERTED_KEY) is not None
    ]


def scaled_reservation(raw: Raw, new: int, old: int) -> Raw:
    """The content with its reserved blocks made for another batch.

    Args:
        raw: the symbol file's content.
        new: the batch.
        old: the batch that the blocks were reserved for.

    Raises:
        BadInput: a block whose size cannot be read.
    """
    nodes = list(raw["nodes"])
    for position in reservation(raw):
        node = nodes[position]
        if node["op"] != _BLOCK:
            continue
        table = next((t for t in attribute_keys(node) if "shape" in node[t]), "")
        shape = node[table]["shape"] if table else None
        size = None if shape is None else whole_number(shape.strip("()[], "), _LARGEST_BLOCK)
        if size is None:
            raise BadInput(f"nodes[{position}]: a reserved block of shape {shown(shape)}", MEND)
        # a slice of each is read, as long as some dimension of an argument
        elements = max(size * new // old, min(size, _LEAST_BLOCK))
        nodes[position] = {**node, table: {**node[table], "shape": f"({elements},)"}}
    return {**raw, "nodes": nodes}


def without_reservation(raw: Raw, where: str) -> Raw:
    """The content without what :func:`insert_reservation` put into it; all else stays.

    Args:
        raw: the symbol file's content.
        where: begins a message.

    Raises:
        BadInput: the graph was changed since.
    """
    inserted = set(reservation(raw))
    return without_nodes(raw, inserted, where) if inserted else raw


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

    Args:
        graph: the training graph.
        inputs: names of the arguments that are fed, whose leading dimension is the batch.
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
