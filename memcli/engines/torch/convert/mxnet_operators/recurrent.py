"""The fused RNN operator, whose weights all stand in one vector."""

from __future__ import annotations

from collections.abc import Callable

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator
from memcli.engines.torch.convert.values import Unsupported
from memcli.engines.torch.rules import draws_random, recomputed_with_gradients

Tensor = torch.Tensor
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def unpacked(
    vector: Tensor, gates: int, width: int, size: int, layers: int, ways: int
) -> list[Tensor]:
    """The weights as PyTorch takes them: for each layer and direction W, R, b_W and b_R.

    MXNet's vector has all weights first and then all biases (src/operator/rnn-inl.h); gates stand
    in the same order in both. ``width``: features of the input, ``size``: of the state.
    """
    shapes = []
    for layer in range(layers):
        features = size * ways if layer else width
        shapes += [((gates * size, features), (gates * size, size))] * ways
    offset, weights = 0, []
    for pair in shapes:
        for rows, columns in pair:
            weights.append(vector.narrow(0, offset, rows * columns).reshape(rows, columns))
            offset += rows * columns
    biases = vector[offset:].split(gates * size)
    flat = []
    for i in range(len(shapes)):
        flat += [*weights[2 * i : 2 * i + 2], *biases[2 * i : 2 * i + 2]]
    return flat


@recomputed_with_gradients
def rnn(
    x: Tensor,
    vector: Tensor,
    state: Tensor,
    cell: Tensor | None,
    mode: str,
    layers: int,
    both_ways: bool,
    dropped: float,
) -> tuple[Tensor, ...]:
    """All outputs (steps, batch, directions * size), the last states, of an LSTM the cells."""
    ways = 2 if both_ways else 1
    size = state.shape[2]
    flat = unpacked(vector, _GATES[mode], x.shape[2], size, layers, ways)
    rest = (flat, True, layers, dropped, True, both_ways, False)
    if cell is not None:
        return torch.lstm(x, (state, cell), *rest)
    functions: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        "gru": torch.gru,
        "rnn_tanh": torch.rnn_tanh,
        "rnn_relu": torch.rnn_relu,
    }
    return functions[mode](x, state, *rest)


@recomputed_with_gradients
@draws_random
def rnn_dropping(
    x: Tensor,
    vector: Tensor,
    state: Tensor,
    cell: Tensor | None,
    mode: str,
    layers: int,
    both_ways: bool,
    dropped: float,
) -> tuple[Tensor, ...]:
    """:func:`rnn` with dropout between its layers."""
    return rnn(x, vector, state, cell, mode, layers, both_ways, dropped)


@operator("RNN")
def recurrent(site: Site) -> Call:
    attributes = site.attributes
    site.refuse("use_sequence_length", "lstm_state_clip_nan")
    for key in ("projection_size", "lstm_state_clip_min", "lstm_state_clip_max"):
        if attributes.has(key):
            raise Unsupported(f"{key}={attributes.text(key)}")
    mode = attributes.text("mode")
    if mode not in _GATES:
        raise Unsupported(f"mode={mode}")
    layers = attributes.integer("num_layers", 1)
    both_ways = attributes.flag("bidirectional")
    dropped = attributes.number("p", 0.0) if layers > 1 else 0.0
    cell = site.value(3) if mode == "lstm" else None
    function = rnn_dropping if dropped else rnn
    values = (site.value(), site.value(1), site.value(2), cell)
    return Call(function, (*values, mode, layers, both_ways, dropped), many=True)
