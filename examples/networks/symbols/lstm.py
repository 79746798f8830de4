"""An LSTM unrolled over time, with a cross entropy at every step.

Inputs are ``t0_data``, ``t1_data``, ... with labels ``t0_label``, ..., and the initial states of
each layer; their shapes stand in the file (``__shape__``), so that planning needs no option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from networks.sizes import LSTM
from networks.symbols.base import marked, mx


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
    """The parameters of layer ``index``, and its state before the first step."""
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
    # For the classic memory planner, nodes of one number are one place to cut at.
    marked(layer.cell, str(time))
    marked(layer.hidden, str(time))
    return layer.hidden


def lstm(size: LSTM) -> Any:
    """The whole network: embedding, layers, and a classifier with its loss at each step."""
    embed_weight = mx.sym.Variable("embed_weight")
    class_weight = mx.sym.Variable("cls_weight")
    class_bias = mx.sym.Variable("cls_bias")
    layers = [make_layer(i, size.batch, size.hidden) for i in range(size.layers)]
    tops = []
    for time in range(size.steps):
        # ctx_group names the device group that model parallelism would put the nodes on.
        with mx.AttrScope(ctx_group="embed"):
            data = mx.sym.Variable(f"t{time}_data", shape=(size.batch, size.inputs))
            data = mx.sym.FullyConnected(
                data, embed_weight, no_bias=True, num_hidden=size.hidden, name=f"t{time}_embed"
            )
        for i, layer in enumerate(layers):
            with mx.AttrScope(ctx_group=f"layer{i}"):
                data = step(layer, data, size.hidden, time, f"t{time}_l{i}")
        tops.append(data)
    losses = []
    with mx.AttrScope(ctx_group="decode"):
        for time, top in enumerate(tops):
            scores = mx.sym.FullyConnected(
                top, class_weight, class_bias, num_hidden=size.classes, name=f"t{time}_cls"
            )
            label = mx.sym.Variable(f"t{time}_label", shape=(size.batch,))
            losses.append(mx.sym.softmax_cross_entropy(scores, label, name=f"t{time}_sm"))
    cells = [mx.sym.BlockGrad(layer.cell, name=f"l{i}_last_c") for i, layer in enumerate(layers)]
    hiddens = [
        mx.sym.BlockGrad(layer.hidden, name=f"l{i}_last_h") for i, layer in enumerate(layers)
    ]
    return mx.sym.Group(losses + cells + hiddens)
