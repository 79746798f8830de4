"""What the image networks have in common: the input, the mark of a stage, the classifier."""

from __future__ import annotations

from typing import Any

from memcli.engines.mxnet.shim import import_mxnet
from networks.sizes import IMAGENET_SIDE

mx = import_mxnet()


def image(side: int) -> Any:
    """The input ``data``; a side other than the usual one stands in the file, the batch open."""
    if side == IMAGENET_SIDE:
        return mx.sym.Variable("data")
    return mx.sym.Variable("data", shape=(0, 3, side, side))


def marked(data: Any, stage: str = "True") -> Any:
    """``data`` with the mark by which the classic memory planner knows where it may cut."""
    data._set_attr(mirror_stage=stage)
    return data


def dropped(data: Any, rate: float, name: str) -> Any:
    """``data`` after dropout, or as it is."""
    return mx.sym.Dropout(data, p=rate, name=name) if rate else data


def classified(data: Any, classes: int) -> Any:
    """A linear layer and the loss, on pooled features."""
    data = mx.sym.FullyConnected(data, num_hidden=classes, name="fc1")
    return mx.sym.SoftmaxOutput(data, name="softmax")
