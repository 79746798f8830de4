"""An MXNet symbol as a ``torch.fx`` module: one function call for each operator node."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from memcli.engines.torch.convert.mxnet_conversion import Holding, SymbolConversion
from memcli.engines.torch.convert.mxnet_step_values import step_values
from memcli.engines.torch.convert.onnx_graph import Converted
from memcli.errors import BadInput
from memcli.formats.symbol.check import checked_graph
from memcli.formats.symbol.prepare import prepare

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis

Shape = tuple[int, ...]


@dataclass
class ConvertedSymbol(Converted):
    """A converted symbol.

    ``arguments`` and ``auxiliary`` are in the order of MXNet's ``list_arguments`` and
    ``list_auxiliary_states``; each says which attribute or argument of the module it became.
    Gradients that PyTorch leaves at None (a fixed gamma, a label) are zeros in MXNet.
    ``heads``: losses that were put on, as MXNet's engine has them. A node's
    ``meta["memcli"]["position"]`` is its place in the file.
    """

    arguments: list[Holding] = field(default_factory=list)
    auxiliary: list[Holding] = field(default_factory=list)
    heads: int = 0


def convert_symbol(
    raw: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, str] | None = None,
    *,
    roles: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
    known: Mapping[int, Sequence[Shape]] | None = None,
    values: Mapping[str, Any] | None = None,
    fake: bool | None = None,
    name: str = "the graph",
) -> ConvertedSymbol:
    """Convert a symbol's content for the shapes of its arguments and states.

    Args:
        raw: the parsed JSON; the names of its variables have to differ (those of
            :func:`memcli.formats.symbol.prepare.prepare` do).
        shapes: {variable: its shape}, states included.
        dtypes: {variable: MXNet's name of its type}; float32 for those that are not there.
        roles: {variable: "parameter", "input" or "label"}: inputs and labels are arguments of the
            module; by default what :func:`memcli.engines.mxnet.shapes.find_roles` finds.
        names: what the nodes are called, by position, where ``raw`` has other names.
        known: {position: shapes of the node's outputs} that MXNet infers. Needed for ``_zeros``
            and the like whose shape the file leaves open; where given they are checked.
        values: {variable: numpy array} for parameters and states; zeros for those not there.
        fake: parameters and buffers without data. By default where a FakeTensorMode is active.
        name: of the file, to begin messages with.

    Raises:
        BadInput: operators that are not supported (all, with counts and first names), a variable
            without a shape.
    """
    nodes, heads = checked_graph(dict(raw), name)
    if roles is None:
        from memcli.engines.mxnet.shapes import find_roles

        found = find_roles({"nodes": raw["nodes"]})
        roles = {nodes[position].name: role for position, role in found.items()}
    active = detect_fake_mode()
    mode = active if active is not None else FakeTensorMode()
    with unset_fake_temporarily():
        conversion = SymbolConversion(
            nodes,
            heads,
            shapes={key: tuple(int(size) for size in shape) for key, shape in shapes.items()},
            dtypes=dtypes or {},
            roles=roles,
            names=list(names) if names is not None else [node.name for node in nodes],
            known=known or {},
            values=values or {},
            mode=mode,
            fake=active is not None if fake is None else fake,
            name=name,
        )
        conversion.run()
        module = conversion.finish()
    return ConvertedSymbol(
        module=module,
        inputs=tuple(conversion.inputs),
        outputs=tuple(conversion.outputs),
        parameters={h.attribute: h.name for h in conversion.arguments if h.role == "parameter"},
        states={h.attribute: h.name for h in conversion.auxiliary},
        constants=conversion.constants,
        notes=conversion.notes,
        arguments=conversion.arguments,
        auxiliary=conversion.auxiliary,
    )


def convert_analyzed(
    raw: dict[str, Any],
    analysis: Analysis,
    *,
    seed: int | None = 0,
    fake: bool | None = None,
    name: str = "the graph",
) -> ConvertedSymbol:
    """Convert a symbol as MXNet's engine trains it: with its losses, for the analysis's shapes.

    ``seed``: parameters and states have the values of a verification step
    (:mod:`memcli.engines.mxnet.values`); None: zeros.

    Raises:
        BadInput: as :func:`convert_symbol`.
    """
    text, _ = prepare(raw, marked=(), losses=analysis.loss_heads > 0)
    prepared = json.loads(text)
    own = len(raw["nodes"])
    labels = [node["name"] for node in raw["nodes"]]
    labels += [node["op"].lower() + f"_loss{i}" for i, node in enumerate(prepared["nodes"][own:])]
    held = analysis.arguments + analysis.auxiliary
    values = None
    if seed is not None and not (fake or (fake is None and detect_fake_mode() is not None)):
        values = step_values(prepared, analysis, seed)
    result = convert_symbol(
        prepared,
        {a["prepared"]: a["shape"] for a in held},
        {a["prepared"]: a["dtype"] for a in held},
        roles={a["prepared"]: a["role"] for a in analysis.arguments},
        names=labels,
        known=known_shapes(analysis),
        values=values,
        fake=fake,
        name=name,
    )
    if [h.prepared for h in result.arguments] != [a["prepared"] for a in analysis.arguments]:
        raise BadInput(f"{name}: MXNet has other arguments than the file")
    trained = {a["prepared"] for a in analysis.arguments if a["gradient"]}
    for held_one in result.arguments if analysis.frozen else ():
        if held_one.role == "parameter" and held_one.prepared not in trained:
            result.module.get_parameter(held_one.attribute).requires_grad_(False)
    result.heads = analysis.loss_heads
    return result


def known_shapes(analysis: Analysis) -> dict[int, list[Shape]]:
    """{position: shapes of the node's outputs} of the nodes that MXNet ran on their own."""
    graph = analysis.graph
    return {
        position: [graph.shape(entry) for entry in graph.entries(node)]
        for position, node in graph.node_of_position().items()
        if all(graph.elements[entry] >= 0 for entry in graph.entries(node))
    }
