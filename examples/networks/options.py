"""Command line options of each network, and the size that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from networks import sizes


def add_resnet_options(parser: argparse.ArgumentParser) -> None:
    """Depth and form of a ResNet."""
    parser.add_argument(
        "--depth",
        type=int,
        default=50,
        help="imagenet: 18, 34, or any 3n + 2 from 35 on, or 1000, which stands for the "
        "1000-layer network of arXiv 1604.06174; cifar: 6n + 2 or 9n + 2",
    )
    parser.add_argument(
        "--units", type=int, nargs="+", metavar="N", help="units of each stage, in place of --depth"
    )
    parser.add_argument(
        "--block",
        choices=["basic", "bottleneck"],
        help="two 3x3 convolutions, or 1x1, 3x3, 1x1; by default what is usual for the depth",
    )
    parser.add_argument(
        "--classic",
        action="store_true",
        help="the form of the classic memory planner's example: biases, LeakyReLU, fixed scales",
    )
    add_image_options(parser, "imagenet")


def resnet_of(args: argparse.Namespace) -> sizes.ResNet:
    """What the options of ``add_resnet_options`` ask for.

    Raises:
        ValueError: there is none of that depth.
    """
    small = args.images == "cifar"
    if args.classic and (small or args.block == "basic"):
        raise ValueError("--classic is for large images and bottlenecks")
    bottleneck = None if args.block is None else args.block == "bottleneck"
    if args.units is not None:
        if min(args.units) < 1 or len(args.units) > 5:
            raise ValueError("--units: one to five stages, with at least one unit in each")
        plain = sizes.resnet(20 if small else 50, small=small)
        size = replace(
            plain,
            units=tuple(args.units),
            bottleneck=bottleneck is not False,
            classic=args.classic,
            side=args.side or plain.side,
            classes=args.classes or plain.classes,
        )
    else:
        size = sizes.resnet(
            args.depth,
            small=small,
            bottleneck=bottleneck,
            side=args.side,
            classes=args.classes,
            classic=args.classic,
        )
    if size.last_side < 1:
        raise ValueError(f"--side {size.side}: nothing is left before the last pooling")
    return size


def add_densenet_options(parser: argparse.ArgumentParser) -> None:
    """Depth, growth and blocks of a DenseNet for small images."""
    parser.add_argument("--depth", type=int, default=40, help="3n + 4")
    parser.add_argument("--growth", type=_positive, default=12, help="channels that a layer adds")
    _add_size_options(parser)
    _add_dropout(parser)


def densenet_of(args: argparse.Namespace) -> sizes.DenseNet:
    """What the options of ``add_densenet_options`` ask for.

    Raises:
        ValueError: there is none of that depth.
    """
    return sizes.densenet(
        args.depth,
        args.growth,
        bottleneck=False,
        side=args.side,
        classes=args.classes,
        dropout=args.dropout,
    )


def add_densenet_bc_options(parser: argparse.ArgumentParser) -> None:
    """Depth and growth of a DenseNet-BC."""
    parser.add_argument(
        "--depth", type=int, help="cifar: 6n + 4 (100); imagenet: 121, 169, 201 or 264 (121)"
    )
    parser.add_argument(
        "--growth", type=_positive, help="channels that a layer adds (12; imagenet: 32)"
    )
    parser.add_argument(
        "--classic",
        action="store_true",
        help="the form in which the classic memory planner was shown with it; imagenet alone",
    )
    add_image_options(parser, "cifar")
    _add_dropout(parser)


def densenet_bc_of(args: argparse.Namespace) -> sizes.DenseNet:
    """What the options of ``add_densenet_bc_options`` ask for.

    Raises:
        ValueError: there is none of that depth.
    """
    if args.images == "imagenet":
        return sizes.large_densenet(
            args.depth or 121,
            args.growth or 32,
            side=args.side,
            classes=args.classes,
            dropout=args.dropout,
            classic=args.classic,
        )
    if args.classic:
        raise ValueError("--classic is for --images imagenet")
    return sizes.densenet(
        args.depth or 100,
        args.growth or 12,
        side=args.side,
        classes=args.classes,
        dropout=args.dropout,
    )


def add_mobilenet_options(parser: argparse.ArgumentParser) -> None:
    """Width and image of a MobileNetV2."""
    parser.add_argument("--width", type=float, default=1.0, help="multiplies all channels")
    _add_size_options(parser)
    _add_dropout(parser)


def mobilenet_of(args: argparse.Namespace) -> sizes.MobileNetV2:
    """What the options of ``add_mobilenet_options`` ask for.

    Raises:
        ValueError: no channel would be left.
    """
    if not 0 < args.width <= 16:
        raise ValueError(f"--width {args.width}: between 0 and 16, 1 is the usual one")
    return sizes.MobileNetV2(
        args.width, args.side or sizes.IMAGENET_SIDE, args.classes or 1000, args.dropout
    )


def add_lstm_options(parser: argparse.ArgumentParser) -> None:
    """Layers, steps and widths of an LSTM."""
    usual = sizes.LSTM()
    for name, default, text in (
        ("layers", usual.layers, "LSTM layers"),
        ("hidden", usual.hidden, "units per layer"),
        ("steps", usual.steps, "time steps"),
        ("batch", usual.batch, "sequences at once"),
        ("inputs", usual.inputs, "input values per step"),
        ("classes", usual.classes, "classes told apart"),
    ):
        parser.add_argument(f"--{name}", type=_positive, default=default, help=text)


def lstm_of(args: argparse.Namespace) -> sizes.LSTM:
    """What the options of ``add_lstm_options`` ask for, and ``args.fused`` where it is there."""
    names = ("layers", "hidden", "steps", "inputs", "classes", "batch")
    given = {name: getattr(args, name) for name in names}
    return sizes.LSTM(**given, fused=getattr(args, "fused", False))


def add_image_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Large or small images, their side, the classes."""
    parser.add_argument(
        "--images",
        choices=["imagenet", "cifar"],
        default=default,
        help="224 x 224 in 1000 classes, or 32 x 32 in 10; what the network starts with differs",
    )
    _add_size_options(parser)


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", type=_positive, help="height and width of an image")
    parser.add_argument("--classes", type=_positive, help="classes told apart")


def _add_dropout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dropout", type=_rate, default=0.0, help="part of the features that is dropped (0)"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _rate(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise ValueError
    return number


Options = tuple[Callable[[argparse.ArgumentParser], None], Callable[..., sizes.Size]]
# {name on the command line: (adds its options, the size that they ask for)}
NETWORKS: dict[str, Options] = {
    "resnet": (add_resnet_options, resnet_of),
    "densenet": (add_densenet_options, densenet_of),
    "densenet-bc": (add_densenet_bc_options, densenet_bc_of),
    "mobilenet-v2": (add_mobilenet_options, mobilenet_of),
    "lstm": (add_lstm_options, lstm_of),
}
