"""Small networks in the form in which users write them, for ``module_architectures.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, k: int = 3, stride: int = 1, act: nn.Module | None = None, **kw: int):  # type: ignore[no-untyped-def]
    """A convolution, BatchNorm and an activation in place."""
    layers = [nn.Conv2d(i, o, k, stride, k // 2, bias=False, **kw), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([] if act is None else [act]))


class Bottleneck(nn.Module):
    def __init__(self, i: int, width: int, stride: int) -> None:
        super().__init__()
        o = 4 * width
        self.conv1 = nn.Conv2d(i, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, o, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv(i, o, 1, stride) if stride != 1 or i != o else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet-50's layout."""

    def __init__(self, width: int = 8, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.stem = conv(3, 8 * width // 8, 7, 2, nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        layers: list[nn.Module] = []
        i = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(Bottleneck(i, width << stage, 2 if stage and not block else 1))
                i = 4 * (width << stage)
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(i, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.pool(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        return self.drop(self.proj(x.transpose(1, 2).reshape(b, n, d)))


class ViTBlock(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = Attention(d, heads)
        self.mlp = nn.Sequential(
            nn.Linear(d, 4 * d), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * d, d), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """ViT-S's layout, as timm writes it."""

    def __init__(self, d: int = 48, heads: int = 3, depth: int = 6) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, d, 8, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        self.pos = nn.Parameter(torch.randn(1, 65, d) * 0.02)
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.Sequential(*[ViTBlock(d, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.drop(torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos)
        return self.head(self.norm(self.blocks(x))[:, 0])


class Squeeze(nn.Module):
    def __init__(self, c: int, gate: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.gate = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)), inplace=True)))


class Inverted(nn.Module):
    """MobileNet's and EfficientNet's block, with stochastic depth where asked for."""

    def __init__(
        self, i: int, o: int, stride: int, act: type[nn.Module], gate: nn.Module, drop: float
    ) -> None:
        super().__init__()
        wide = 4 * i
        self.body = nn.Sequential(
            conv(i, wide, 1, 1, act(inplace=True)),  # type: ignore[call-arg]
            conv(wide, wide, 3, stride, act(inplace=True), groups=wide),  # type: ignore[call-arg]
            Squeeze(wide, gate),
            conv(wide, o, 1),
        )
        self.skip, self.drop = stride == 1 and i == o, drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if not self.skip:
            return y
        if self.drop:
            keep = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop
            y = y.div(1 - self.drop) * keep
        return x + y


def mobile_net() -> nn.Module:
    """MobileNetV3's layout."""
    gate = nn.Hardsigmoid(inplace=True)
    blocks = [
        Inverted(i, o, s, nn.Hardswish if n > 1 else nn.ReLU, gate, 0.0)
        for n, (i, o, s) in enumerate(
            [(8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 24, 2), (24, 24, 1)]
        )
    ]
    return nn.Sequential(
        conv(3, 8, 3, 2, nn.Hardswish(inplace=True)),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 32),
        nn.Hardswish(inplace=True),
        nn.Dropout(0.2, inplace=True),
        nn.Linear(32, 10),
    )


class EfficientFPN(nn.Module):
    """An EfficientNet with a feature pyramid on it."""

    def __init__(self) -> None:
        super().__init__()
        gate = nn.Sigmoid()
        self.stem = conv(3, 8, 3, 2, nn.SiLU(inplace=True))
        sizes = [(8, 12), (12, 16), (16, 24)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                Inverted(i, o, 2, nn.SiLU, gate, 0.0), Inverted(o, o, 1, nn.SiLU, gate, 0.2)
            )
            for i, o in sizes
        )
        self.lateral = nn.ModuleList(nn.Conv2d(o, 16, 1) for _, o in sizes)
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        laterals = [layer(f) for layer, f in zip(self.lateral, features, strict=True)]
        for n in range(len(laterals) - 1, 0, -1):
            size = laterals[n - 1].shape[-2:]
            laterals[n - 1] = laterals[n - 1] + F.interpolate(
                laterals[n], size=size, mode="nearest"
            )
        return [layer(f) for layer, f in zip(self.smooth, laterals, strict=True)]


class UNet(nn.Module):
    """A U-Net of two or three dimensions."""

    def __init__(self, dims: int = 2, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        conv_, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        self.pool = getattr(nn, f"MaxPool{dims}d")(2)
        up = getattr(nn, f"ConvTranspose{dims}d")

        def double(i: int, o: int) -> nn.Module:
            return nn.Sequential(
                *(conv_(i, o, 3, padding=1, bias=False), norm(o), nn.ReLU(inplace=True)),
                *(conv_(o, o, 3, padding=1, bias=False), norm(o), nn.ReLU(inplace=True)),
            )

        widths = [width << n for n in range(depth + 1)]
        self.down = nn.ModuleList(
            double(i, o) for i, o in zip([1, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(up(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.join = nn.ModuleList(double(2 * w, w) for w in reversed(widths[:-1]))
        self.out = conv_(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for n, block in enumerate(self.down):
            x = block(self.pool(x) if n else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return self.out(x)


class DenseLayer(nn.Module):
    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """DenseNet-121's layout, with fewer layers."""

    def __init__(self, growth: int = 4, blocks: tuple[int, ...] = (3, 6, 8, 4)) -> None:
        super().__init__()
        i = 2 * growth
        self.stem = conv(3, i, 3, 2, nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for n, count in enumerate(blocks):
            self.blocks.append(
                nn.ModuleList(DenseLayer(i + k * growth, growth) for k in range(count))
            )
            i += count * growth
            last = n == len(blocks) - 1
            layers = [nn.BatchNorm2d(i), nn.ReLU(inplace=True)]
            if not last:
                layers += [nn.Conv2d(i, i // 2, 1, bias=False), nn.AvgPool2d(2)]
                i //= 2
            self.transitions.append(nn.Sequential(*layers))
        self.fc = nn.Linear(i, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            features = [x]
            for layer in block:  # type: ignore[attr-defined]
                features.append(layer(features))
            x = transition(torch.cat(features, 1))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DeepLab(nn.Module):
    """DeepLabV3+'s layout on a small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.stem = conv(3, 8, 3, 2, relu)
        self.low = nn.Sequential(Bottleneck(8, 4, 1), Bottleneck(16, 4, 1))
        self.high = nn.Sequential(Bottleneck(16, 8, 2), Bottleneck(32, 8, 1))
        self.aspp = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 16, 3, padding=r, dilation=r, bias=False), nn.BatchNorm2d(16), relu
            )
            for r in (1, 2, 4)
        )
        self.pooled = conv(32, 16, 1, 1, relu)
        self.project = nn.Sequential(conv(64, 16, 1, 1, relu), nn.Dropout(0.5))
        self.reduce = conv(16, 8, 1, 1, relu)
        self.head = nn.Sequential(conv(24, 16, 3, 1, relu), nn.Conv2d(16, 3, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        low = self.low(self.stem(x))
        high = self.high(low)
        pooled = F.interpolate(self.pooled(F.adaptive_avg_pool2d(high, 1)), high.shape[-2:])
        y = self.project(torch.cat([*(branch(high) for branch in self.aspp), pooled], 1))
        y = F.interpolate(y, low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.head(torch.cat([y, self.reduce(low)], 1))
        return {"out": F.interpolate(y, size, mode="bilinear", align_corners=False)}


class Translator(nn.Module):
    """``nn.Transformer`` with embeddings that share a weight with the output."""

    def __init__(self, words: int = 40, d: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, d)
        self.body = nn.Transformer(d, 4, 2, 2, 64, dropout=0.1, batch_first=True)
        self.out = nn.Linear(d, words, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        y = self.body(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True)
        return self.out(y)


class Tagger(nn.Module):
    """A bidirectional LSTM that tags words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.drop = nn.Dropout(0.3)
        self.first = nn.LSTM(24, 12, batch_first=True, bidirectional=True)
        self.second = nn.LSTM(24, 12, batch_first=True, bidirectional=True)
        self.mlp = nn.Sequential(nn.Linear(24, 96), nn.Tanh(), nn.Linear(96, 96), nn.GELU())
        self.tag = nn.Linear(96, 6)

    def forward(self, words: Tensor, tags: Tensor) -> dict[str, Tensor]:
        x, _ = self.first(self.drop(self.embed(words)))
        x, _ = self.second(self.drop(x))
        scores = self.tag(self.mlp(self.drop(x)))
        return {"loss": F.cross_entropy(scores.flatten(0, 1), tags.flatten()), "scores": scores}


def rrelu() -> nn.Module:
    """Activations with random slopes, in place and not."""
    layers: list[nn.Module] = []
    for n in range(5):
        layers += [nn.Conv2d(8 if n else 3, 8, 3, padding=1), nn.RReLU(inplace=n % 2 == 0)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 256, 4))


class InstanceNorms(nn.Module):
    """A generator of images: InstanceNorm with and without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.ReflectionPad2d(2), nn.Conv2d(3, 8, 5), nn.InstanceNorm2d(8), nn.ReLU(inplace=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)),
                *(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(8, 8, 3, padding=1)),
                nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            )
            for _ in range(4)
        )
        self.tail = nn.Sequential(nn.Conv2d(8, 3, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = x + block(x)
        return self.tail(x)
