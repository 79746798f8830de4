"""Losses with a second output."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def cross_entropy_and_log_softmax(
    scores: Tensor, labels: Tensor, weight: Tensor | None, ignored: int, reduction: str
) -> tuple[Tensor, Tensor]:
    """The cross-entropy loss, and the logarithms of the probabilities."""
    logarithms = F.log_softmax(scores, 1)
    loss = F.nll_loss(logarithms, labels, weight, ignore_index=ignored, reduction=reduction)
    return loss, logarithms


def cross_entropy(
    scores: Tensor, labels: Tensor, weight: Tensor | None, ignored: int, reduction: str
) -> Tensor:
    """The cross-entropy loss of ``scores`` (classes in dimension 1) and integer labels."""
    return F.cross_entropy(scores, labels, weight, ignore_index=ignored, reduction=reduction)


def negative_log_likelihood(
    logarithms: Tensor, labels: Tensor, weight: Tensor | None, ignored: int, reduction: str
) -> Tensor:
    """The negative log-likelihood loss of logarithms (classes in dimension 1)."""
    return F.nll_loss(logarithms, labels, weight, ignore_index=ignored, reduction=reduction)
