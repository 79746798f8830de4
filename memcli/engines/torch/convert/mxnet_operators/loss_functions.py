"""MXNet's loss layers: outputs whose gradients start by themselves, whatever comes from behind."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


class SoftmaxRule(NamedTuple):
    """The attributes of SoftmaxOutput; ``axis``: of the classes, None for all of a sample."""

    axis: int | None
    scale: float
    ignored: float | None
    normalization: str
    smoothing: float


class _SoftmaxOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, label: Tensor, rule: SoftmaxRule) -> Tensor:
        if rule.axis is None:
            y = F.softmax(x.reshape(x.shape[0], -1), 1).reshape(x.shape)
        else:
            y = F.softmax(x, rule.axis)
        ctx.save_for_backward(y, label)
        ctx.rule = rule
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        y, label = ctx.saved_tensors
        rule: SoftmaxRule = ctx.rule
        if label.shape == y.shape:  # a distribution
            result = (y - label) * rule.scale
        else:
            result = _softmax_gradient(y, label, rule)
        return result, None, None


def _softmax_gradient(y: Tensor, label: Tensor, rule: SoftmaxRule) -> Tensor:
    axis = 1 if rule.axis is None else rule.axis
    whole = y.reshape(y.shape[0], -1) if rule.axis is None else y
    classes = whole.shape[axis]
    shape = [size for d, size in enumerate(whole.shape) if d != axis]
    label = label.reshape(shape)
    hot = label.long().unsqueeze(axis) == _places(whole, axis)
    if rule.smoothing:
        spread = rule.smoothing / (classes - 1)
        result = whole - torch.where(hot, 1.0 - rule.smoothing, spread).to(whole.dtype)
    else:
        result = whole - hot.to(whole.dtype)
    if rule.ignored is not None:
        # as MXNet compares: both as whole numbers
        result = result.masked_fill((label.long() == int(rule.ignored)).unsqueeze(axis), 0.0)
    multi = axis == 1 and whole.dim() > 2
    divisor: Tensor | float = 1.0
    if rule.normalization == "batch":
        divisor = float(label.shape[0] if multi else label.numel())
    elif rule.normalization == "valid":
        ignored = -1 if rule.ignored is None else int(rule.ignored)
        divisor = (label.long() != ignored).sum().clamp(min=1).to(whole.dtype)
    if multi and rule.normalization != "valid":
        divisor = divisor * float(label.numel() // label.shape[0])
    return (result * (rule.scale / divisor)).reshape(y.shape)


def _places(x: Tensor, axis: int) -> Tensor:
    shape = [1] * x.dim()
    shape[axis] = x.shape[axis]
    return torch.arange(x.shape[axis], device=x.device).reshape(shape)


class _RegressionOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, label: Tensor, kind: str, scale: float) -> Tensor:
        y = torch.sigmoid(x) if kind == "logistic" else x.clone()
        ctx.save_for_backward(y, label)
        ctx.kind, ctx.scale = kind, scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        y, label = ctx.saved_tensors
        difference = y - label.reshape(y.shape)
        if ctx.kind == "absolute":
            difference = torch.sign(difference)
        outputs = label.numel() // label.shape[0]
        return difference * (ctx.scale / outputs), None, None, None


class _MakeLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, normalization: str, threshold: float) -> Tensor:
        ctx.shape, ctx.dtype, ctx.device = x.shape, x.dtype, x.device
        ctx.scale, ctx.valid = scale, normalization == "valid"
        if normalization == "batch":
            ctx.scale = scale / x.shape[0]
        if ctx.valid:
            ctx.save_for_backward((x > threshold).sum().clamp(min=1))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        result = torch.full(ctx.shape, ctx.scale, dtype=ctx.dtype, device=ctx.device)
        if ctx.valid:
            (count,) = ctx.saved_tensors
            result = result / count.to(ctx.dtype)
        return result, None, None, None


class _SVMOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, label: Tensor, margin: float, weight: float, linear: bool
    ) -> Tensor:
        ctx.save_for_backward(x, label)
        ctx.margin, ctx.weight, ctx.linear = margin, weight, linear
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, label = ctx.saved_tensors
        hot = label.long().reshape(-1, 1) == _places(x, 1)
        sign = torch.where(hot, -1.0, 1.0).to(x.dtype)
        short = torch.relu(ctx.margin + sign * x)
        size = (short > 0).to(x.dtype) if ctx.linear else 2 * short
        return sign * size * ctx.weight, None, None, None, None


def softmax_output(x: Tensor, label: Tensor, rule: SoftmaxRule) -> Tensor:
    """The softmax of ``x``; its gradient is that of the cross-entropy with ``label``.

    ``(p - onehot) grad_scale``, zero at ignored labels, divided by the batch or by the number of
    labels that count where the normalization asks for it (src/operator/softmax_output-inl.h).
    """
    return _SoftmaxOutput.apply(x, label, SoftmaxRule(*rule))


def regression_output(x: Tensor, label: Tensor, kind: str, scale: float) -> Tensor:
    """``x`` (``logistic``: its sigmoid); gradient ``(y - label) scale / outputs of a sample``.

    ``absolute``: of the difference its sign.
    """
    return _RegressionOutput.apply(x, label, kind, scale)


def make_loss(x: Tensor, scale: float, normalization: str, threshold: float) -> Tensor:
    """``x``; its gradient is ``scale`` everywhere, divided as ``normalization`` says."""
    return _MakeLoss.apply(x, scale, normalization, threshold)


def svm_output(x: Tensor, label: Tensor, margin: float, weight: float, linear: bool) -> Tensor:
    """``x``; its gradient is that of the hinge loss, squared unless ``linear``."""
    return _SVMOutput.apply(x, label, margin, weight, linear)


def softmax_cross_entropy(x: Tensor, label: Tensor) -> Tensor:
    """The sum of the cross-entropies of all rows, as a tensor of shape (1,)."""
    return F.cross_entropy(x, label.long(), reduction="sum").reshape(1)
