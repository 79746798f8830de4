"""Builds the :class:`TrainingGraph` from what MXNet showed of its joint graph.

MXNet tells nodes, edges, shapes and bytes; what it does not tell (in-place pairs, inputs that are
read for their shape alone, which operators draw random numbers) comes from the table of its
registrations, :mod:`memcli.engines.mxnet.memory.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.mxnet.memory import operators as table
from memcli.engines.mxnet.memory.pool import DYNAMIC, EXTERNAL
from memcli.engines.mxnet.rewrites.reserved_blocks import reservation
from memcli.graph.flops import backward_flops, forward_flops
from memcli.graph.training import Flags, Kind, TrainingGraph
from memcli.quoting import whole_number

# MXNet replays none of these: Dropout it never mirrors; the others would draw or count again.
NEVER_RECOMPUTED = table.OPAQUE_OPERATORS
# Operators with auxiliary states that are seen to update them in the backward pass alone.
_STATE_SAFE = frozenset({"BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm"})


def can_recompute(op: str, attrs: Mapping[str, str]) -> bool:
    """Whether MXNet gets the same numbers, and the same states, when it runs the node twice.

    Args:
        op: the operator's name.
        attrs: its attributes, as the file spells them.
    """
    if op in NEVER_RECOMPUTED or table.draws_random(op, attrs):
        return False
    if op in table.STATE_IN_FORWARD:
        return False
    return op not in table.MUTATING_OPERATORS or op in _STATE_SAFE


# Operators whose forward kernel insists on writing its output (``CHECK_EQ(req[0], kWriteTo)``).
_INSISTS = frozenset(
    {
        "BatchNorm_v1",
        "BilinearSampler",
        "Convolution_v1",
        "Crop",
        "Deconvolution",
        "Embedding",
        "GridGenerator",
        "L2Normalization",
        "Pad",
        "_contrib_DeformableConvolution",
        "_contrib_ModulatedDeformableConvolution",
        "_contrib_SyncBatchNorm",
        "_contrib_boolean_mask",
        "_sparse_retain",
        "cast_storage",
        "choose_element_0index",
        "diag",
        "hard_sigmoid",
        "pick",
        "take",
    }
)
# Operators that make what else their gradients read (statistics, places) whether anybody reads
# their first output or not. Others, such as LayerNorm, return at once if nobody does, and the
# gradients then read what was in memory.
_MAKES_THE_REST = frozenset(
    {
        "BatchNorm",
        "InstanceNorm",
        "LRN",
        "Pooling",
        "ROIPooling",
        "SpatialTransformer",
        "Correlation",
        "_linalg_det",
        "_linalg_slogdet",
    }
)


def fails_unread(op: str, attrs: Mapping[str, str]) -> bool:
    """Whether MXNet fails where it runs the operator and nobody reads its first output.

    Convolution does not with oneDNN or cuDNN in float32; its plain kernel and the depthwise one
    of GPUs do.

    Args:
        op: the operator's name.
        attrs: its attributes, as the file spells them.
    """
    if op == "Convolution":
        return attrs.get("num_group", "1") != "1" and attrs.get("num_group") == attrs.get(
            "num_filter"
        )
    return op in _INSISTS or op.startswith(("_np", "_contrib_quantize"))


def build(result: Mapping[str, Any], arrays_path: Path, raw: Mapping[str, Any]) -> TrainingGraph:
    """The joint graph that an analysis job found.

    Args:
        result: what the job returned.
        arrays_path: the file of its arrays (``.npz``).
        raw: the content of the symbol's file.
    """
    names = [node["name"] for node in raw["nodes"]]
    with np.load(arrays_path) as stored:
        a = {key: stored[key] for key in stored.files}
    kinds = [Kind(op, attrs, n_in, n_out) for op, attrs, n_in, n_out in result["kinds"]]
    kind = a["node_kind"]
    n = len(kind)
    n_forward = int(result["n_forward"])
    first, in_ptr, in_entry = a["first_entry"], a["in_ptr"], a["in_entry"]
    elements, itemsize = a["elements"], a["dtype_bytes"]
    entry_node = np.repeat(np.arange(n), np.diff(first))
    n_outputs = int(result["n_forward_outputs"])
    external = np.zeros(len(elements), np.int64)
    external[a["outputs"][n_outputs:]] = EXTERNAL
    external[a["dynamic"]] = DYNAMIC

    pairs = []
    ignored_of = []
    for k in kinds:
        pairs.append(list(table.inplace_pairs(k.op, k.attrs, k.n_inputs, k.n_outputs)))
        ignored_of.append(set(table.ignored_inputs(k.op, k.attrs, k.n_inputs)))
    in_ignored = np.zeros(len(in_entry), np.uint8)
    ignores_all = np.zeros(n, np.uint8)
    pair_ptr = np.zeros(n + 1, np.int64)
    flat_pairs: list[tuple[int, int, bool]] = []
    recompute = np.zeros(n_forward, np.uint8)
    unread = np.zeros(n_forward, np.uint8)
    strict = [fails_unread(k.op, k.attrs) for k in kinds]
    # Operators without inputs (_zeros of a begin state) may get their shape from their readers
    # alone; a copy that a gradient reads has none, and MXNet then fails to bind.
    recomputable = [k.n_inputs > 0 and can_recompute(k.op, k.attrs) for k in kinds]
    for v in range(n):
        of = int(kind[v])
        if of >= 0:
            flat_pairs.extend(pairs[of])
            for i in ignored_of[of]:
                if i < in_ptr[v + 1] - in_ptr[v]:
                    in_ignored[in_ptr[v] + i] = 1
            ignores_all[v] = bool(ignored_of[of]) and len(ignored_of[of]) == kinds[of].n_inputs
            if v < n_forward:
                half = kinds[of].op == "Convolution" and itemsize[first[v]] != 4
                unread[v] = strict[of] or half
            # losses that were put on for planning are not in the file that gets the marks
            if v < n_forward and recomputable[of] and a["position"][v] < len(names):
                recompute[v] = 1
        pair_ptr[v + 1] = len(flat_pairs)
    position = a["position"]
    engine_names = result["node_names"]
    shown = [
        names[position[v]]
        if v < n_forward and 0 <= position[v] < len(names)
        else _original(engine_names[v], names)
        for v in range(n)
    ]
    is_add = np.array([k.op == "_grad_add" for k in kinds] + [False])
    marks = {
        int(name[1:]): attrs["__mirror_stage__"]
        for name, attrs in result["attributes"].items()
        if whole_number(name[1:]) is not None
    }
    graph = TrainingGraph(
        n_forward=n_forward,
        kind=kind,
        kinds=kinds,
        first=first,
        elements=elements,
        itemsize=itemsize,
        in_ptr=in_ptr,
        in_entry=in_entry,
        in_node=entry_node[in_entry],
        in_ignored=in_ignored,
        dep_ptr=a["dep_ptr"],
        dep_node=a["dep_node"],
        owner=a["owner"],
        position=position,
        outputs=a["outputs"],
        n_forward_outputs=n_outputs,
        external=external,
        pair_ptr=pair_ptr,
        pair_in=np.array([p[0] for p in flat_pairs], np.int64),
        pair_out=np.array([p[1] for p in flat_pairs], np.int64),
        pair_identity=np.array([p[2] for p in flat_pairs], np.uint8),
        ignores_all=ignores_all,
        is_grad_add=is_add[kind].astype(np.uint8),
        can_recompute=recompute,
        can_barrier=np.zeros(n_forward, np.uint8),
        fails_unread=unread,
        flops=np.zeros(n, np.float64),
        visible=_visible(a["internals"], position, first),
        names=shown,
        shape_ptr=a["shape_ptr"],
        shape_dim=a["shape_dim"],
        file_names=names,
        file_variable=[node["op"] == "null" for node in raw["nodes"]],
        stage_at={p: mark for p, mark in marks.items() if p < len(names)},
        internals=a["internals"],
        reserving=np.isin(position[:n_forward], reservation(raw)).astype(np.uint8),
    )
    graph.alias = find_merged(raw, graph.node_of_position())
    graph.fails_unread |= _reads_the_rest(graph)
    graph.flops = _count_flops(graph)
    graph.can_barrier = _can_barrier(graph)
    return graph


def _reads_the_rest(graph: TrainingGraph) -> Flags:
    """Over forward nodes: 1 where a gradient reads other outputs of a node than its first.

    The node may not make those if nobody reads the first.
    """
    at = graph.reads_of_own()
    nodes = graph.in_node[at]
    rest = (graph.in_entry[at] > graph.first[nodes]) & (graph.in_ignored[at] == 0)
    result = np.zeros(graph.n_forward, np.uint8)
    result[[v for v in np.unique(nodes[rest]) if graph.op(v) not in _MAKES_THE_REST]] = 1
    return result


def _can_barrier(graph: TrainingGraph) -> Flags:
    """Flags over forward nodes: where an identity may be put between a node and its readers.

    Outputs of the graph keep their names, so no head qualifies, nor does what only a loss that
    was put on for planning reads; a node without a gradient has nothing to recompute for.
    """
    n_forward = graph.n_forward
    result = np.zeros(n_forward, np.uint8)
    has_gradient = np.zeros(n_forward, bool)
    owners = graph.owner[n_forward:]
    has_gradient[owners[owners >= 0]] = True
    read = np.zeros(n_forward, bool)
    for v in range(n_forward):
        own = 0 <= graph.position[v] < len(graph.file_names)
        for i in range(graph.in_ptr[v], graph.in_ptr[v + 1]):
            source, entry = graph.in_node[i], graph.in_entry[i]
            if not own:
                has_gradient[source] = False
            elif not graph.in_ignored[i]:
                read[source] = True
            if graph.external[entry] or graph.elements[entry] < 0:
                has_gradient[source] = False
    result[graph.can_recompute.astype(bool) & has_gradient & read] = 1
    result[graph.entry_node[graph.outputs[: graph.n_forward_outputs]]] = 0
    return result


def _visible(
    internals: np.ndarray[Any, Any], position: np.ndarray[Any, Any], first: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Flags over entries: outputs that other operators can read. All where MXNet does not say."""
    visible = np.ones(int(first[-1]), np.uint8)
    count: dict[int, int] = {}
    for place, index, _ in internals.tolist():
        count[place] = max(count.get(place, 0), index + 1)
    for node, place in enumerate(position.tolist()):
        if place in count:
            visible[first[node] + count[place] : first[node + 1]] = 0
    return visible


def find_merged(raw: Mapping[str, Any], present: Mapping[int, int]) -> dict[int, int]:
    """Operators that MXNet merged into an equal one (its common-subexpression pass).

    Equal are nodes of one operator with the same attributes and the same inputs. ``present``
    holds the positions that are left; result: merged position -> the position that stands for it.
    """
    alias: dict[int, int] = {}
    stays: dict[Any, int] = {}
    missing = []

    def key(node: Mapping[str, Any]) -> Any:
        attrs: dict[str, str] = {}
        for name in ("param", "attr", "attrs"):
            attrs.update(node.get(name) or {})
        inputs = tuple((alias.get(i[0], i[0]), i[1] if len(i) > 1 else 0) for i in node["inputs"])
        marks = ("__force_mirroring__", "force_mirroring")
        return node["op"], tuple(sorted(kv for kv in attrs.items() if kv[0] not in marks)), inputs

    operators = [p for p, node in enumerate(raw["nodes"]) if node["op"] != "null"]
    if all(p in present for p in operators):
        return alias
    # Merging one pair can make the readers of both equal, so keys are looked up in file order.
    for position in operators:
        if position in present:
            stays.setdefault(key(raw["nodes"][position]), position)
        else:
            missing.append(position)
    changed = True
    while changed and missing:
        changed = False
        for position in list(missing):
            found = stays.get(key(raw["nodes"][position]))
            if found is not None:
                alias[position] = found
                missing.remove(position)
                changed = True
        for position in operators:
            if position in present:
                stays.setdefault(key(raw["nodes"][position]), position)
    return alias


def _original(engine_name: str, names: list[str]) -> str:
    """``n17_backward`` with the file's name of node 17; nodes behind the file's are the loss."""
    head, _, tail = engine_name.partition("_")
    number = whole_number(head[1:]) if head[:1] == "n" else None
    if number is not None:
        name = names[number] if number < len(names) else "added_loss"
        return name + ("_" + tail if tail else "")
    return engine_name


def _count_flops(graph: TrainingGraph) -> np.ndarray[Any, np.dtype[np.float64]]:
    flops = np.zeros(graph.n_nodes, np.float64)
    known: dict[Any, float] = {}
    for v in range(graph.n_nodes):
        if graph.kind[v] < 0:
            continue
        kind = graph.kinds[graph.kind[v]]
        inputs = [graph.shape(e) for e in graph.inputs(v)]
        outputs = [graph.shape(e) for e in graph.entries(v)]
        if v >= graph.n_forward:
            own = flops[graph.owner[v]] if graph.owner[v] >= 0 else 0.0
            flops[v] = backward_flops(kind.op, inputs, outputs, float(own))
            continue
        key = (int(graph.kind[v]), tuple(inputs), tuple(outputs))
        if key not in known:
            known[key] = forward_flops(kind.op, kind.attrs, inputs, outputs)
        flops[v] = known[key]
    return flops
