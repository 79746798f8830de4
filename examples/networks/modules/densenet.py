"""Densely connected networks (arXiv 1608.06993): each layer concatenates all those before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import sizes
from networks.modules.base import Classifier, Network, dropout


class _Normalised(nn.Module):
    """BatchNorm, ReLU, a convolution without bias, dropout."""

    def __init__(self, size: sizes.DenseNet, channels: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.norm = _norm(size, channels)
        self.conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2, bias=False)
        self.drop = dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(F.relu(self.norm(x))))


class _Layer(nn.Module):
    """Reads all that the layers before it made; the concatenation is its own."""

    def __init__(self, size: sizes.DenseNet, channels: int) -> None:
        super().__init__()
        inner = 4 * size.growth if size.bottleneck else channels
        self.squeeze = _Normalised(size, channels, inner, 1) if size.bottleneck else nn.Identity()
        self.grow = _Normalised(size, inner, size.growth, 3)

    def forward(self, *features: Tensor) -> Tensor:
        return self.grow(self.squeeze(_joined(features)))


class _Transition(nn.Module):
    """Fewer channels, half the side."""

    def __init__(self, size: sizes.DenseNet, channels: int) -> None:
        super().__init__()
        self.reduce = _Normalised(size, channels, size.compressed(channels), 1)

    def forward(self, *features: Tensor) -> Tensor:
        return F.avg_pool2d(self.reduce(_joined(features)), 2)


class DenseNet(Network):
    """Each layer and each transition is a block for the runner."""

    def __init__(self, size: sizes.DenseNet) -> None:
        super().__init__()
        channels = size.first
        if size.small:
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False))
        else:
            norm = _norm(size, channels)
            norm.weight.requires_grad_(not size.classic)
            self.stem = nn.Sequential(
                nn.Conv2d(3, channels, 7, 2, 3, bias=False),
                norm,
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 0 if size.classic else 1),
            )
        self.dense = nn.ModuleList()
        for number, count in enumerate(size.layers):
            layers = [_Layer(size, channels + k * size.growth) for k in range(count)]
            channels += count * size.growth
            if number + 1 < len(size.layers):
                layers.append(_Transition(size, channels))
                channels = size.compressed(channels)
            self.dense.append(nn.ModuleList(layers))
        self.norm = _norm(size, channels)
        self.head = Classifier(channels, size.classes)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """``image``: N x 3 x H x W."""
        x = self.stem(image)
        for layers in self.dense:
            features = [x]
            for layer in layers:  # type: ignore[attr-defined]  # a ModuleList itself
                if isinstance(layer, _Transition):
                    features = [self.run(layer, *features)]
                else:
                    features.append(self.run(layer, *features))
            x = _joined(features)
        return self.head(F.relu(self.norm(x)), label)


def _norm(size: sizes.DenseNet, channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, 2e-5 if size.classic else 1e-5)


def _joined(features: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat(list(features), 1) if len(features) > 1 else features[0]
