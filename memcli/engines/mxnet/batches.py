"""One MXNet graph at any batch: bound at each, and checked to be the same network."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re

import numpy as np

from memcli.engines.batch_series import BatchSeries
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.errors import BadInput
from memcli.formats.symbol.file import SymbolFile
from memcli.graph.training import Plan, TrainingGraph
from memcli.request import Progress, ShapeRequest

# MXNet's builds count the elements of a tensor in 32 bits (INT64_TENSOR_SIZE is off).
MOST_ELEMENTS = (1 << 31) - 1
_LIMIT = f"MXNet's tensors have at most {MOST_ELEMENTS:,}"

_RESHAPES = frozenset({"Reshape", "reshape", "_np_reshape", "_npx_reshape"})
_MEND = "export the network with 0 or -1 in place of the batch (reshape, begin states, slices)"


class Batches(BatchSeries[Analysis]):
    """Analyses of a graph by batch; each batch is bound once.

    The batch is the leading dimension of ``data``, or else of the first input. At another batch,
    the leading dimension of every input that has it is changed, of labels also a multiple of it (a
    row for each step), and of inputs such as recurrent states (layers, batch, units) the second
    one; what MXNet had inferred is inferred again.
    """

    engine = "MXNet"

    def __init__(
        self, source: SymbolFile, request: ShapeRequest, on_progress: Progress | None = None
    ) -> None:
        """Analyze the graph as it comes, and once at another batch.

        Raises:
            BadInput: bad shapes, nothing that has a batch, or a batch that is built in.
            EngineFailed: MXNet is missing or crashed.
        """
        self.source = source
        self.request = request
        first = analyze(source.raw, request, on_progress=on_progress)
        self.roles = {a["name"]: str(a["role"]) for a in first.arguments}
        super().__init__(source.path, _given_batch(first, source.path), first, on_progress)
        self.check_first_change()

    def hint(self, problem: str) -> str:
        """How networks are exported so that the batch stays open."""
        return "" if self.is_limit(problem) else _MEND

    def is_limit(self, problem: str) -> bool:
        """Whether a tensor would have more elements than MXNet counts."""
        return _LIMIT in problem

    def analyzed(self, batch: int) -> Analysis:
        """The graph, bound at a batch."""
        return analyze(self.source.raw, self.request_for(batch))

    def request_for(self, batch: int) -> ShapeRequest:
        """The user's request at another batch.

        What the file or a guess gave is named, too, so that all batches share one set of shapes.
        """
        shapes = {}
        assumed = set(self.first.assumed)
        for node in self.source.nodes:
            if not node.is_variable or self.roles.get(node.name, "parameter") == "parameter":
                continue
            if node.name in assumed or _is_whole(node.attrs.get("__shape__", "")):
                shape = self.first.inputs[node.name]
                shapes[node.name] = self._scaled(shape, batch, self.roles[node.name])
        for name, shape in self.request.shapes.items():
            shapes[name] = self._scaled(shape, batch, self._role(name))
        unnamed = self.request.unnamed
        return dataclasses.replace(
            self.request,
            shapes=shapes,
            unnamed=None if unnamed is None else self._scaled(unnamed, batch, "input"),
            batch=None,
        )

    def _role(self, name: str) -> str:
        """The role of what a name, or a glob of names, stands for."""
        roles = {r for n, r in self.roles.items() if n == name or fnmatch.fnmatchcase(n, name)}
        return "label" if roles == {"label"} else "input"

    def _scaled(self, shape: list[int], batch: int, role: str) -> list[int]:
        old = self.given
        if shape and (shape[0] == old or (role == "label" and shape[0] % old == 0)):
            return [shape[0] // old * batch, *shape[1:]]
        if role == "input" and len(shape) == 3 and shape[1] == old:
            return [shape[0], batch, shape[2]]
        return list(shape)

    def cheap(self) -> list[int]:
        """Batches that MXNet need not be asked about.

        Those that it was asked about, and the first too large one where it can be told from how
        tensors grew when the batch was changed.
        """
        known = super().cheap()
        grown = self._largest_grown()[1]
        if grown:
            known.append(MOST_ELEMENTS * self.given // grown + 1)
        return known

    def _largest_grown(self) -> tuple[int, int]:
        """The largest tensor that grows with the batch, and its elements as the graph came."""
        graph = self.first.graph
        for other, analysis in self.analyses.items():
            if other != self.given and same_structure(graph, analysis.graph):
                grown = graph.elements * other == analysis.graph.elements * self.given
                elements = np.where(grown, graph.elements, 0)
                return int(elements.argmax()), int(elements.max())
        return 0, 0

    def too_large(self, batch: int) -> str:
        """Which tensor would be too large, told without asking MXNet; '' where none is known."""
        for name, shape in self.first.inputs.items():
            size = math.prod(self._scaled(shape, batch, self.roles[name]))
            if size > MOST_ELEMENTS:
                return f"input '{name}' would have {size:,} elements; {_LIMIT}"
        entry, grown = self._largest_grown()
        size = grown * batch // self.given
        return _too_many(self.first.graph, entry, size) if size > MOST_ELEMENTS else ""

    def problem(self, analysis: Analysis, batch: int) -> str:
        """Why the graph at this batch is not the network that was given, or cannot run."""
        before = {
            a["prepared"]: a["shape"] for a in self.first.arguments if a["role"] == "parameter"
        }
        for argument in analysis.arguments:
            old = before.get(argument["prepared"])
            if old is not None and old != argument["shape"]:
                return (
                    f"parameter '{argument['name']}' would be of shape {argument['shape']} and "
                    f"no longer {old}"
                )
        graph = analysis.graph
        for v in range(graph.n_forward):
            # MXNet takes a reshape to another number of elements for granted
            if graph.op(v) in _RESHAPES and graph.in_ptr[v] < graph.in_ptr[v + 1]:
                read = int(graph.elements[graph.inputs(v)[0]])
                made = int(graph.elements[graph.first[v]])
                if read != made and not self._mismatched_at_first(graph.names[v]):
                    return (
                        f"node '{graph.names[v]}' ({graph.op(v)}) makes {made:,} elements "
                        f"of {read:,}"
                    )
        largest = int(graph.elements.argmax())
        if graph.elements[largest] > MOST_ELEMENTS:
            return _too_many(graph, largest, int(graph.elements[largest]))
        return ""

    def _mismatched_at_first(self, name: str) -> bool:
        graph = self.first.graph
        for v in range(graph.n_forward):
            if graph.names[v] == name and graph.in_ptr[v] < graph.in_ptr[v + 1]:
                read = graph.elements[graph.inputs(v)[0]]
                return bool(read != graph.elements[graph.first[v]])
        return False


def _given_batch(analysis: Analysis, path: str) -> int:
    fed = [a for a in analysis.arguments if a["role"] == "input" and a["shape"]]
    if not fed:
        raise BadInput(f"{path}: no input has a batch to change", "memcli inspect lists the inputs")
    return int(min(fed, key=lambda a: a["name"] != "data")["shape"][0])


def _too_many(graph: TrainingGraph, entry: int, elements: int) -> str:
    name = graph.names[int(graph.entry_node[entry])]
    return f"a tensor of '{name}' would have {elements:,} elements; {_LIMIT}"


def _is_whole(text: str) -> bool:
    """Whether a ``__shape__`` attribute leaves no dimension open."""
    dimensions = re.findall(r"-?\d+", text)
    return bool(dimensions) and all(int(d) > 0 for d in dimensions)


def same_structure(one: TrainingGraph, other: TrainingGraph) -> bool:
    """Whether two graphs have the same nodes and connections, sizes aside."""
    return (
        one.n_forward == other.n_forward
        and [one.op(v) for v in range(one.n_nodes)] == [other.op(v) for v in range(other.n_nodes)]
        and all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("first", "in_ptr", "in_entry", "owner", "position", "outputs")
        )
    )


def transferred(plan: Plan, one: TrainingGraph, other: TrainingGraph, model: MXNetModel) -> Plan:
    """A plan of graph ``one`` as a plan of ``other``, the same file at another batch.

    By node where both have the same structure, else by the nodes' places in the file. ``model``
    is that of ``other``: recomputations that MXNet would fail to run there are left out.
    """
    if same_structure(one, other):
        flags, cuts = plan.recompute, plan.cuts
    else:
        node_of = other.node_of_position()
        to = {v: node_of[int(p)] for v, p in enumerate(one.position) if int(p) in node_of}
        flags = model.none()
        for v in np.flatnonzero(plan.recompute).tolist():
            if v in to:
                flags[to[v]] = plan.recompute[v]
        cuts = [[to[v] for v in cut if v in to] for cut in plan.cuts]
    flags = model.without_unread((flags * other.can_recompute).astype(np.uint8))
    reserved = plan.reserved
    if len(reserved):
        reserved = reserved * _largest_pooled(other) // _largest_pooled(one)
    cuts = [c for c in cuts if c]
    return dataclasses.replace(plan, recompute=flags, cuts=cuts, reserved=reserved)


def _largest_pooled(graph: TrainingGraph) -> int:
    """Elements of the largest tensor of the pool, which grows with the batch."""
    pooled = (graph.external == 0) & (graph.variable[graph.entry_node] == 0)
    return int(graph.elements[pooled].max(initial=1))
