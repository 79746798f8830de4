"""Losses, normalized as Caffe does, whatever the batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memcli.formats.caffe.building import Tensor
from memcli.formats.caffe.registry import Result, Site, layer

_FULL, _VALID, _BATCH, _NONE = 0, 1, 2, 3
_L2 = 2
_LEAST = 1e-20  # of a probability, before its logarithm


def _normalization(site: Site, default: int) -> int:
    p = site.p.loss_param
    if not p.HasField("normalization") and p.HasField("normalize"):
        return _VALID if p.normalize else _BATCH
    return int(p.normalization) if p.HasField("normalization") else default


def _ignored(site: Site) -> int | None:
    p = site.p.loss_param
    return int(p.ignore_label) if p.HasField("ignore_label") else None


@layer("SoftmaxWithLoss")
def softmax_with_loss(site: Site) -> Result:
    """The cross entropy of a softmax; a second top is the softmax.

    Caffe takes logarithms of probabilities of at least 1e-38; here they are exact.
    """
    site.take(2, (0, 2))
    scores, labels = site.bottoms
    axis = site.axis(site.p.softmax_param.axis)
    classes = scores.shape[axis]
    outer, inner = math.prod(scores.shape[:axis]), scores.shape[axis + 1 :]
    if labels.count != outer * math.prod(inner):
        raise site.wrong(
            f"scores of shape {scores.shape} take {outer * math.prod(inner)} labels; there are "
            f"{labels.count}"
        )
    rows = scores
    if axis != 1:
        rows = site.reshaped(scores, (outer, classes, *inner), "rows")
    targets = site.reshaped(labels, (outer, *inner), "targets")
    targets = site.labels(targets)
    mode, ignored = _normalization(site, _VALID), _ignored(site)
    loss = _cross_entropy(site, rows, targets, mode, ignored)
    if len(site.layer.tops) < 2:
        return loss
    top = site.result("Softmax", [scores], scores.shape, top=1, axis=axis)
    return [loss, top]


def _cross_entropy(
    site: Site, rows: Tensor, targets: Tensor, mode: int, ignored: int | None
) -> Tensor:
    more: dict[str, Any] = {} if ignored is None else {"ignore_index": ignored}
    op, inputs = "SoftmaxCrossEntropyLoss", [rows, targets]
    plain = ignored is None and (mode in (_FULL, _VALID) or math.prod(targets.shape[1:]) == 1)
    if mode != _NONE and plain:
        return site.result(op, inputs, (), reduction="mean")
    if mode == _NONE:
        return site.result(op, inputs, (), reduction="sum", **more)
    if mode == _VALID:
        total = site.step("sum", op, inputs, (), reduction="sum", **more)
        return site.result("Div", [total, _valid(site, targets, ignored)], ())
    each = site.step("each", op, inputs, targets.shape, reduction="none", **more)
    return _divided(site, each, by_batch=mode == _BATCH)


def _valid(site: Site, targets: Tensor, ignored: int | None) -> Tensor:
    """The number of labels that count, at least 1, as a float."""
    builder, shape = site.builder, targets.shape
    odd = site.step("ignored", "Equal", [targets, builder.constant(ignored, np.int64)], shape)
    kept = site.step("counted", "Not", [odd], shape)
    ones = site.step("ones", "Cast", [kept], shape, to=1)
    count = site.sum(ones, range(len(shape)), "count")
    return site.step("divisor", "Max", [count, builder.constant(1.0)], ())


def _divided(site: Site, each: Tensor, *, by_batch: bool) -> Tensor:
    """The mean of all of ``each``, or their sum by the size of the batch: the layer's result."""
    axes = tuple(range(each.rank))
    if by_batch and each.rank > 1:
        each, axes = site.sum(each, axes[1:], "rows"), (0,)
    return site.result("ReduceMean", [each, site.builder.ints(*axes)], (), keepdims=0)


def _same_count(site: Site) -> tuple[Tensor, Tensor]:
    """Both bottoms, the second in the first's shape."""
    first, second = site.bottoms[:2]
    if first.count != second.count:
        raise site.wrong(f"its bottoms have the shapes {first.shape} and {second.shape}")
    return first, site.reshaped(second, first.shape, "target")


@layer("EuclideanLoss")
def euclidean(site: Site) -> Result:
    """``sum((a - b)^2) / 2N``."""
    site.take(2, (0, 1))
    first, second = _same_count(site)
    difference = site.step("difference", "Sub", [first, second], first.shape)
    squares = site.step("squares", "Mul", [difference, difference], first.shape)
    summed = site.sum(squares, range(1, first.rank), "rows")
    mean = site.step("mean", "ReduceMean", [summed, site.builder.ints(0)], (), keepdims=0)
    return site.times(mean, 0.5)


@layer("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy(site: Site) -> Result:
    """``softplus(x) - x t``; by the batch where the net does not say otherwise."""
    site.take(2, (0, 2))
    x, target = _same_count(site)
    mode, ignored = _normalization(site, _BATCH), _ignored(site)
    soft = site.step("softplus", "Softplus", [x], x.shape)
    product = site.step("product", "Mul", [x, target], x.shape)
    each = site.step("each", "Sub", [soft, product], x.shape)
    tops: list[Tensor | None] = [None] * (len(site.layer.tops) - 1)
    whole = None
    if ignored is not None:
        whole = site.labels(target, "whole")
        odd = site.step("odd", "Equal", [whole, site.builder.constant(ignored, np.int64)], x.shape)
        each = site.step("counted_each", "Where", [odd, site.builder.constant(0.0), each], x.shape)
    if mode in (_FULL, _BATCH) or (mode == _VALID and whole is None):
        return [_divided(site, each, by_batch=mode == _BATCH), *tops]
    if mode == _VALID and whole is not None:
        total = site.sum(each, range(x.rank), "sum")
        return [site.result("Div", [total, _valid(site, whole, ignored)], ()), *tops]
    axes = site.builder.ints(*range(x.rank))
    return [site.result("ReduceSum", [each, axes], (), keepdims=0), *tops]


@layer("HingeLoss")
def hinge(site: Site) -> Result:
    """``sum(max(0, 1 - y x)) / N``, y 1 for the label and -1 for others; L2: of their squares."""
    site.take(2, (0, 1))
    x, labels = site.bottoms
    classes = x.count // x.shape[0]
    if labels.count != x.shape[0]:
        raise site.wrong(f"takes {x.shape[0]} labels; there are {labels.count}")
    x = site.reshaped(x, (x.shape[0], classes), "rows")
    labels = site.labels(site.reshaped(labels, (x.shape[0],), "targets"))
    # 1 for others, -1 for the label: what a margin is multiplied by
    signs = site.step(
        "signs",
        "OneHot",
        [labels, site.builder.constant(classes, np.int64), site.builder.constant([1.0, -1.0])],
        x.shape,
        axis=-1,
    )
    signed = site.step("signed", "Mul", [x, signs], x.shape)
    margins = site.step("margins", "Relu", [site.plus(signed, 1.0, "one")], x.shape)
    if site.p.hinge_loss_param.norm == _L2:
        margins = site.step("squares", "Mul", [margins, margins], x.shape)
    return _divided(site, margins, by_batch=True)


@layer("MultinomialLogisticLoss")
def multinomial_logistic(site: Site) -> Result:
    """``-sum(log(p of the label)) / N``, of probabilities."""
    site.take(2, (0, 1))
    x, labels = site.bottoms
    if labels.count != x.shape[0]:
        raise site.wrong(f"takes {x.shape[0]} labels; there are {labels.count}")
    x = site.reshaped(x, (x.shape[0], x.count // x.shape[0]), "rows")
    labels = site.labels(site.reshaped(labels, (x.shape[0],), "targets"))
    least = site.step("least", "Max", [x, site.builder.constant(_LEAST)], x.shape)
    logs = site.step("log", "Log", [least], x.shape)
    return site.result("NegativeLogLikelihoodLoss", [logs, labels], (), reduction="mean")


@layer("ContrastiveLoss")
def contrastive(site: Site) -> Result:
    """``sum(y d^2 + (1 - y) max(margin - d, 0)^2) / 2N``; the old version: ``margin - d^2``."""
    site.take(3, (0, 1))
    a, b, similar = site.bottoms
    p, count = site.p.contrastive_loss_param, a.shape[0]
    if a.count != b.count or similar.count != count:
        shapes = " and ".join(str(t.shape) for t in site.bottoms)
        raise site.wrong(f"its bottoms have the shapes {shapes}")
    a, b = (site.reshaped(t, (count, t.count // count), f"rows{k}") for k, t in enumerate((a, b)))
    y = site.reshaped(similar, (count,), "similar")
    difference = site.step("difference", "Sub", [a, b], a.shape)
    squares = site.step("squares", "Mul", [difference, difference], a.shape)
    square = site.sum(squares, [1], "square")
    close = site.step("close", "Mul", [y, square], (count,))
    far = square if p.legacy_version else site.step("distance", "Sqrt", [square], (count,))
    negated = site.times(far, -1.0, "negated")
    gap = site.step("gap", "Relu", [site.plus(negated, p.margin, "margin")], (count,))
    if not p.legacy_version:
        gap = site.step("gap_square", "Mul", [gap, gap], (count,))
    other = site.plus(site.times(y, -1.0, "minus_y"), 1.0, "other")
    apart = site.step("apart", "Mul", [other, gap], (count,))
    each = site.step("each", "Add", [close, apart], (count,))
    mean = site.step("mean", "ReduceMean", [each, site.builder.ints(0)], (), keepdims=0)
    return site.times(mean, 0.5)
