"""Writes a train_test.prototxt of DenseNet for Caffe: Huang et al., arXiv 1608.06993, CIFAR.

    python examples/make_caffe_densenet.py -o densenet-40.prototxt
    python examples/make_caffe_densenet.py --depth 100 --bottleneck --dense-block

Plain layers by default (BatchNorm, Scale, ReLU, Convolution, Dropout, Concat), which stock Caffe
trains; with --dense-block the DenseBlock layer of the fork that trains DenseNets in little memory.
Needs nothing but Python.
"""

from __future__ import annotations

import argparse
from pathlib import Path

Value = object


class Net:
    """Layers as they come, in protobuf's text form."""

    def __init__(self, name: str) -> None:
        self.lines = [f'name: "{name}"']

    def layer(
        self,
        name: str,
        kind: str,
        bottoms: list[str],
        tops: list[str] | None = None,
        **parameters: Value,
    ) -> str:
        """A layer; returns its first top, which has the layer's name unless ``tops`` says else."""
        tops = [name] if tops is None else tops
        self.lines += ["layer {", f'  name: "{name}"', f'  type: "{kind}"']
        self.lines += [f'  bottom: "{bottom}"' for bottom in bottoms]
        self.lines += [f'  top: "{top}"' for top in tops]
        self.lines += _fields(parameters, "  ")
        self.lines.append("}")
        return tops[0]

    def data(self, phase: str, batch: int) -> None:
        """Images of 32 by 32 and their labels from an LMDB."""
        self.layer(
            "data",
            "Data",
            [],
            ["data", "label"],
            include={"phase": _Word(phase)},
            transform_param={
                "mirror": phase == "TRAIN",
                "crop_size": 32,
                "mean_value": [125.3, 123.0, 113.9],
            },
            data_param={
                "source": f"cifar10_{phase.lower()}_lmdb",
                "batch_size": batch,
                "backend": _Word("LMDB"),
            },
        )

    def convolution(self, name: str, data: str, filters: int, size: int) -> str:
        """Without bias, padded to keep the size."""
        return self.layer(
            name,
            "Convolution",
            [data],
            convolution_param={
                "num_output": filters,
                "bias_term": False,
                "pad": size // 2,
                "kernel_size": size,
                "weight_filler": {"type": "msra"},
            },
        )

    def normalised(self, name: str, data: str) -> str:
        """BatchNorm, and Scale and ReLU in place."""
        top = self.layer(f"{name}_bn", "BatchNorm", [data])
        self.layer(f"{name}_scale", "Scale", [top], [top], scale_param={"bias_term": True})
        return self.layer(f"{name}_relu", "ReLU", [top], [top])

    def dropout(self, name: str, data: str, ratio: float) -> str:
        """In place; nothing without a ratio."""
        if not ratio:
            return data
        return self.layer(name, "Dropout", [data], [data], dropout_param={"dropout_ratio": ratio})


class _Word(str):
    """A value without quotes."""


def _fields(values: dict[str, Value], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key} {{", *_fields(value, indent + "  "), f"{indent}}}"]
        else:
            for item in value if isinstance(value, list) else [value]:
                lines.append(f"{indent}{key}: {_text(item)}")
    return lines


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) and not isinstance(value, _Word) else str(value)


def densenet(
    depth: int, growth: int, *, batch: int, bottleneck: bool, dense_block: bool, dropout: float
) -> str:
    """The definition of a DenseNet of three blocks."""
    per_layer = 2 if bottleneck else 1
    layers, rest = divmod(depth - 4, 3 * per_layer)
    if rest or layers < 1:
        raise SystemExit(f"depth {depth} is not 4 and a multiple of {3 * per_layer}")
    net = Net(f"DenseNet{'-BC' if bottleneck else ''}-{depth}-{growth}")
    net.data("TRAIN", batch)
    net.data("TEST", 50)
    channels = 2 * growth if bottleneck else 16
    x = net.convolution("conv0", "data", channels, 3)
    for block in (1, 2, 3):
        name = f"block{block}"
        if dense_block:
            x = net.layer(
                name,
                "DenseBlock",
                [x],
                denseblock_param={
                    "numTransition": layers,
                    "initChannel": channels,
                    "growthRate": growth,
                    "Filter_Filler": {"type": "msra"},
                    "BN_Scaler_Filler": {"type": "constant", "value": 1},
                    "BN_Bias_Filler": {"type": "constant", "value": 0},
                    "use_dropout": bool(dropout),
                    "dropout_amount": dropout,
                    "use_BC": bottleneck,
                },
            )
        else:
            for number in range(layers):
                x = _plain(net, f"{name}_{number}", x, growth, bottleneck, dropout)
        channels += layers * growth
        x = net.normalised(f"transition{block}" if block < 3 else "last", x)
        if block < 3:
            channels = channels // 2 if bottleneck else channels
            x = net.convolution(f"transition{block}_conv", x, channels, 1)
            x = net.dropout(f"transition{block}_dropout", x, dropout)
            x = net.layer(
                f"transition{block}_pool",
                "Pooling",
                [x],
                pooling_param={
                    "pool": _Word("AVE"),
                    "kernel_size": 2,
                    "stride": 2,
                },
            )
    x = net.layer(
        "pool", "Pooling", [x], pooling_param={"pool": _Word("AVE"), "global_pooling": True}
    )
    x = net.layer(
        "fc",
        "InnerProduct",
        [x],
        inner_product_param={
            "num_output": 10,
            "weight_filler": {"type": "xavier"},
        },
    )
    net.layer("loss", "SoftmaxWithLoss", [x, "label"])
    net.layer("accuracy", "Accuracy", [x, "label"])
    return "\n".join(net.lines) + "\n"


def _plain(net: Net, name: str, x: str, growth: int, bottleneck: bool, dropout: float) -> str:
    y = net.normalised(name, x)
    if bottleneck:
        y = net.dropout(
            f"{name}_dropout1", net.convolution(f"{name}_conv1", y, 4 * growth, 1), dropout
        )
        y = net.normalised(f"{name}_2", y)
    y = net.dropout(f"{name}_dropout", net.convolution(f"{name}_conv", y, growth, 3), dropout)
    return net.layer(f"{name}_concat", "Concat", [x, y])


def main() -> None:
    """Parse, build, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=40, help="3n + 4; with --bottleneck 6n + 4")
    parser.add_argument("--growth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bottleneck", action="store_true", help="DenseNet-BC")
    parser.add_argument("--dense-block", action="store_true", help="the fork's DenseBlock layers")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    text = densenet(
        options.depth,
        options.growth,
        batch=options.batch,
        bottleneck=options.bottleneck,
        dense_block=options.dense_block,
        dropout=options.dropout,
    )
    path = options.output or Path(f"densenet-{options.depth}.prototxt")
    path.write_text(text)


if __name__ == "__main__":
    main()
