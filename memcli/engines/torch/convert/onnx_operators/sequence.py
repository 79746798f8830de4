"""Sequences, as far as splitting makes them and constant positions read them."""

from __future__ import annotations

import operator as python_operator

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported


@operator("SplitToSequence")
def split_to_sequence(site: Site) -> Result:
    axis = site.axis(site.get("axis", 0))
    if not site.has(1):
        if not site.get("keepdims", 1):
            return Call(torch.unbind, (site.value(0), axis))
        return Call(torch.split, (site.value(0), 1, axis))
    sizes = site.ints(1)
    split = list(sizes) if site.rank(1) else sizes[0]
    return Call(torch.split, (site.value(0), split, axis))


@operator("SequenceAt")
def sequence_at(site: Site) -> Result:
    sequence = site.value(0)
    if not sequence.is_sequence:
        raise Unsupported("its input is not a sequence")
    position = site.number(1)
    return Call(python_operator.getitem, (sequence, position % len(sequence.fake)))


@operator("ConcatFromSequence")
def concat_from_sequence(site: Site) -> Result:
    function = torch.stack if site.get("new_axis", 0) else torch.cat
    return Call(function, (site.value(0), site.get("axis", 0)))
