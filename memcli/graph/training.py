"""The one graph that everything speaks: forward and backward of a training step, as arrays.

Nodes are numbered in the engine's execution order of the graph without any recomputation, the
forward part first. Entries are the tensors: node ``v`` makes entries ``first[v]`` to
``first[v + 1] - 1``. Sizes are elements and bytes; nothing here knows of files or of MXNet's API.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.uint8]


@dataclass
class Kind:
    """An operator with its attributes, shared by all nodes that are alike."""

    op: str
    attrs: dict[str, str]
    n_inputs: int
    n_outputs: int


@dataclass
class TrainingGraph:
    """A joint training graph. Arrays over nodes unless said otherwise."""

    n_forward: int  # nodes 0..n_forward-1 are the forward pass, variables included
    kind: Ints  # index into kinds, -1 for variables
    kinds: list[Kind]
    first: Ints  # nodes + 1: first entry of each node
    elements: Ints  # over entries: elements, -1 where the shape is only known at run time
    itemsize: Ints  # over entries: bytes of one element
    in_ptr: Ints  # nodes + 1: inputs of node v are in_ptr[v]..in_ptr[v+1]-1
    in_entry: Ints  # over inputs: the entry that is read
    in_node: Ints  # over inputs: the node that makes it
    in_ignored: Flags  # over inputs: read for its shape alone
    dep_ptr: Ints  # control dependencies, like inputs
    dep_node: Ints
    owner: Ints  # forward node whose gradient a backward node is, -1 none
    position: Ints  # place of a forward node in the file, -1 none
    outputs: Ints  # entries: forward outputs, then the gradient of each argument
    n_forward_outputs: int
    external: Ints  # over entries: 0, or -2 caller's memory, -3 allocated at run time
    pair_ptr: Ints  # in-place pairs of each node
    pair_in: Ints
    pair_out: Ints
    pair_identity: Flags
    ignores_all: Flags
    is_grad_add: Flags
    can_recompute: Flags  # over forward nodes: the engine may run it twice
    can_barrier: Flags  # over forward nodes: an identity may be put behind it
    # over forward nodes: cannot be run where nobody reads the first output
    fails_unread: Flags
    flops: NDArray[np.float64]  # floating-point operations of each node
    shape_ptr: Ints  # entries + 1: dimensions of entry e are shape_dim[shape_ptr[e]:...]
    shape_dim: Ints
    visible: Flags  # over entries: 0 for outputs that only gradients read (mean of BatchNorm)
    names: list[str]  # the file's names of forward nodes, the engine's of backward nodes
    file_names: list[str]  # of all nodes of the file, by position
    file_variable: list[bool]
    stage_at: dict[int, str] = field(default_factory=dict)  # position -> mirror_stage mark
    # rows (position, output, elements) of all visible tensors in depth-first order
    internals: Ints = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    alias: dict[int, int] = field(default_factory=dict)  # merged position -> the one that stayed
    # over forward nodes: 1 for what is there to reserve blocks of the pool; none where empty
    reserving: Flags = field(default_factory=lambda: np.zeros(0, np.uint8))
    # whether the gradient of a kept node reads the node's original inputs (MXNet), which stay with
    # it then, or any tensor can go by itself (PyTorch)
    keeps_inputs: bool = True

    @property
    def n_nodes(self) -> int:
        """All nodes of the graph without recomputation."""
        return len(self.kind)

    @property
    def n_entries(self) -> int:
        """All tensors of the graph without recomputation."""
        return len(self.elements)

    def __post_init__(self) -> None:
        self.variable = (self.kind < 0).astype(np.uint8)
        self.entry_node = np.repeat(np.arange(self.n_nodes), np.diff(self.first))
        self.heads = self.entry_node[self.outputs]
        self.entry_bytes = np.maximum(self.elements, 0) * self.itemsize
        if not len(self.reserving):
            self.reserving = np.zeros(self.n_forward, np.uint8)

    def without_reserved_blocks(self) -> TrainingGraph:
        """The graph as if nothing of the pool were reserved."""
        if not self.reserving.any():
            return self
        elements = self.elements.copy()
        elements[np.isin(self.entry_node, np.flatnonzero(self.reserving))] = 0
        return replace(self, elements=elements)

    def reads_of_own(self) -> Ints:
        """Places among the inputs where the gradient of a node reads an output of that node."""
        reader = np.repeat(np.arange(self.n_nodes), np.diff(self.in_ptr))
        own = (reader >= self.n_forward) & (self.in_node == self.owner[reader])
        return np.flatnonzero(own)

    def own_read(self) -> Flags:
        """Over forward nodes: 1 where a node's gradient reads the first output of the node."""
        at = self.reads_of_own()
        nodes = self.in_node[at]
        first = (self.in_entry[at] == self.first[nodes]) & (self.in_ignored[at] == 0)
        result = np.zeros(self.n_forward, np.uint8)
        result[nodes[first]] = 1
        return result

    def waited_for(self) -> Flags:
        """Over forward nodes: 1 where a node's gradient waits for the node, or reads from it."""
        waiter = np.repeat(np.arange(self.n_nodes), np.diff(self.dep_ptr))
        own = (waiter >= self.n_forward) & (self.dep_node == self.owner[waiter])
        result = np.zeros(self.n_forward, np.uint8)
        result[self.dep_node[own]] = 1
        result[self.in_node[self.reads_of_own()]] = 1
        return result

    def leading(self) -> Flags:
        """Over entries: 1 for the first output of a node, 0 for others."""
        result = np.zeros(self.n_entries, np.uint8)
        result[self.first[:-1][np.diff(self.first) > 0]] = 1
        return result

    def op(self, node: int) -> str:
        """Operator name of a node, ``null`` for a variable."""
        return self.kinds[self.kind[node]].op if self.kind[node] >= 0 else "null"

    def inputs(self, node: int) -> Ints:
        """Entries that a node reads."""
        return self.in_entry[self.in_ptr[node] : self.in_ptr[node + 1]]

    def entries(self, node: int) -> range:
        """Entries that a node makes."""
        return range(int(self.first[node]), int(self.first[node + 1]))

    def shape(self, entry: int) -> tuple[int, ...]:
        """Dimensions of an entry."""
        dims = self.shape_dim[self.shape_ptr[entry] : self.shape_ptr[entry + 1]]
        return tuple(dims.tolist())

    def node_bytes(self) -> Ints:
        """Bytes of all outputs of each node."""
        total = np.zeros(self.n_nodes, np.int64)
        np.add.at(total, self.entry_node, self.entry_bytes)
        return total

    def operator_bytes(self) -> Ints:
        """Over forward nodes: bytes of all outputs.

        0 for variables, which are the caller's, and for what reserves blocks.
        """
        sizes = self.node_bytes()[: self.n_forward]
        sizes[(self.variable[: self.n_forward] == 1) | (self.reserving == 1)] = 0
        return sizes

    def saved_entries(self) -> Flags:
        """Over entries: 1 where a backward node reads a tensor of the forward pass."""
        saved = np.zeros(self.n_entries, np.uint8)
        start = self.in_ptr[self.n_forward]
        read = self.in_entry[start:][self.in_ignored[start:] == 0]
        saved[read[self.entry_node[read] < self.n_forward]] = 1
        saved[self.variable[self.entry_node] == 1] = 0
        return saved

    def alone(self) -> NDArray[np.bool_]:
        """Over forward nodes: whether a node stands for one place in the file, and no other."""
        place = self.position[: self.n_forward]
        own = (place >= 0) & (place < len(self.file_names))
        return own & ~np.isin(place, list(self.alias.values()))

    def node_of_position(self) -> dict[int, int]:
        """Forward node of each place in the file; nodes that the engine merged are absent."""
        return {int(p): v for v, p in enumerate(self.position[: self.n_forward]) if p >= 0}


@dataclass
class Plan:
    """What to recompute: a mark for each forward node, and what the engine must run with."""

    strategy: str
    recompute: Flags  # over forward nodes: the marks of memcli.marks
    cuts: list[list[int]] = field(default_factory=list)  # kept forward nodes, a list for each cut
    match_range: int = 16
    # elements of blocks of the pool that the plan reserves, largest first
    reserved: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    notes: dict[str, Any] = field(default_factory=dict)
