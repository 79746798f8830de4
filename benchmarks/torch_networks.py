"""Networks for the PyTorch benchmarks, made of blocks that a runner calls one by one.

ResNet-50 and DenseNet-121 as the examples have them, a GPT as GPT-2 small is made (without
dropout), and ViT-B/16 (arXiv 2010.11929). Each takes a batch and its labels and gives the
cross entropy, so that a training step is the call and ``backward()``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from networks import modules, sizes  # the examples are no package of memcli's
from networks.modules.base import Network, Runner, plainly

__all__ = ["SIZES", "SMALL", "Network", "Runner", "Size", "make_network", "plainly"]


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


KINDS: dict[str, Callable[..., Network]] = {
    "resnet-50": lambda **model: modules.ResNet(sizes.ResNet(**model)),
    "densenet-121": lambda **model: modules.DenseNet(sizes.DenseNet(**model)),
    "gpt": GPT,
    "vit-b-16": ViT,
}
SIZES = {
    "resnet-50": Size(64, (3, 224, 224), 1000, {}),
    "densenet-121": Size(64, (3, 224, 224), 1000, asdict(sizes.large_densenet(121))),
    "gpt": Size(8, (1024,), 50257, {}),
    "vit-b-16": Size(64, (3, 224, 224), 1000, {}),
}
# The same kinds with few and narrow blocks, which run anywhere in no time.
SMALL = {
    "resnet-50": Size(4, (3, 64, 64), 10, {"units": (2, 2, 2), "width": 8, "classes": 10}),
    "densenet-121": Size(
        4, (3, 64, 64), 10, {"layers": (3, 4), "growth": 8, "first": 16, "classes": 10}
    ),
    "gpt": Size(
        4,
        (64,),
        200,
        {"layers": 3, "width": 32, "heads": 2, "context": 64, "vocabulary": 200},
    ),
    "vit-b-16": Size(
        4,
        (3, 64, 64),
        10,
        {"layers": 3, "width": 32, "heads": 2, "side": 64, "patch": 8, "classes": 10},
    ),
}


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
