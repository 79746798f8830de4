"""Losses, normalized as Caffe does, whatever the batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memcli.formats.caffe.building import Tensor
from memcli.formats.caffe.registry import LayerCall, Result, layer

_FULL, _VALID, _BATCH, _NONE = 0, 1, 2, 3
_L2 = 2
_LEAST = 1e-20  # of a probability, before its logarithm


def _normalization(call: LayerCall, default: int) -> int:
    p = call.p.loss_param
    if not p.HasField("normalization") and p.HasField("normalize"):
        return _VALID if p.normalize else _BATCH
    return int(p.normalization) if p.HasField("normalization") else default


def _ignored(call: LayerCall) -> int | None:
    p = call.p.loss_param
    return int(p.ignore_label) if p.HasField("ignore_label") else None


@layer("SoftmaxWithLoss")
def softmax_with_loss(call: LayerCall) -> Result:
    """The cross entropy of a softmax; a second top is the softmax.

    Caffe takes logarithms of probabilities of at least 1e-38; here they are exact.
    """
    call.take(2, (0, 2))
    scores, labels = call.bottoms
    axis = call.axis(call.p.softmax_param.axis)
    classes = scores.shape[axis]
    outer, inner = math.prod(scores.shape[:axis]), scores.shape[axis + 1 :]
    if labels.count != outer * math.prod(inner):
        raise call.wrong(
            f"scores of shape {scores.shape} take {outer * math.prod(inner)} labels; there are "
            f"{labels.count}"
        )
    rows = scores
    if axis != 1:
        rows = call.reshaped(scores, (outer, classes, *inner), "rows")
    targets = call.reshaped(labels, (outer, *inner), "targets")
    targets = call.labels(targets)
    mode, ignored = _normalization(call, _VALID), _ignored(call)
    loss = _cross_entropy(call, rows, targets, mode, ignored)
    if len(call.layer.tops) < 2:
        return loss
    top = call.result("Softmax", [scores], scores.shape, top=1, axis=axis)
    return [loss, top]


def _cross_entropy(
    call: LayerCall, rows: Tensor, targets: Tensor, mode: int, ignored: int | None
) -> Tensor:
    more: dict[str, Any] = {} if ignored is None else {"ignore_index": ignored}
    op, inputs = "SoftmaxCrossEntropyLoss", [rows, targets]
    plain = ignored is None and (mode in (_FULL, _VALID) or math.prod(targets.shape[1:]) == 1)
    if mode != _NONE and plain:
        return call.result(op, inputs, (), reduction="mean")
    if mode == _NONE:
        return call.result(op, inputs, (), reduction="sum", **more)
    if mode == _VALID:
        total = call.step("sum", op, inputs, (), reduction="sum", **more)
        return call.result("Div", [total, _valid(call, targets, ignored)], ())
    each = call.step("each", op, inputs, targets.shape, reduction="none", **more)
    return _divided(call, each, by_batch=mode == _BATCH)


def _valid(call: LayerCall, targets: Tensor, ignored: int | None) -> Tensor:
    """The number of labels that count, at least 1, as a float."""
    builder, shape = call.builder, targets.shape
    odd = call.step("ignored", "Equal", [targets, builder.constant(ignored, np.int64)], shape)
    kept = call.step("counted", "Not", [odd], shape)
    ones = call.step("ones", "Cast", [kept], shape, to=1)
    count = call.sum(ones, range(len(shape)), "count")
    return call.step("divisor", "Max", [count, builder.constant(1.0)], ())


def _divided(call: LayerCall, each: Tensor, *, by_batch: bool) -> Tensor:
    """The mean of all of ``each``, or their sum by the size of the batch: the layer's result."""
    axes = tuple(range(each.rank))
    if by_batch and each.rank > 1:
        each, axes = call.sum(each, axes[1:], "rows"), (0,)
    return call.result("ReduceMean", [each, call.builder.ints(*axes)], (), keepdims=0)


def _same_count(call: LayerCall) -> tuple[Tensor, Tensor]:
    """Both bottoms, the second in the first's shape."""
    first, second = call.bottoms[:2]
    if first.count != second.count:
        raise call.wrong(f"its bottoms have the shapes {first.shape} and {second.shape}")
    return first, call.reshaped(second, first.shape, "target")


@layer("EuclideanLoss")
def euclidean(call: LayerCall) -> Result:
    """``sum((a - b)^2) / 2N``."""
    call.take(2, (0, 1))
    first, second = _same_count(call)
    difference = call.step("difference", "Sub", [first, second], first.shape)
    squares = call.step("squares", "Mul", [difference, difference], first.shape)
    summed = call.sum(squares, range(1, first.rank), "rows")
    mean = call.step("mean", "ReduceMean", [summed, call.builder.ints(0)], (), keepdims=0)
    return call.times(mean, 0.5)


@layer("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy(call: LayerCall) -> Result:
    """``softplus(x) - x t``; by the batch where the net does not say otherwise."""
    call.take(2, (0, 2))
    x, target = _same_count(call)
    mode, ignored = _normalization(call, _BATCH), _ignored(call)
    soft = call.step("softplus", "Softplus", [x], x.shape)
    product = call.step("product", "Mul", [x, target], x.shape)
    each = call.step("each", "Sub", [soft, product], x.shape)
    tops: list[Tensor | None] = [None] * (len(call.layer.tops) - 1)
    whole = None
    if ignored is not None:
        whole = call.labels(target, "whole")
        odd = call.step("odd", "Equal", [whole, call.builder.constant(ignored, np.int64)], x.shape)
        each = call.step("counted_each", "Where", [odd, call.builder.constant(0.0), each], x.shape)
    if mode in (_FULL, _BATCH) or (mode == _VALID and whole is None):
        return [_divided(call, each, by_batch=mode == _BATCH), *tops]
    if mode == _VALID and whole is not None:
        total = call.sum(each, range(x.rank), "sum")
        return [call.result("Div", [total, _valid(call, whole, ignored)], ()), *tops]
    axes = call.builder.ints(*range(x.rank))
    return [call.result("ReduceSum", [each, axes], (), keepdims=0), *tops]


@layer("HingeLoss")
def hinge(call: LayerCall) -> Result:
    """``sum(max(0, 1 - y x)) / N``, y 1 for the label and -1 for others; L2: of their squares."""
    call.take(2, (0, 1))
    x, labels = call.bottoms
    classes = x.count // x.shape[0]
    if labels.count != x.shape[0]:
        raise call.wrong(f"takes {x.shape[0]} labels; there are {labels.count}")
    x = call.reshaped(x, (x.shape[0], classes), "rows")
    labels = call.labels(call.reshaped(labels, (x.shape[0],), "targets"))
    # 1 for others, -1 for the label: what a margin is multiplied by
    signs = call.step(
        "signs",
        "OneHot",
        [labels, call.builder.constant(classes, np.int64), call.builder.constant([1.0, -1.0])],
        x.shape,
        axis=-1,
    )
    signed = call.step("signed", "Mul", [x, signs], x.shape)
    margins = call.step("margins", "Relu", [call.plus(signed, 1.0, "one")], x.shape)
    if call.p.hinge_loss_param.norm == _L2:
        margins = call.step("squares", "Mul", [margins, margins], x.shape)
    return _divided(call, margins, by_batch=True)


@layer("MultinomialLogisticLoss")
def multinomial_logistic(call: LayerCall) -> Result:
    """``-sum(log(p of the label)) / N``, of probabilities."""
    call.take(2, (0, 1))
    x, labels = call.bottoms
    if labels.count != x.shape[0]:
        raise call.wrong(f"takes {x.shape[0]} labels; there are {labels.count}")
    x = call.reshaped(x, (x.shape[0], x.count // x.shape[0]), "rows")
    labels = call.labels(call.reshaped(labels, (x.shape[0],), "targets"))
    least = call.step("least", "Max", [x, call.builder.constant(_LEAST)], x.shape)
    logs = call.step("log", "Log", [least], x.shape)
    return call.result("NegativeLogLikelihoodLoss", [logs, labels], (), reduction="mean")


@layer("ContrastiveLoss")
def contrastive(call: LayerCall) -> Result:
    """``sum(y d^2 + (1 - y) max(margin - d, 0)^2) / 2N``; the old version: ``margin - d^2``."""
    call.take(3, (0, 1))
    a, b, similar = call.bottoms
    p, count = call.p.contrastive_loss_param, a.shape[0]
    if a.count != b.count or similar.count != count:
        shapes = " and ".join(str(t.shape) for t in call.bottoms)
        raise call.wrong(f"its bottoms have the shapes {shapes}")
    a, b = (call.reshaped(t, (count, t.count // count), f"rows{k}") for k, t in enumerate((a, b)))
    y = call.reshaped(similar, (count,), "similar")
    difference = call.step("difference", "Sub", [a, b], a.shape)
    squares = call.step("squares", "Mul", [difference, difference], a.shape)
    square = call.sum(squares, [1], "square")
    close = call.step("close", "Mul", [y, square], (count,))
    far = square if p.legacy_version else call.step("distance", "Sqrt", [square], (count,))
    negated = call.times(far, -1.0, "negated")
    gap = call.step("gap", "Relu", [call.plus(negated, p.margin, "margin")], (count,))
    if not p.legacy_version:
        gap = call.step("gap_square", "Mul", [gap, gap], (count,))
    other = call.plus(call.times(y, -1.0, "minus_y"), 1.0, "other")
    apart = call.step("apart", "Mul", [other, gap], (count,))
    each = call.step("each", "Add", [close, apart], (count,))
    mean = call.step("mean", "ReduceMean", [each, call.builder.ints(0)], (), keepdims=0)
    return call.times(mean, 0.5)
