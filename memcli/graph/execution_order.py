"""The order in which a training graph runs, with the copies that a plan's marks put into it.

Compiled by numba, on the arrays of :class:`memcli.graph.training.TrainingGraph`. Nodes ``0..n-1``
are the graph without marks; the recomputed copy (mirror) of forward node ``f`` is ``n + f``. Marks
are those of :mod:`memcli.marks`, with save barriers for the third.

Source: MXNet 1.9.1, ``src/nnvm/gradient.cc``, and nnvm's ``DFSVisit``.
"""

from __future__ import annotations

import numpy as np

from memcli.compiled import compiled
from memcli.marks import AGAIN


@compiled
def mapped(node, of_node, mark, owner, n):
    """The node that ``of_node`` reads where the graph without marks has ``node``.

    A recomputed node's copy, and the backward of a recomputed node, read copies where there are
    some; all others read the originals (``Gradient`` in gradient.cc). Behind a save barrier only
    the node's own gradient reads the copy.

    Args:
        node: of the graph without marks, that is read.
        of_node: that reads it; from ``n`` on a recomputed copy.
        mark: over forward nodes, the plan.
        owner: over nodes, the forward node that a backward node belongs to, -1 for others.
        n: nodes of the graph without marks.

    Returns:
        ``node``, or ``n + node`` for its recomputed copy.
    """
    if node >= mark.shape[0] or not mark[node]:
        return node
    if of_node >= n:
        return n + node if mark[node] == AGAIN else node
    holder = owner[of_node]
    if holder >= 0 and mark[holder] and (mark[node] == AGAIN or holder == node):
        return n + node
    return node


@compiled
def execution_order(n, in_ptr, in_node, dep_ptr, dep_node, owner, heads, mark):
    """The order in which the engine runs a graph under a plan.

    Depth-first post-order from the outputs, inputs before control dependencies, as nnvm has it.

    Args:
        n: nodes of the graph without marks.
        in_ptr: nodes + 1; inputs of node ``v`` are ``in_node[in_ptr[v]:in_ptr[v + 1]]``.
        in_node: over inputs, the node that is read.
        dep_ptr: nodes + 1, the same for control dependencies.
        dep_node: over control dependencies, the node that is waited for.
        owner: over nodes, the forward node that a backward node belongs to, -1 for others.
        heads: over outputs of the graph, the node that makes it.
        mark: over forward nodes, the plan.

    Returns:
        Nodes, each once; ``n + f`` is the recomputed copy of forward node ``f``.
    """
    seen = np.zeros(2 * n, np.uint8)
    order = np.empty(2 * n, np.int64)
    stack = np.empty(2 * n + 1, np.int64)
    cursor = np.empty(2 * n + 1, np.int64)
    count = 0
    for h in range(heads.shape[0]):
        if seen[heads[h]]:
            continue
        top = 0
        stack[0] = heads[h]
        cursor[0] = 0
        seen[heads[h]] = 1
        while top >= 0:
            node = stack[top]
            base = node - n if node >= n else node
            k = cursor[top]
            n_in = in_ptr[base + 1] - in_ptr[base]
            if k < n_in:
                nxt = mapped(in_node[in_ptr[base] + k], node, mark, owner, n)
            elif k < n_in + dep_ptr[base + 1] - dep_ptr[base]:
                nxt = mapped(dep_node[dep_ptr[base] + k - n_in], node, mark, owner, n)
            else:
                order[count] = node
                count += 1
                top -= 1
                continue
            cursor[top] = k + 1
            if not seen[nxt]:
                seen[nxt] = 1
                top += 1
                stack[top] = nxt
                cursor[top] = 0
    return order[:count]
