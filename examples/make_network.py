"""Writes a network, ready for training, as an MXNet symbol or as PyTorch exports it to ONNX.

    python make_network.py resnet --depth 1000 --classic -o resnet-1000-symbol.json
    python make_network.py densenet-bc --depth 100 --growth 12 -o densenet-bc-100.onnx
    python make_network.py densenet --depth 40 --framework torch
    python make_network.py mobilenet-v2 --width 0.5
    python make_network.py lstm --layers 4 --hidden 1024 --steps 1000

The framework follows the ending of -o, or --framework. Both build the same network: equal
parameters, and equal weights give an equal loss. Symbols need the extra mxnet; ONNX files the
extra torch and the package onnxscript.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from networks import sizes
from networks.options import NETWORKS

from memcli.errors import MemcliError
from memcli.formats.atomic import check_target, write_atomically

_ENDINGS = {"mxnet": "-symbol.json", "torch": ".onnx"}


def parser() -> argparse.ArgumentParser:
    """A command for each network; what all of them take comes last."""
    text, _, epilog = (__doc__ or "").partition("\n\n")
    whole = argparse.ArgumentParser(
        description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="network", required=True, metavar="NETWORK")
    for name, (add_options, _) in NETWORKS.items():
        summary = (add_options.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        add_options(command)
        if name == "lstm":
            command.add_argument(
                "--fused",
                action="store_true",
                help="each layer in one operator over all steps (torch alone)",
            )
        output = command.add_argument_group("output")
        output.add_argument("--framework", choices=list(_ENDINGS), help="default: as -o ends")
        output.add_argument("-o", "--output", type=Path, help="default: a name of its size")
        output.add_argument(
            "--weights",
            action="store_true",
            help="put the starting weights into the ONNX file; by default it has none",
        )
        output.add_argument("--seed", type=int, default=0, help="of the starting weights (0)")
    return whole


def framework_of(args: argparse.Namespace) -> str:
    """The one asked for; else the one whose files end like the output."""
    if args.framework:
        return args.framework
    if args.output is None or args.output.suffix == ".json":
        return "mxnet"
    if args.output.suffix == ".onnx":
        return "torch"
    raise ValueError(f"-o {args.output}: end it in .json or .onnx, or give --framework")


def name_of(args: argparse.Namespace, size: sizes.Size) -> str:
    """What a file of this network is called where the user does not say."""
    if isinstance(size, sizes.LSTM):
        return f"lstm-{size.layers}x{size.hidden}-{size.steps}{'-fused' * size.fused}"
    if isinstance(size, sizes.MobileNetV2):
        return f"mobilenet-v2-{size.width:g}"
    if isinstance(size, sizes.DenseNet):
        depth = 2 + sum(size.layers) * (2 if size.bottleneck else 1) + len(size.layers) - 1
        return f"{args.network}-{depth}-{size.growth}"
    units = "-".join(map(str, args.units)) if args.units else args.depth
    return f"resnet-{units}{'-cifar' * size.small}{'-classic' * size.classic}"


def main() -> None:
    """Parse, build, write."""
    whole = parser()
    args = whole.parse_args()
    try:
        size = NETWORKS[args.network][1](args)
        framework = framework_of(args)
        if framework == "mxnet" and getattr(size, "fused", False):
            raise ValueError("--fused is for --framework torch")
        if framework == "mxnet" and args.weights:
            raise ValueError("--weights: a symbol file never holds weights")
        output = args.output or Path(name_of(args, size) + _ENDINGS[framework])
        check_target(output, overwrite=True)
        if framework == "mxnet":
            from networks.symbols import symbol

            text = symbol(size).tojson() + "\n"
            write_atomically(output, text.encode(), overwrite=True)
        else:
            from networks.onnx_export import write_onnx

            write_onnx(size, output, weights=args.weights, seed=args.seed)
    except ValueError as error:
        whole.error(str(error))
    except ImportError as error:
        print(
            f"{error.name} is missing: pip install 'memcli[{framework}]' onnxscript",
            file=sys.stderr,
        )
        sys.exit(3)
    except MemcliError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        sys.exit(error.exit_status)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
