"""Residual networks (arXiv 1512.03385), and the classic memory planner's form of them.

The stride is in the 3x3 convolution; every stage starts with a convolution on the shortcut where
size or channels change.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from networks import sizes
from networks.modules.base import Classifier, Network

_LEAKY_SLOPE = 0.25  # MXNet's default


class _Convolution(nn.Module):
    """Convolution, normalisation, activation; padded so that stride 1 keeps the size."""

    def __init__(
        self,
        size: sizes.ResNet,
        channels: int,
        filters: int,
        kernel: int,
        stride: int = 1,
        *,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.slope = _LEAKY_SLOPE if size.classic else 0.0
        self.active = active or size.classic
        self.conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=size.classic)
        self.bn = nn.BatchNorm2d(filters, 1e-3 if size.classic else 1e-5)
        self.bn.weight.requires_grad_(not size.classic)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        if not self.active:
            return x
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)


class _Unit(nn.Module):
    """One residual unit from ``channels`` to ``width`` times the expansion."""

    def __init__(self, size: sizes.ResNet, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * size.expansion
        self.classic = size.classic
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = _Convolution(size, channels, out, 1, stride, active=False)
        if size.bottleneck:
            self.branch = nn.Sequential(
                _Convolution(size, channels, width, 1),
                _Convolution(size, width, width, 3, stride),
                _Convolution(size, width, out, 1, active=False),
            )
        else:
            self.branch = nn.Sequential(
                _Convolution(size, channels, width, 3, stride),
                _Convolution(size, width, out, 3, active=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        total = self.branch(x) + self.shortcut(x)
        return total if self.classic else F.relu(total)


class ResNet(Network):
    """Each unit is a block for the runner."""

    def __init__(self, size: sizes.ResNet) -> None:
        super().__init__()
        if size.small:
            self.stem = nn.Sequential(_Convolution(size, 3, size.width, 3))
        else:
            self.stem = nn.Sequential(
                _Convolution(size, 3, size.width, 7, 2),
                nn.MaxPool2d(3, 2, 0 if size.classic else 1),
            )
        channels = size.width
        units = []
        for stage, count in enumerate(size.units):
            width = size.width << stage
            for number in range(count):
                units.append(_Unit(size, channels, width, 2 if stage and not number else 1))
                channels = width * size.expansion
        self.blocks = nn.ModuleList(units)
        self.head = Classifier(channels, size.classes)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """``image``: N x 3 x H x W."""
        x = self.stem(image)
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(x, label)
