"""What MXNet's operators keep for themselves beside the pool, on its plain CPU kernels.

The fused ``RNN`` operator allocates a work space and, when it trains, a reserve space at its first
forward pass, and keeps both (``src/operator/rnn-inl.h``, ``GetRNNWorkspaceSize`` and
``GetRNNReserveSpaceSize``, at the 1.9.1 tag).
"""

from __future__ import annotations

from memcli.graph.training import TrainingGraph

_TRUE = ("True", "true", "1")


def kept_by_operators(graph: TrainingGraph) -> dict[int, int]:
    """Bytes that operators keep of their own from their forward pass on, by forward node."""
    return {v: _recurrent_bytes(graph, v) for v in range(graph.n_forward) if graph.op(v) == "RNN"}


def _recurrent_bytes(graph: TrainingGraph, node: int) -> int:
    """Work space and reserve space of one ``RNN`` node, bytes."""
    attributes = graph.kinds[graph.kind[node]].attrs
    data = int(graph.inputs(node)[0])
    steps, batch = graph.shape(data)[:2]
    units, layers = int(attributes["state_size"]), int(attributes["num_layers"])
    directions = 2 if attributes.get("bidirectional", "False") in _TRUE else 1
    rows = steps * batch * units
    mode = attributes["mode"]
    if mode == "lstm":
        work = rows * (4 + directions) + 6 * batch * units + 8 * steps * units
        work += rows * directions if directions > 1 else 0
        reserve = directions * rows * (7 * layers - 1)
    elif mode == "gru":
        work = 4 * directions * rows + batch * units * (6 + directions)
        reserve = directions * rows * (9 * layers - 1) + 9 * directions * batch * units
        reserve += 6 * units * steps + 7 * directions * rows
    else:  # rnn_relu, rnn_tanh
        work = 2 * directions * rows + batch * units * (1 + directions)
        reserve = directions * rows * (6 * layers - 1) + 3 * directions * batch * units
        reserve += 2 * units * steps + 2 * directions * rows
    return (work + reserve) * int(graph.itemsize[data])
