"""``cheap``: recompute only what costs next to nothing.

Source: Pleiss et al., "Memory-Efficient Implementation of DenseNets", arXiv 1707.06990: Concat
and BatchNorm outputs are recomputed, convolutions never are. Here for any graph. In PyTorch, which
keeps any set of tensors, that is all there is to it. MXNet allows less:

- The gradient of a kept operator reads the operator's original inputs. A convolution that is not
  to recompute is kept, so *all inputs of convolutions stay in memory*, and marking their makers
  would only add a copy. A save barrier is no way round it: behind one, the convolution is
  recomputed. No plan without costly recomputation gets under the sum of those inputs.
- What can go is what no costly operator's gradient reads: Concat outputs behind which a BatchNorm
  stands, residual sums, outputs of BatchNorm, large inputs of pooling.
- A cheap node whose output a costly gradient reads is kept as well; where its own gradient reads
  other tensors, a save barrier lets those go, and the cheap node is recomputed for itself.

In both, a chain of cheap nodes that restart from one another (residual sums) is alive all at once
when its last one is recomputed, so some of them are kept, by bytes.

Costly is what is so by its name, or by its density: the least FLOPs per byte at which all
that is cheaper sums up to at most 5% of the forward pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memcli.graph.training import Flags, Ints, TrainingGraph
from memcli.marks import AGAIN, KEPT
from memcli.search.base import Search
from memcli.search.cutpoints import CutPoint, cut_pass
from memcli.search.marks import keep_marks

NAME = "cheap"
COSTLY = frozenset(
    {
        # MXNet
        "Convolution",
        "Convolution_v1",
        "Deconvolution",
        "FullyConnected",
        "RNN",
        "dot",
        "batch_dot",
        "linalg_gemm",
        "linalg_gemm2",
        "_linalg_gemm",
        "_linalg_gemm2",
        "Correlation",
        "_contrib_DeformableConvolution",
        "_contrib_ModulatedDeformableConvolution",
        "_npi_matmul",
        "_contrib_interleaved_matmul_selfatt_qk",
        "_contrib_interleaved_matmul_selfatt_valatt",
        "_contrib_interleaved_matmul_encdec_qk",
        "_contrib_interleaved_matmul_encdec_valatt",
        "_np_dot",
        "_npi_tensordot",
        "khatri_rao",
        "_linalg_syrk",
        "_linalg_trmm",
        "_linalg_trsm",
        # ONNX, and what its exporters call attention
        "Conv",
        "ConvTranspose",
        "DeformConv",
        "Gemm",
        "MatMul",
        "Einsum",
        "LSTM",
        "GRU",
        "Attention",
        "MultiHeadAttention",
        "GroupQueryAttention",
        "FusedMatMul",
        # PyTorch
        *("conv1d", "conv2d", "conv3d", "convolution"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "einsum", "bilinear"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"),
    }
)
_CHEAP_PART = 0.05  # of the forward pass: what all that counts as cheap by density may cost
_PARTS = (2, 4, 8, 16, 32)  # stages of cheap bytes

Bools = NDArray[np.bool_]


def costly_by_name(graph: TrainingGraph) -> Bools:
    """Over forward nodes: operators whose work grows faster than their output."""
    return np.array([graph.op(v) in COSTLY for v in range(graph.n_forward)], bool)


def costly_by_density(graph: TrainingGraph) -> Bools:
    """Over forward nodes: all but those of least FLOPs per byte that make 5% of the FLOPs."""
    flops = graph.flops[: graph.n_forward]
    density = flops / np.maximum(graph.operator_bytes(), 1)
    rank = np.argsort(density, kind="stable")
    running = np.cumsum(flops[rank])
    costly = np.zeros(graph.n_forward, bool)
    costly[rank[running > _CHEAP_PART * flops.sum()]] = True
    return costly


def read_by_gradients(graph: TrainingGraph, holders: Bools) -> Bools:
    """Over forward nodes: whether the gradient of one of ``holders`` reads an output."""
    result = np.zeros(graph.n_forward, bool)
    begin = int(graph.in_ptr[graph.n_forward])
    reader = np.repeat(np.arange(graph.n_nodes), np.diff(graph.in_ptr))[begin:]
    source, ignored = graph.in_node[begin:], graph.in_ignored[begin:]
    owner = graph.owner[reader]
    rows = (owner >= 0) & (source < graph.n_forward) & (ignored == 0)
    rows[rows] &= holders[owner[rows]]
    result[source[rows]] = True
    return result


def plans(search: Search, costly: Bools, barriers: bool) -> list[tuple[Flags, list[list[int]]]]:
    """Plans that recompute no costly node.

    Args:
        search: the search on a graph.
        costly: over forward nodes, whether recomputing the node is too much.
        barriers: whether nodes may be kept behind save barriers.

    Returns:
        Of each plan the marks, and the nodes of each cut that it keeps.
    """
    graph = search.graph
    cheap = ~costly & (graph.can_recompute == 1)
    pinned = np.zeros(graph.n_forward, bool)
    if graph.keeps_inputs:
        pinned = read_by_gradients(graph, ~cheap)
    keep = keep_marks(search, barriers)
    recomputed: Ints = np.where(cheap & ~pinned, AGAIN, KEPT).astype(np.uint8)
    held = cheap & pinned
    recomputed[held] = keep[held]
    result: list[tuple[Flags, list[list[int]]]] = [(recomputed.astype(np.uint8), [])]
    sizes = np.where(recomputed == AGAIN, graph.operator_bytes(), 0)
    # of a cut, what a costly operator makes or reads is kept as it is
    cuts = []
    for cut in search.cuts:
        nodes = [v for v in cut.nodes if recomputed[v] == AGAIN]
        if nodes:
            cuts.append(CutPoint(cut.after, nodes, int(sizes[nodes].sum()), 0))
    for part in _PARTS:
        kept, _, _ = cut_pass(graph, cuts, sizes, int(sizes.sum()) // part)
        flags = recomputed.astype(np.uint8)
        for cut in kept:
            flags[cut.nodes] = keep[cut.nodes]
        result.append((flags, [c.nodes for c in kept]))
    # small tensors are not worth it
    for percentile in (50, 75, 90):
        chosen = (recomputed == AGAIN) & (sizes > 0)
        if chosen.any():
            flags = recomputed.astype(np.uint8)
            flags[chosen & (sizes < np.percentile(sizes[chosen], percentile))] = KEPT
            result.append((flags, []))
    return result


def run(search: Search) -> None:
    """Consider the plans of both meanings of costly, with and without save barriers."""
    graph = search.graph
    seen: set[bytes] = set()
    search.consider(NAME, search.space.none(), [])
    for costly in (costly_by_name(graph), costly_by_density(graph)):
        for barriers in (False, True):
            search.progress("cheap operators")
            for flags, cuts in plans(search, costly, barriers):
                if search.out_of_time:
                    return
                if flags.tobytes() not in seen:
                    seen.add(flags.tobytes())
                    search.consider(NAME, flags, cuts)
