"""Recurrent layers."""

from __future__ import annotations

from typing import Any

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import recurrent as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported
from memcli.errors import REFUSED

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@operator("LSTM", "GRU", "RNN")
def recurrent(site: Site) -> Result:
    kind = site.node.op_type
    direction = site.get("direction", "forward") or "forward"
    layout = site.get("layout", 0)
    x, w, r, b = site.value(0), site.value(1), site.value(2), site.optional(3)
    hidden = site.get("hidden_size", r.shape[-1] if r.shape else 0)
    _check_shapes(site, hidden, 2 if direction == "bidirectional" else 1, layout)
    _check_lengths(site, x.shape[1 if layout else 0])
    if site.get("clip", 0.0):
        raise Unsupported("clipping within the layer")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Unsupported(f"direction {direction!r}")
    rectified = _rectified(site, w.shape[0])
    backwards = direction == "reverse"
    name, function = kind.lower(), getattr(functions, kind.lower())
    args: tuple[Any, ...] = (x, w, r, b, site.optional(5))
    if kind == "LSTM":
        if site.has(7):
            raise Unsupported("peephole weights")
        if site.get("input_forget", 0):
            raise Unsupported("coupled input and forget gates")
        args = (*args, site.optional(6))
    elif kind == "GRU" and not site.get("linear_before_reset", 0):
        name, function = "gru_reset_first", functions.gru_reset_first
    args = (*args, hidden, backwards, *((rectified,) if kind == "RNN" else ()))
    if layout:
        return Call(functions.batch_first, (name, *args), many=True)
    return Call(function, args, many=True)


def _check_shapes(site: Site, hidden: int, directions: int, layout: int) -> None:
    """Refuses tensors that do not fit one another: PyTorch's kernels read beyond them."""
    x = tuple(site.value(0).shape)
    if len(x) != 3 or hidden < 1:
        raise Unsupported(f"an input of shape {x} with hidden_size {hidden}")
    gates = _GATES[site.node.op_type] * hidden
    batch = x[0 if layout else 1]
    state = (batch, directions, hidden) if layout else (directions, batch, hidden)
    wanted = {
        1: (directions, gates, x[2]),
        2: (directions, gates, hidden),
        3: (directions, 2 * gates),
        5: state,
        6: state,
    }
    for position, shape in wanted.items():
        given = site.optional(position)
        if given is not None and tuple(given.shape) != shape:
            raise Unsupported(
                f"{REFUSED}: input {position} has the shape {tuple(given.shape)}, and {shape} goes "
                f"with an input of {x}"
            )


def _check_lengths(site: Site, steps: int) -> None:
    if site.has(4):
        lengths = site.value(4).known
        if lengths is None or bool((lengths != steps).any()):
            raise Unsupported("sequences of different lengths")


def _rectified(site: Site, directions: int) -> bool:
    """Whether a plain layer is rectified; others have the activations that are usual."""
    given = [name.lower() for name in site.get("activations", [])]
    kind = site.node.op_type
    if not given:
        return False
    if kind == "RNN" and given in (["relu"] * directions, ["tanh"] * directions):
        return given[0] == "relu"
    if kind == "RNN" or given != _ACTIVATIONS[kind] * directions:
        raise Unsupported(f"activations {', '.join(given)}")
    return False
