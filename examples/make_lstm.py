"""Writes lstm-symbol.json: an LSTM unrolled over time, with a cross entropy at every step.

Inputs are ``t0_data``, ``t1_data``, ... with labels ``t0_label``, ..., and the initial states of
each layer; their shapes stand in the file (``__shape__``), so that planning needs no option.
The cell and hidden state of each step carry ``mirror_stage`` with the step's number: for the
classic memory planner, nodes of one number are one place to cut at.

Needs MXNet: pip install 'memcli[mxnet]'. With --layers 4 --hidden 1024 --steps 200 --batch 64
MXNet says 3972 MB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.engines.mxnet_shim import import_mxnet

mx = import_mxnet()


@dataclass
class Layer:
    """Parameters of one layer, shared by all steps, and its state so far."""

    i2h_weight: Any
    i2h_bias: Any
    h2h_weight: Any
    h2h_bias: Any
    cell: Any
    hidden: Any


def make_layer(index: int, batch: int, hidden: int) -> Layer:
    names = ("i2h_weight", "i2h_bias", "h2h_weight", "h2h_bias")
    parameters = [mx.sym.Variable(f"l{index}_{name}") for name in names]
    states = [
        mx.sym.Variable(f"l{index}_init_{name}", shape=(batch, hidden)) for name in ("c", "h")
    ]
    return Layer(*parameters, *states)


def step(layer: Layer, data: Any, hidden: int, time: int, name: str) -> Any:
    """Takes ``layer`` one step on and returns its new hidden state."""
    from_input = mx.sym.FullyConnected(
        data, layer.i2h_weight, layer.i2h_bias, num_hidden=4 * hidden, name=f"{name}_i2h"
    )
    from_state = mx.sym.FullyConnected(
        layer.hidden, layer.h2h_weight, layer.h2h_bias, num_hidden=4 * hidden, name=f"{name}_h2h"
    )
    gates = mx.sym.SliceChannel(from_input + from_state, num_outputs=4, name=f"{name}_slice")
    in_gate = mx.sym.Activation(gates[0], act_type="sigmoid")
    candidate = mx.sym.Activation(gates[1], act_type="tanh")
    forget_gate = mx.sym.Activation(gates[2], act_type="sigmoid")
    out_gate = mx.sym.Activation(gates[3], act_type="sigmoid")
    layer.cell = (forget_gate * layer.cell) + (in_gate * candidate)
    layer.hidden = out_gate * mx.sym.Activation(layer.cell, act_type="tanh")
    layer.cell._set_attr(mirror_stage=str(time))
    layer.hidden._set_attr(mirror_stage=str(time))
    return layer.hidden


def lstm(args: argparse.Namespace) -> Any:
    """The whole network: embedding, layers, and a classifier with its loss at each step."""
    embed_weight = mx.sym.Variable("embed_weight")
    class_weight = mx.sym.Variable("cls_weight")
    class_bias = mx.sym.Variable("cls_bias")
    layers = [make_layer(i, args.batch, args.hidden) for i in range(args.layers)]
    tops = []
    for time in range(args.steps):
        # ctx_group names the device group that model parallelism would put the nodes on.
        with mx.AttrScope(ctx_group="embed"):
            data = mx.sym.Variable(f"t{time}_data", shape=(args.batch, args.inputs))
            data = mx.sym.FullyConnected(
                data, embed_weight, no_bias=True, num_hidden=args.hidden, name=f"t{time}_embed"
            )
        for i, layer in enumerate(layers):
            with mx.AttrScope(ctx_group=f"layer{i}"):
                data = step(layer, data, args.hidden, time, f"t{time}_l{i}")
        tops.append(data)
    losses = []
    with mx.AttrScope(ctx_group="decode"):
        for time, top in enumerate(tops):
            scores = mx.sym.FullyConnected(
                top, class_weight, class_bias, num_hidden=args.classes, name=f"t{time}_cls"
            )
            label = mx.sym.Variable(f"t{time}_label", shape=(args.batch,))
            losses.append(mx.sym.softmax_cross_entropy(scores, label, name=f"t{time}_sm"))
    cells = [mx.sym.BlockGrad(layer.cell, name=f"l{i}_last_c") for i, layer in enumerate(layers)]
    hiddens = [
        mx.sym.BlockGrad(layer.hidden, name=f"l{i}_last_h") for i, layer in enumerate(layers)
    ]
    return mx.sym.Group(losses + cells + hiddens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--layers", type=int, default=2, help="LSTM layers")
    parser.add_argument("--hidden", type=int, default=256, help="units per layer")
    parser.add_argument("--steps", type=int, default=35, help="time steps")
    parser.add_argument("--batch", type=int, default=64, help="sequences at once")
    parser.add_argument("--inputs", type=int, default=50, help="input values per step")
    parser.add_argument("--classes", type=int, default=5000, help="classes told apart")
    parser.add_argument("-o", "--output", type=Path, default=Path("lstm-symbol.json"))
    args = parser.parse_args()
    with mx.name.NameManager():
        symbol = lstm(args)
    args.output.write_text(symbol.tojson() + "\n")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
