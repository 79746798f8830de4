"""Translations of the loss layers."""

from __future__ import annotations

import torch

from memcli.engines.torch.convert.calls import Call
from memcli.engines.torch.convert.mxnet_operators.loss_functions import (
    SoftmaxRule,
    make_loss,
    regression_output,
    softmax_cross_entropy,
    softmax_output,
    svm_output,
)
from memcli.engines.torch.convert.mxnet_operators.registry import Site, operator

Tensor = torch.Tensor
_REGRESSIONS = {
    "LinearRegressionOutput": "linear",
    "LogisticRegressionOutput": "logistic",
    "MAERegressionOutput": "absolute",
}


def without_gradient(x: Tensor) -> Tensor:
    """``x`` where no gradient passes."""
    return x.detach()


@operator("SoftmaxOutput", "Softmax")
def softmax(site: Site) -> Call:
    attributes = site.attributes
    # MXNet 1.9.1 multiplies by the output then, not by the output's gradient as documented.
    site.refuse("out_grad")
    axis: int | None = None
    if attributes.flag("multi_output"):
        axis = 1
    elif attributes.flag("preserve_shape"):
        axis = site.rank() - 1
    rule = SoftmaxRule(
        axis=axis,
        scale=attributes.number("grad_scale", 1.0),
        ignored=attributes.number("ignore_label", -1.0) if attributes.flag("use_ignore") else None,
        normalization=attributes.text("normalization", "null"),
        smoothing=attributes.number("smooth_alpha", 0.0),
    )
    return Call(softmax_output, (site.value(), site.value(1), tuple(rule)))


@operator("LinearRegressionOutput", "LogisticRegressionOutput", "MAERegressionOutput")
def regression(site: Site) -> Call:
    scale = site.attributes.number("grad_scale", 1.0)
    return Call(regression_output, (site.value(), site.value(1), _REGRESSIONS[site.op], scale))


@operator("MakeLoss")
def loss(site: Site) -> Call:
    attributes = site.attributes
    scale = attributes.number("grad_scale", 1.0)
    normalization = attributes.text("normalization", "null")
    threshold = attributes.number("valid_thresh", 0.0)
    return Call(make_loss, (site.value(), scale, normalization, threshold))


@operator("make_loss")
def plain_loss(site: Site) -> Call:
    return Call(make_loss, (site.value(), 1.0, "null", 0.0))


@operator("SVMOutput")
def svm(site: Site) -> Call:
    attributes = site.attributes
    margin = attributes.number("margin", 1.0)
    weight = attributes.number("regularization_coefficient", 1.0)
    linear = attributes.flag("use_linear")
    return Call(svm_output, (site.value(), site.value(1), margin, weight, linear))


@operator("softmax_cross_entropy")
def cross_entropy(site: Site) -> Call:
    return Call(softmax_cross_entropy, (site.value(), site.value(1)))


@operator("BlockGrad", "stop_gradient")
def block(site: Site) -> Call:
    return Call(without_gradient, (site.value(),))
