"""Recurrent layers."""

from __future__ import annotations

from typing import Any

from memcli.convert.calls import Call
from memcli.convert.functions import recurrent as functions
from memcli.convert.registry import Result, Site, operator
from memcli.convert.values import Unsupported

_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@operator("LSTM", "GRU", "RNN")
def recurrent(site: Site) -> Result:
    kind = site.node.op_type
    direction = site.get("direction", "forward") or "forward"
    layout = site.get("layout", 0)
    x, w, r, b = site.value(0), site.value(1), site.value(2), site.optional(3)
    hidden = site.get("hidden_size", r.shape[-1])
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
