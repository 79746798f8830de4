"""The values of a verification step without MXNet: the same numbers that its own step gets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memcli.engines.mxnet.values import argument_values, read_symbol, state_values
from memcli.formats.symbol.check import checked_graph

if TYPE_CHECKING:
    from memcli.engines.mxnet.record import Analysis

# Names that MXNet's loader replaces, of operators whose readers decide a variable's values.
_CANONICAL = {
    "flatten": "Flatten",
    "reshape": "Reshape",
    "concat": "Concat",
    "cast": "Cast",
    "split": "SliceChannel",
    "swapaxes": "SwapAxis",
    "identity": "_copy",
    "stop_gradient": "BlockGrad",
    "Softmax": "SoftmaxOutput",
    "crop": "slice",
    "ctc_loss": "CTCLoss",
    "_contrib_CTCLoss": "CTCLoss",
    "_contrib_ctc_loss": "CTCLoss",
}


class _Symbol:
    """What :func:`read_symbol` asks of MXNet's symbol, told from an analysis."""

    def __init__(self, prepared: dict[str, Any], analysis: Analysis) -> None:
        nodes, _ = checked_graph(prepared, "the prepared graph")
        self._nodes = [
            {
                "op": _CANONICAL.get(node.op, node.op),
                "name": node.name,
                "attrs": node.attrs,
                "inputs": [list(entry) for entry in node.inputs],
            }
            for node in nodes
        ]
        graph = analysis.graph
        place = graph.node_of_position()
        place.update({lost: place[kept] for lost, kept in graph.alias.items() if kept in place})
        self._shapes: dict[str, tuple[int, ...]] = {}
        for position, node in enumerate(nodes):
            if node.is_variable or position not in place:
                continue
            entries = [e for e in graph.entries(place[position]) if graph.visible[e]]
            several = len(entries) > 1
            for index, entry in enumerate(entries):
                key = f"{node.name}_output{index if several else ''}"
                if graph.elements[entry] >= 0:
                    self._shapes[key] = graph.shape(entry)
        for row in analysis.arguments + analysis.auxiliary:
            self._shapes[row["prepared"]] = tuple(row["shape"])

    def tojson(self) -> str:
        return json.dumps({"nodes": self._nodes})

    def get_internals(self) -> _Symbol:
        return self

    def infer_shape_partial(self, **_: Any) -> tuple[None, list[tuple[int, ...]], None]:
        return None, list(self._shapes.values()), None

    def list_outputs(self) -> list[str]:
        return list(self._shapes)


def step_values(
    prepared: dict[str, Any], analysis: Analysis, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """{prepared name: values} of all arguments and states of a step with ``seed``.

    ``prepared``: the parsed text of :func:`memcli.formats.symbol.prepare.prepare`.
    """
    shapes = {row["prepared"]: tuple(row["shape"]) for row in analysis.arguments}
    reader = read_symbol(_Symbol(prepared, analysis), shapes)
    values: dict[str, NDArray[Any]] = {}
    for make, rows in ((argument_values, analysis.arguments), (state_values, analysis.auxiliary)):
        for index, row in enumerate(rows):
            name, shape = row["prepared"], tuple(row["shape"])
            kind = np.dtype(row["dtype"])
            values[name] = make(reader, name, index, shape, kind, seed, row["name"])
    return values
