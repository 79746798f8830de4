"""The graph of a converted model for evaluation: running statistics, and no dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph

from memcli.engines.torch.convert.functions import normalization, random


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> Tensor:
    """BatchNorm by the running statistics, which stay as they are."""
    return F.batch_norm(x, mean, variance, scale, bias, False, momentum, epsilon)


def batch_norm_and_statistics(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and copies of the running statistics."""
    y = F.batch_norm(x, mean, variance, scale, bias, False, momentum, epsilon)
    return y, mean.clone(), variance.clone()


def without_dropout(x: Tensor, ratio: float) -> Tensor:
    """``x`` itself."""
    return x


def all_kept(x: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """``x`` itself, and a mask that keeps all."""
    return random.kept_and_mask(x)


_IN_EVALUATION: dict[Any, Callable[..., Any]] = {
    normalization.batch_norm_training: batch_norm,
    normalization.batch_norm_and_statistics: batch_norm_and_statistics,
    normalization.batch_norm_pure: batch_norm_and_statistics,
    random.dropout: without_dropout,
    random.dropout_and_mask: all_kept,
}


def evaluation_graph(graph: Graph) -> Graph:
    """A copy of the graph with the functions that training has replaced by evaluation's."""
    result = copy.deepcopy(graph)
    for node in result.nodes:
        if node.op == "call_function":
            node.target = _IN_EVALUATION.get(node.target, node.target)
    return result
