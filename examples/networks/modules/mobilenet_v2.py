"""MobileNetV2 (arXiv 1801.04381)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from networks import sizes
from networks.modules.base import Network, dropout


class _Convolution(nn.Sequential):
    """Convolution and normalisation, and ReLU6 where ``active``."""

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        active: bool = True,
    ) -> None:
        super().__init__(
            nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(filters),
            *([nn.ReLU6()] if active else []),
        )


class _Bottleneck(nn.Module):
    """Widens, works on each channel alone, narrows; the input is added where nothing changes."""

    def __init__(self, channels: int, widen: int, filters: int, stride: int) -> None:
        super().__init__()
        inner = channels * widen
        self.adds = stride == 1 and channels == filters
        self.convs = nn.Sequential(
            _Convolution(channels, inner),
            _Convolution(inner, inner, 3, stride, inner),
            _Convolution(inner, filters, active=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x) + x if self.adds else self.convs(x)


class MobileNetV2(Network):
    """Each bottleneck is a block for the runner."""

    def __init__(self, size: sizes.MobileNetV2) -> None:
        super().__init__()
        channels = size.first
        self.stem = _Convolution(3, channels, 3, 2)
        blocks = []
        for widen, filters, stride in size.bottlenecks:
            blocks.append(_Bottleneck(channels, widen, filters, stride))
            channels = filters
        self.blocks = nn.ModuleList(blocks)
        self.last = _Convolution(channels, size.last)
        self.drop = dropout(size.dropout)
        self.head = nn.Conv2d(size.last, size.classes, 1, bias=False)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """``image``: N x 3 x H x W."""
        x = self.stem(image)
        for block in self.blocks:
            x = self.run(block, x)
        x = self.drop(F.adaptive_avg_pool2d(self.last(x), 1))
        return F.cross_entropy(self.head(x).flatten(1), label)
