"""Networks for the PyTorch benchmarks, made of blocks that a runner calls one by one.

ResNet-50 (arXiv 1512.03385), DenseNet-121 (arXiv 1608.06993), a GPT as GPT-2 small is made
(without dropout), and ViT-B/16 (arXiv 2010.11929). Each takes a batch and its labels and gives the
cross entropy, so that a training step is the call and ``backward()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Runner = Callable[..., Tensor]


def plainly(block: nn.Module, *inputs: Tensor) -> Tensor:
    """The runner that does nothing beside calling the block."""
    return block(*inputs)


class Network(nn.Module):
    """``run`` calls the repeated blocks: the place to checkpoint them."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Runner = plainly


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class _Stem(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip


class ResNet(Network):
    """``depths``: blocks of each stage; ``width``: channels of the first stage's bottlenecks."""

    def __init__(
        self, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000
    ) -> None:
        super().__init__()
        self.stem = _Stem(width)
        channels = width
        blocks = []
        for stage, depth in enumerate(depths):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(_Bottleneck(channels, width << stage, stride))
                channels = 4 * (width << stage)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """``image``: N x 3 x H x W."""
        x = self.stem(image)
        for block in self.blocks:
            x = self.run(block, x)
        return F.cross_entropy(self.head(x.mean((2, 3))), label)


class _DenseLayer(nn.Module):
    """Reads all that the layers before it made; the concatenation is its own."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        x = torch.cat(features, 1) if len(features) > 1 else features[0]
        x = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(x)))


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(torch.cat(features, 1)))), 2)


class DenseNet(Network):
    """``depths``: layers of each dense block; each layer is a block for the runner."""

    def __init__(
        self, depths: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = _Stem(channels)
        self.dense = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for number, depth in enumerate(depths):
            layers = [_DenseLayer(channels + k * growth, growth) for k in range(depth)]
            self.dense.append(nn.ModuleList(layers))
            channels += depth * growth
            if number + 1 < len(depths):
                self.transitions.append(_Transition(channels))
                channels //= 2
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """``image``: N x 3 x H x W."""
        x = self.stem(image)
        for number, layers in enumerate(self.dense):
            features = [x]
            for layer in layers:  # type: ignore[attr-defined]  # a ModuleList itself
                features.append(self.run(layer, *features))
            if number < len(self.transitions):
                x = self.run(self.transitions[number], *features)
            else:
                x = torch.cat(features, 1)
        x = F.relu(self.norm(x))
        return F.cross_entropy(self.head(x.mean((2, 3))), label)


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, 2)
        q, k, v = (p.reshape(n, length, self.heads, -1).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(y.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(Network):
    """The head is tied to the embedding."""

    def __init__(
        self,
        layers: int = 12,
        width: int = 768,
        heads: int = 12,
        context: int = 1024,
        vocabulary: int = 50257,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.ModuleList(
            _TransformerBlock(width, heads, causal=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, token: Tensor, label: Tensor) -> Tensor:
        """Both: N x context."""
        x = self.tokens(token) + self.positions
        for block in self.blocks:
            x = self.run(block, x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), label.flatten())


class ViT(Network):
    """``side`` of the image and ``patch`` in pixels."""

    def __init__(
        self,
        layers: int = 12,
        width: int = 768,
        heads: int = 12,
        side: int = 224,
        patch: int = 16,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            _TransformerBlock(width, heads, causal=False) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """``image``: N x 3 x side x side."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = self.run(block, x)
        return F.cross_entropy(self.head(self.norm(x)[:, 0]), label)


@dataclass(frozen=True)
class Size:
    """``batch``; ``input``: one image's shape, or a context's length; ``model``: its arguments."""

    batch: int
    input: tuple[int, ...]
    classes: int
    model: dict[str, Any]


KINDS: dict[str, type[Network]] = {
    "resnet-50": ResNet, "densenet-121": DenseNet, "gpt": GPT, "vit-b-16": ViT,
}  # fmt: skip
SIZES = {
    "resnet-50": Size(64, (3, 224, 224), 1000, {}),
    "densenet-121": Size(64, (3, 224, 224), 1000, {}),
    "gpt": Size(8, (1024,), 50257, {}),
    "vit-b-16": Size(64, (3, 224, 224), 1000, {}),
}
# The same kinds with few and narrow blocks, which run anywhere in no time.
SMALL = {
    "resnet-50": Size(4, (3, 64, 64), 10, {"depths": (2, 2, 2), "width": 8, "classes": 10}),
    "densenet-121": Size(4, (3, 64, 64), 10, {"depths": (3, 4), "growth": 8, "classes": 10}),
    "gpt": Size(
        4, (64,), 200,
        {"layers": 3, "width": 32, "heads": 2, "context": 64, "vocabulary": 200},
    ),
    "vit-b-16": Size(
        4, (3, 64, 64), 10,
        {"layers": 3, "width": 32, "heads": 2, "side": 64, "patch": 8, "classes": 10},
    ),
}  # fmt: skip


def make_network(
    name: str, size: Size, seed: int = 0, device: str = "cpu"
) -> tuple[Network, list[Tensor]]:
    """A network in training mode, and its inputs; the same values on every device."""
    torch.manual_seed(seed)
    network = KINDS[name](**size.model).train()
    if name == "gpt":
        shape = (size.batch, *size.input)
        given = torch.randint(0, size.classes, shape)
        label = torch.randint(0, size.classes, shape)
    else:
        given = torch.randn(size.batch, *size.input)
        label = torch.randint(0, size.classes, (size.batch,))
    return network.to(device), [given.to(device), label.to(device)]
