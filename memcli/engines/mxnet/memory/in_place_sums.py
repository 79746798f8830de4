"""Which gradients MXNet's operators add to what is there already, and which may.

In a chain of ``_grad_add`` MXNet may let an operator add its gradient to the sum so far
(``kAddTo``) instead of writing it (``src/executor/inplace_addto_detect_pass.cc``). Only an operator
that moves values then adds the very numbers that it would have written: a convolution or a dense
layer adds products one by one, which is another order of additions, and a fused multiply-add of a
GPU rounds once where a product and a sum round twice.
"""

from __future__ import annotations

import numpy as np

from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.graph.training import Plan, TrainingGraph

# Operators whose gradients move values and compute none.
_MOVE = frozenset(
    {
        "Concat",
        "SliceChannel",
        "slice",
        "slice_axis",
        "_copy",
        "Reshape",
        "Flatten",
        "expand_dims",
        "transpose",
        "SwapAxis",
        "stack",
        "elemwise_add",
        "add_n",
        "_plus_scalar",
    }
)


def is_move(graph: TrainingGraph, entry: int) -> bool:
    """Whether a gradient is made by an operator that only moves values."""
    node = int(graph.entry_node[entry])
    owner = int(graph.owner[node]) if node >= graph.n_forward else node
    return owner >= 0 and graph.op(owner) in _MOVE


def plan_keeps_sums(graph: TrainingGraph, model: MXNetModel, plan: Plan) -> bool:
    """Whether the same operators add their gradients in place, with a plan and without.

    MXNet decides it by where its memory plan puts a sum and by what runs first, and a plan may
    change both. Operators that only move values are free to differ.
    """
    adds = np.flatnonzero(graph.is_grad_add)
    adds = adds[[not is_move(graph, int(graph.inputs(v)[1])) for v in adds]]
    if not len(adds):
        return True
    base = model.added_in_place(model.none())
    now = model.added_in_place(plan.recompute, plan.match_range)
    return bool((base[adds] == now[adds]).all())
