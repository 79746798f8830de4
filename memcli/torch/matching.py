"""A plan's marks for the nodes of an exported graph, found by name.

Nodes of an ONNX file that PyTorch's exporter made (``dynamo=True``) have outputs of the very names
that ``torch.export`` gives, if the module was in the same mode. The rules:

1. A node has the mark of the ONNX node whose first output has its name, or that of its first
   output. Where ONNX has several nodes for one (a linear layer's product and sum), that is the
   last of them, the one that makes the output.
2. Files exported in evaluation mode number their nodes otherwise: names are then taken from an
   export of the module in that mode, by module, operator and order.
3. Where BatchNorm was folded into the layer before it, ONNX has one node for two: the layer has
   its mark, and BatchNorm, which is cheap, is recomputed from it: as much memory as planned. Where
   the plan was made with a normalization put in anew, each has the mark that it has there.
4. Any other node that ONNX has not (folded away, or fused) stays kept, but where everything that
   it reads and everything that reads it is dropped, it is dropped as well: kept, it would hold on
   to what the plan counts as gone.
5. Files of the exporter before that (``dynamo=False``) name nodes by module and operator: see
   :mod:`memcli.torch.scopes`.

6. Some operators the exporter spells as others (a transposed convolution, a pooling of all
   positions): those are numbered in their order.

Of the nodes that make tensors which depend on an input, at least 90% must be found; less is an
error, for the plan then is another network's. Not counted: outputs of the network, which exports
rename, Dropout, which exports for inference leave out, tensors of one value, which are folded, and
writing into a part of a tensor, which ONNX spells in other ways.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch._ops import OpOverload
from torch.fx import Node

from memcli.errors import BadInput
from memcli.marks import AGAIN, KEPT, RESULTS
from memcli.quoting import first_of, shown
from memcli.torch.exported import ExportedModel, Place
from memcli.torch.scopes import is_scoped, match_scopes

SMALLEST_PART = 0.9
_NAMES_SHOWN = 5
_BEFORE_NORMALIZATION = "_before_batchnorm"


@dataclass
class Matched:
    """``marks``: of all function nodes by name. ``found`` of ``counted`` nodes are in the plan."""

    marks: dict[str, int]
    found: int
    counted: int
    missing: list[str]

    @property
    def part(self) -> float:
        """From 0 to 1; 1 where nothing counts."""
        return self.found / self.counted if self.counted else 1.0


def match(
    model: ExportedModel,
    by_output: Mapping[str, int],
    names: Mapping[Place, list[str]] | None = None,
) -> Matched:
    """Marks for an exported graph. ``names``: other names of what is made at each place."""
    known: dict[str, list[str]] = dict(model.names)
    if names is not None:
        known = {name: names.get(model.places[name], []) for name in known}
    known |= _spelled(model, by_output, known)
    return _matched(model, _by_names(model, by_output, known))


def match_by_scopes(model: ExportedModel, by_name: Mapping[str, int]) -> Matched:
    """The same for the names that ``torch.onnx.export(dynamo=False)`` makes."""
    return _matched(model, match_scopes(model, by_name))


def is_legacy(by_name: Mapping[str, int]) -> bool:
    """Whether a plan's nodes are named by module and operator."""
    return sum(map(is_scoped, by_name)) * 2 > len(by_name)


def check(matched: Matched, what: str, legacy: bool) -> None:
    """Refuses a plan that is not of this model.

    Raises:
        BadInput: too few nodes are in the plan.
    """
    if matched.part >= SMALLEST_PART:
        return
    mend = "is it the plan of this model, in the same mode and of the same version?"
    if legacy:
        mend += " Names are matched best in files of torch.onnx.export(..., dynamo=True)"
    raise BadInput(
        f"{what}: has {matched.found} of the {matched.counted} nodes of the model; not there: "
        f"{first_of(map(shown, matched.missing), _NAMES_SHOWN)}",
        mend,
    )


def _spelled(
    model: ExportedModel, by_output: Mapping[str, int], known: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Names of the operators that the exporter to ONNX spells as others, which it numbers anew."""
    names: dict[str, list[str]] = {}
    for spelled in set(_SPELLED.values()):
        nodes = [
            n for n in _functions(model) if spelled in (_operator(model, n), _becomes(model, n))
        ]
        others = [n for n in nodes if _operator(model, n) != spelled]
        if any(name in by_output for n in others for name in known[n.name]):
            continue  # this exporter has them as they are
        if others:
            for number, node in enumerate(nodes):
                name = f"{spelled}_{number}" if number else spelled
                names[node.name] = [name, *known[node.name]]
    return names


def _becomes(model: ExportedModel, node: Node) -> str | None:
    """The operator that a node's is spelled as; None for itself."""
    name = _operator(model, node)
    if "pool" in name and any(size != 1 for size in _sizes(node)):
        return None
    return _SPELLED.get(name)


def _sizes(node: Node) -> Sequence[Any]:
    size: Any = node.args[1] if len(node.args) > 1 else ()
    return size if isinstance(size, (list, tuple)) else (size,)


def _operator(model: ExportedModel, node: Node) -> str:
    return model.places.get(node.name, ("", "", 0))[1]


def _by_names(
    model: ExportedModel, by_output: Mapping[str, int], known: Mapping[str, list[str]]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in _functions(model):
        for name in known.get(node.name, []):
            if name in by_output and node.name not in found:
                found[node.name] = by_output[name]
            mark = by_output.get(name + _BEFORE_NORMALIZATION)
            if mark is not None and node.all_input_nodes:
                found[node.all_input_nodes[0].name] = mark
    return found


def _matched(model: ExportedModel, found: dict[str, int]) -> Matched:
    marks = dict(found)
    for layer, norm in _layers_with_normalization(model):
        if (layer.name in found) != (norm.name in found):
            marks[layer.name] = found[layer.name if layer.name in found else norm.name]
            marks[norm.name] = AGAIN
    counted = [node.name for node in _counted(model)]
    missing = [name for name in counted if name not in marks]
    known = dict(marks)
    for node in _functions(model):
        if node.name not in marks:
            marks[node.name] = _between(node, known)
    return Matched(marks, len(counted) - len(missing), len(counted), missing)


def _layers_with_normalization(model: ExportedModel) -> list[tuple[Node, Node]]:
    """(convolution or linear layer, the BatchNorm that alone reads it): exporters fuse them."""
    pairs = []
    for norm in _functions(model):
        if _operator(model, norm) == "batch_norm":
            layer = norm.args[0]
            if (
                isinstance(layer, Node)
                and len(layer.users) == 1
                and _operator(model, layer) in _FUSED
            ):
                pairs.append((layer, norm))
    return pairs


def _between(node: Node, found: Mapping[str, int]) -> int:
    """The mark of a node that the plan has not."""
    around = [*_makers(node), *_readers(node)]
    if not _makers(node) or not _readers(node):
        return KEPT
    return AGAIN if all(found.get(other.name, KEPT) & RESULTS != KEPT for other in around) else KEPT


def _makers(node: Node) -> list[Node]:
    """The functions that make the storages that a node reads."""
    found = []
    for source in node.all_input_nodes:
        while source.op == "call_function" and _hands_on(source) and source.all_input_nodes:
            source = source.all_input_nodes[0]
        if source.op == "call_function":
            found.append(source)
    return found


def _readers(node: Node) -> list[Node]:
    """The functions and outputs that read what a node makes, through views."""
    found, stack = [], [node]
    while stack:
        for user in stack.pop().users:
            if user.op == "call_function" and _hands_on(user):
                stack.append(user)
            else:
                found.append(user)
    return found


def _functions(model: ExportedModel) -> list[Node]:
    return [n for n in model.graph.nodes if n.op == "call_function" and n.name in model.names]


def _counted(model: ExportedModel) -> list[Node]:
    """Nodes that a plan of this model must have."""
    outputs, _ = next(n for n in model.graph.nodes if n.op == "output").args[0]
    given = {value for value in outputs if isinstance(value, Node)}  # renamed by exports
    wanted: set[Node] = set()
    stack = list(given)
    while stack:
        node = stack.pop()
        if node not in wanted:
            wanted.add(node)
            stack.extend(node.all_input_nodes)
    depends: set[Node] = set()
    counted = []
    for node in model.graph.nodes:
        if node.op == "placeholder":
            depends.add(node)
        elif node.op == "call_function" and not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
            named = bool(model.names.get(node.name)) and node not in given
            left_out = _hands_on(node) or _operator(model, node) in _NOT_COUNTED
            if node in wanted and named and not left_out:
                counted.append(node)
    return counted


def _hands_on(node: Node) -> bool:
    """Whether a node gives out a part or view of what it reads."""
    function: Any = getattr(node.target, "function", node.target)
    if function is operator.getitem:
        return True
    if not isinstance(function, OpOverload):
        return False
    name = function._schema.name.partition("::")[2]
    if name in _VIEWS:
        return True
    returned = [r.alias_info for r in function._schema.returns]
    return bool(returned) and all(info is not None and not info.is_write for info in returned)


_FUSED = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "linear",
        "addmm",
        "mm",
        "matmul",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    }
)
# Composite operators that do not say that they may give views.
_VIEWS = frozenset(
    {"reshape", "flatten", "contiguous", "view_as", "unflatten", "chunk", "to", "broadcast_tensors"}
)
_SPELLED = {
    **{f"conv_transpose{n}d": "convolution" for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": "mean" for n in (1, 2, 3)},
}
_NOT_COUNTED = frozenset(
    {
        "dropout",
        # no file has them: Dropout(0.0) and contiguous() are copies at most
        *("clone", "alias", "lift_fresh_copy"),
        "copy",
        "slice_scatter",
        "select_scatter",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
    }
)
