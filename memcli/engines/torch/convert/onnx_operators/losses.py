"""Losses."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.functions import losses as functions
from memcli.engines.torch.convert.registry import Result, Site, operator
from memcli.engines.torch.convert.values import Unsupported

# PyTorch's own default; no label of a valid graph has it where none is ignored.
_NONE_IGNORED = -100


@operator("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
def loss(site: Site) -> Result:
    scores, labels, weight = site.value(0), site.value(1), site.optional(2)
    if labels.dtype != torch.int64:
        raise Unsupported(f"labels of type {labels.dtype}; PyTorch takes int64 alone")
    ignored = site.get("ignore_index", _NONE_IGNORED)
    args = (scores, labels, weight, ignored, site.get("reduction", "mean"))
    if site.node.op_type == "NegativeLogLikelihoodLoss":
        return Call(functions.negative_log_likelihood, args)
    if site.is_used(1):
        return Call(functions.cross_entropy_and_log_softmax, args, many=True)
    return Call(functions.cross_entropy, args)
