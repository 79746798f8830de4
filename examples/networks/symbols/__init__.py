"""The networks as MXNet symbols, each ending in its loss."""

from __future__ import annotations

from typing import Any

from networks import sizes
from networks.symbols.base import mx
from networks.symbols.densenet import densenet
from networks.symbols.lstm import lstm
from networks.symbols.mobilenet_v2 import mobilenet_v2
from networks.symbols.resnet import resnet

_BUILDERS = {
    sizes.ResNet: resnet,
    sizes.DenseNet: densenet,
    sizes.MobileNetV2: mobilenet_v2,
    sizes.LSTM: lstm,
}


def symbol(size: sizes.Size) -> Any:
    """The network of ``size``; names that MXNet gives out start from 0."""
    with mx.name.NameManager():
        return _BUILDERS[type(size)](size)  # type: ignore[operator]
