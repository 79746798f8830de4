"""Recurrent layers with ONNX's layout of weights."""

from __future__ import annotations

import torch

from memcli.engines.torch.rules import recomputed_with_gradients

Tensor = torch.Tensor

# Where PyTorch's gates stand among ONNX's: (i, f, g, o) in (i, o, f, c); (r, z, n) in (z, r, h).
_LSTM_GATES = (0, 2, 3, 1)
_GRU_GATES = (1, 0, 2)


@recomputed_with_gradients
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    hidden: int,
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """All outputs (steps, directions, batch, hidden), and the last hidden and cell states.

    ``x`` is (steps, batch, features), ``w`` (directions, 4 hidden, features), ``r`` (directions,
    4 hidden, hidden), ``b`` (directions, 8 hidden), states (directions, batch, hidden).
    """
    flat = _flat_weights(w, r, b, hidden, _LSTM_GATES)
    h = _state(x, w, hidden) if h is None else h
    c = _state(x, w, hidden) if c is None else c
    x = x.flip(0) if backwards else x
    y, h, c = torch.lstm(x, (h, c), flat, b is not None, 1, 0.0, True, w.shape[0] == 2, False)
    return _outputs(y, w.shape[0], hidden, backwards), h, c


@recomputed_with_gradients
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    h: Tensor | None,
    hidden: int,
    backwards: bool,
) -> tuple[Tensor, Tensor]:
    """A GRU whose reset gate acts after the product (``linear_before_reset``), as PyTorch's."""
    flat = _flat_weights(w, r, b, hidden, _GRU_GATES)
    h = _state(x, w, hidden) if h is None else h
    x = x.flip(0) if backwards else x
    y, h = torch.gru(x, h, flat, b is not None, 1, 0.0, True, w.shape[0] == 2, False)
    return _outputs(y, w.shape[0], hidden, backwards), h


def gru_reset_first(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    h: Tensor | None,
    hidden: int,
    backwards: bool,
) -> tuple[Tensor, Tensor]:
    """A GRU whose reset gate acts before the product: step by step, as PyTorch has none."""
    h = _state(x, w, hidden) if h is None else h
    outputs, last = [], []
    for d in range(w.shape[0]):
        reverse = backwards or d == 1
        zero = x.new_zeros(6 * hidden) if b is None else b[d]
        inputs = torch.matmul(x, w[d].t()) + zero[: 3 * hidden]
        from_state = r[d]
        bias = zero[3 * hidden :]
        state = h[d]
        steps = []
        for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
            gates = inputs[t, :, : 2 * hidden] + torch.addmm(
                bias[: 2 * hidden], state, from_state[: 2 * hidden].t()
            )
            update, reset = torch.sigmoid(gates).split(hidden, 1)
            new = torch.tanh(
                inputs[t, :, 2 * hidden :]
                + torch.addmm(bias[2 * hidden :], reset * state, from_state[2 * hidden :].t())
            )
            state = (1 - update) * new + update * state
            steps.append(state)
        last.append(state)
        outputs.append(torch.stack(steps[::-1] if reverse else steps))
    return torch.stack(outputs, 1), torch.stack(last)


@recomputed_with_gradients
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    h: Tensor | None,
    hidden: int,
    backwards: bool,
    rectified: bool,
) -> tuple[Tensor, Tensor]:
    """A plain recurrent layer with tanh, or ReLU where ``rectified``."""
    flat = _flat_weights(w, r, b, hidden, (0,))
    h = _state(x, w, hidden) if h is None else h
    x = x.flip(0) if backwards else x
    function = torch.rnn_relu if rectified else torch.rnn_tanh
    y, h = function(x, h, flat, b is not None, 1, 0.0, True, w.shape[0] == 2, False)
    return _outputs(y, w.shape[0], hidden, backwards), h


@recomputed_with_gradients
def batch_first(function: str, *arguments: object) -> tuple[Tensor, ...]:
    """A layer above with the batch before steps and directions (``layout`` 1)."""
    layers = {"lstm": lstm, "gru": gru, "gru_reset_first": gru_reset_first, "rnn": rnn}
    x, w, r, b, *rest = arguments
    states = [s.transpose(0, 1) if isinstance(s, Tensor) else s for s in rest]
    assert isinstance(x, Tensor)
    y, *last = layers[function](x.transpose(0, 1), w, r, b, *states)  # type: ignore[operator]
    return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)


def _state(x: Tensor, w: Tensor, hidden: int) -> Tensor:
    return x.new_zeros(w.shape[0], x.shape[1], hidden)


def _flat_weights(
    w: Tensor, r: Tensor, b: Tensor | None, hidden: int, gates: tuple[int, ...]
) -> list[Tensor]:
    """What PyTorch takes: both weights and both biases of each direction, in its order of gates."""
    flat = []
    for d in range(w.shape[0]):
        parts = [w[d], r[d]]
        if b is not None:
            parts += b[d].split(len(gates) * hidden)
        flat += [_ordered(part, hidden, gates) for part in parts]
    return flat


def _ordered(weight: Tensor, hidden: int, gates: tuple[int, ...]) -> Tensor:
    if len(gates) == 1:
        return weight
    parts = weight.split(hidden)
    return torch.cat([parts[gate] for gate in gates])


def _outputs(y: Tensor, directions: int, hidden: int, backwards: bool) -> Tensor:
    """(steps, batch, directions * hidden) as ONNX has it."""
    y = y.flip(0) if backwards else y
    return y.reshape(*y.shape[:2], directions, hidden).transpose(1, 2)
