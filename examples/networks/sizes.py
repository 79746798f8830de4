"""What each network is made of, whatever builds it: its units, layers and channels by depth."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_SIDE, CIFAR_SIDE = 224, 32

# Units of each stage where a depth has become a name: arXiv 1512.03385 (table 1), 1603.05027 (200).
_RESNETS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    # Stands for the "1,000-layer" network of arXiv 1604.06174, whose division into stages we do
    # not know. Chosen among several to match its figure: ResNet-152 with a longer third stage, 1001
    # convolutions with those on shortcuts; the classic form's baseline is 48,023 MiB at batch 32.
    1000: (3, 8, 318, 3),
}
_BASIC_RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# Layers of each dense block, arXiv 1608.06993, table 1; 264 from its authors' repository.
_DENSENETS = {
    121: (6, 12, 24, 16),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}

# arXiv 1801.04381, table 2.
_BOTTLENECKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclass(frozen=True)
class ResNet:
    """A residual network: ``units`` of each stage, ``width`` channels in the first.

    ``small`` images get one 3x3 convolution at the start and no pooling. ``classic`` is the form of
    the classic memory planner's example, whose figures were published: biases, fixed scales in
    BatchNorm, LeakyReLU after each convolution and none after the sums, no padding in the pooling.
    """

    units: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    side: int = IMAGENET_SIDE
    classes: int = 1000
    small: bool = False
    classic: bool = False

    @property
    def expansion(self) -> int:
        """How many times wider a unit's output is than its 3x3 convolution."""
        return 4 if self.bottleneck else 1

    @property
    def last_side(self) -> int:
        """Height and width of the feature maps before the last pooling."""
        side = self.side
        if not self.small:
            side = (side + 1) // 2
            side = (side - 3) // 2 + 1 if self.classic else (side + 1) // 2
        for _ in self.units[1:]:
            side = (side + 1) // 2
        return side


@dataclass(frozen=True)
class DenseNet:
    """A densely connected network: ``layers`` of each block, each adding ``growth`` channels.

    ``bottleneck``: a 1x1 convolution to four times ``growth`` before each 3x3 one;
    ``compression``: which part of the channels is left between blocks; ``first``: channels of the
    first convolution. ``classic``: as the classic planner's variant for DenseNet has it, with no
    padding in the first pooling and a fixed scale in the first BatchNorm.
    """

    layers: tuple[int, ...]
    growth: int
    first: int
    bottleneck: bool = True
    compression: float = 0.5
    side: int = IMAGENET_SIDE
    classes: int = 1000
    dropout: float = 0.0
    small: bool = False
    classic: bool = False

    def compressed(self, channels: int) -> int:
        """Channels after a transition."""
        return int(channels * self.compression)


@dataclass(frozen=True)
class MobileNetV2:
    """Inverted bottlenecks, arXiv 1801.04381; ``width`` multiplies all channels.

    ``stages``: how much wider a bottleneck is inside, channels out, how many of them, stride of
    the first.
    """

    width: float = 1.0
    side: int = IMAGENET_SIDE
    classes: int = 1000
    dropout: float = 0.0
    stages: tuple[tuple[int, int, int, int], ...] = _BOTTLENECKS

    @property
    def first(self) -> int:
        """Channels of the first convolution."""
        return self._scaled(32)

    @property
    def last(self) -> int:
        """Channels of the last convolution; narrow networks keep them all."""
        return max(1280, self._scaled(1280))

    @property
    def bottlenecks(self) -> list[tuple[int, int, int]]:
        """(how much wider inside, channels out, stride) of each."""
        return [
            (widen, self._scaled(channels), first_stride if index == 0 else 1)
            for widen, channels, count, first_stride in self.stages
            for index in range(count)
        ]

    def _scaled(self, channels: int) -> int:
        """The nearest multiple of eight that is not under nine tenths of the exact number."""
        exact = channels * self.width
        rounded = max(8, int(exact + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * exact else rounded


@dataclass(frozen=True)
class LSTM:
    """An LSTM over ``steps`` with a classifier and its loss at each, as in arXiv 1604.06174.

    ``fused``: each layer in one operator (PyTorch alone); ``batch``: sequences at once, which
    stand in MXNet's file.
    """

    layers: int = 2
    hidden: int = 256
    steps: int = 35
    inputs: int = 50
    classes: int = 5000
    batch: int = 64
    fused: bool = False


Size = ResNet | DenseNet | MobileNetV2 | LSTM


def resnet(
    depth: int,
    *,
    small: bool = False,
    bottleneck: bool | None = None,
    side: int | None = None,
    classes: int | None = None,
    classic: bool = False,
) -> ResNet:
    """The ResNet of ``depth`` convolutions and linear layers, those on shortcuts not counted.

    Large images: the depths of table 1, and any other 3n + 2 with bottlenecks, by a longer third
    stage. Small ones: 6n + 2, or 9n + 2 with bottlenecks (arXiv 1603.05027, from 164 layers on).

    Raises:
        ValueError: there is none of this depth.
    """
    if small:
        if bottleneck is None:
            bottleneck = (depth - 2) % 9 == 0 and depth >= 164
        per = 9 if bottleneck else 6
        if depth <= 2 or (depth - 2) % per:
            raise ValueError(_no_depth(depth, f"{per}n + 2", per, 2))
        units: tuple[int, ...] = ((depth - 2) // per,) * 3
    else:
        if bottleneck is None:
            bottleneck = depth not in _BASIC_RESNETS
        units = _large_units(depth) if bottleneck else _BASIC_RESNETS.get(depth, ())
        if not units:
            raise ValueError(f"depth {depth}: with basic units there are 18 and 34")
    return ResNet(
        units,
        bottleneck,
        width=16 if small else 64,
        side=side or (CIFAR_SIDE if small else IMAGENET_SIDE),
        classes=classes or (10 if small else 1000),
        small=small,
        classic=classic,
    )


def _large_units(depth: int) -> tuple[int, ...]:
    if depth in _RESNETS:
        return _RESNETS[depth]
    count = (depth - 2) // 3
    if (depth - 2) % 3 or count < 11:
        raise ValueError(_no_depth(depth, "3n + 2 from 35 on, or 1000", 3, 2, least=35))
    second = 4 if depth < 152 else 8
    return (3, second, count - 6 - second, 3)


def densenet(
    depth: int,
    growth: int,
    *,
    bottleneck: bool = True,
    side: int | None = None,
    classes: int | None = None,
    dropout: float = 0.0,
) -> DenseNet:
    """The DenseNet for small images: three blocks of as many layers as ``depth`` allows.

    With ``bottleneck`` a DenseNet-BC, which also halves the channels between blocks.

    Raises:
        ValueError: there is none of this depth.
    """
    per = 6 if bottleneck else 3
    if depth < 4 + per or (depth - 4) % per:
        raise ValueError(_no_depth(depth, f"{per}n + 4", per, 4))
    return DenseNet(
        ((depth - 4) // per,) * 3,
        growth,
        first=2 * growth if bottleneck else 16,
        bottleneck=bottleneck,
        compression=0.5 if bottleneck else 1.0,
        side=side or CIFAR_SIDE,
        classes=classes or 10,
        dropout=dropout,
        small=True,
    )


def large_densenet(
    depth: int,
    growth: int = 32,
    *,
    side: int | None = None,
    classes: int | None = None,
    dropout: float = 0.0,
    classic: bool = False,
) -> DenseNet:
    """The DenseNet-BC for large images, of a depth of table 1.

    Raises:
        ValueError: there is none of this depth.
    """
    if depth not in _DENSENETS:
        known = ", ".join(map(str, _DENSENETS))
        raise ValueError(f"depth {depth}: for large images there are {known}")
    return DenseNet(
        _DENSENETS[depth],
        growth,
        first=2 * growth,
        side=side or IMAGENET_SIDE,
        classes=classes or 1000,
        dropout=dropout,
        classic=classic,
    )


def _no_depth(depth: int, rule: str, per: int, rest: int, *, least: int = 0) -> str:
    """What is wrong with a depth, and which are next to it."""
    least = least or per + rest
    under = depth - (depth - rest) % per
    near = sorted({max(least, under), max(least, under + per)})
    return f"depth {depth}: it has to be {rule}; nearest: {' and '.join(map(str, near))}"
