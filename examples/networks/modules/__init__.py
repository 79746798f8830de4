"""The networks as PyTorch modules: each takes its inputs and labels and gives the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from networks import sizes
from networks.modules.base import Network, plainly
from networks.modules.densenet import DenseNet
from networks.modules.lstm import LSTM
from networks.modules.mobilenet_v2 import MobileNetV2
from networks.modules.resnet import ResNet

__all__ = ["LSTM", "DenseNet", "MobileNetV2", "Network", "ResNet", "inputs", "module", "plainly"]

_MODULES = {
    sizes.ResNet: ResNet,
    sizes.DenseNet: DenseNet,
    sizes.MobileNetV2: MobileNetV2,
    sizes.LSTM: LSTM,
}


def module(size: sizes.Size) -> Network:
    """The network of ``size`` in training mode."""
    return _MODULES[type(size)](size).train()


def inputs(size: sizes.Size, batch: int) -> dict[str, Tensor]:
    """Inputs and labels for one step, by name; random."""
    if isinstance(size, sizes.LSTM):
        label = torch.randint(0, size.classes, (batch, size.steps))
        return {"data": torch.randn(batch, size.steps, size.inputs), "label": label}
    label = torch.randint(0, size.classes, (batch,))
    return {"image": torch.randn(batch, 3, size.side, size.side), "label": label}
