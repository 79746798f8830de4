"""Reductions."""

from __future__ import annotations

from typing import Any

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import reduce as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported

_PLAIN: dict[str, Any] = {
    "ReduceProd": functions.multiplied,
    "ReduceSumSquare": functions.sum_of_squares,
    "ReduceLogSum": functions.log_of_sum,
    "ReduceLogSumExp": functions.log_of_sum_of_exponentials,
}
# What one element reduces to where it is not itself.
_OF_ONE: dict[str, Any] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceSumSquare": torch.square,
    "ReduceLogSum": torch.log,
}
_NAMES = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
)


@operator(*_NAMES)
def reduction(site: Site) -> Result:
    """Axes are an attribute in old operator sets and an input in new ones."""
    kind, x = site.node.op_type, site.value(0)
    axes = site.ints(1) if site.has(1) else site.ints_of("axes")
    if not axes:
        if site.get("noop_with_empty_axes", 0):
            return Call(_OF_ONE[kind], (x,)) if kind in _OF_ONE else x
        axes = tuple(range(site.rank()))
    axes = tuple(sorted({site.axis(axis) for axis in axes}))
    keep = bool(site.get("keepdims", 1))
    if not axes:  # a scalar
        return Call(_OF_ONE[kind], (x,)) if kind in _OF_ONE else x
    if kind == "ReduceMean":
        return Call(torch.mean if site.is_float() else functions.mean_of_integers, (x, axes, keep))
    if kind == "ReduceSum":
        return Call(torch.sum if site.is_float() else functions.summed, (x, axes, keep))
    if kind in ("ReduceMax", "ReduceMin"):
        lowest = kind == "ReduceMin"
        if any(site.shape()[axis] == 0 for axis in axes):
            return Call(functions.highest_of_none, (x, axes, keep, lowest))
        return Call(torch.amin if lowest else torch.amax, (x, axes, keep))
    if kind in ("ReduceL1", "ReduceL2"):
        return Call(functions.norm, (x, 1 if kind == "ReduceL1" else 2, axes, keep))
    return Call(_PLAIN[kind], (x, axes, keep))


@operator("ArgMax", "ArgMin")
def position(site: Site) -> Result:
    lowest = site.node.op_type == "ArgMin"
    axis, keep = site.axis(site.get("axis", 0)), bool(site.get("keepdims", 1))
    if not site.rank():
        raise Unsupported("its input is a scalar")
    if site.get("select_last_index", 0):
        return Call(functions.position_of_last, (site.value(0), axis, keep, lowest))
    return Call(torch.argmin if lowest else torch.argmax, (site.value(0), axis, keep))
