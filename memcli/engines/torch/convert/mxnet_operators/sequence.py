"""Operators on sequences whose lengths are tensors."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions.layout import reversed_sequences
from memcli.engines.torch.convert.mxnet_operators.elementwise import identity
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator

Tensor = torch.Tensor


def masked(x: Tensor, lengths: Tensor, axis: int, value: float) -> Tensor:
    """``value`` behind the end of each sequence; steps along ``axis``, samples along the other
    of the first two dimensions.
    """
    steps = torch.arange(x.shape[axis], device=x.device)
    outside = steps.reshape(-1, 1) >= lengths.reshape(1, -1)
    outside = outside if axis == 0 else outside.t()
    return x.masked_fill(outside.reshape(*outside.shape, *(1,) * (x.dim() - 2)), value)


def last_step(x: Tensor, axis: int) -> Tensor:
    """The last step of all sequences."""
    return x.select(axis, x.shape[axis] - 1)


def last_steps(x: Tensor, lengths: Tensor, axis: int) -> Tensor:
    """The last step of each sequence."""
    samples = torch.arange(lengths.numel(), device=x.device)
    steps = lengths.long() - 1
    return x[steps, samples] if axis == 0 else x[samples, steps]


def reversed_by_length(x: Tensor, lengths: Tensor) -> Tensor:
    """The steps (dimension 0) of each sequence (dimension 1) in reverse order."""
    return reversed_sequences(x, lengths.long(), 1, 0)


@operator("SequenceMask")
def mask(site: Site) -> Call:
    if not site.attributes.flag("use_sequence_length"):
        return Call(identity, (site.value(),))
    value = site.attributes.number("value", 0.0)
    axis = site.attributes.integer("axis", 0)
    return Call(masked, (site.value(), site.value(1), axis, value))


@operator("SequenceLast")
def last(site: Site) -> Call:
    axis = site.attributes.integer("axis", 0)
    if not site.attributes.flag("use_sequence_length"):
        return Call(last_step, (site.value(), axis))
    return Call(last_steps, (site.value(), site.value(1), axis))


@operator("SequenceReverse")
def reverse(site: Site) -> Call:
    if not site.attributes.flag("use_sequence_length"):
        return Call(torch.flip, (site.value(), (0,)))
    return Call(reversed_by_length, (site.value(), site.value(1)))
