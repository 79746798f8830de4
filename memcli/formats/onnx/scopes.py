"""Where in the user's model each ONNX node stands: the path of modules or layers.

PyTorch's exporters note modules, in metadata (``dynamo=True``) or in names
(``/layer1/layer1.0/conv1/Conv``); tf2onnx keeps TensorFlow's name scopes
(``StatefulPartitionedCall/model/conv2d/Conv2D``), where Keras 3 numbers every scope once more
(``conv2d_1`` for the layer ``conv2d``). Of other files, names are taken apart at their slashes.
"""

from __future__ import annotations

import re
from collections import Counter

from onnx import NodeProto

from memcli.formats.onnx.file import OnnxFile
from memcli.formats.onnx.signature import class_names, scope_names
from memcli.formats.onnx.tf_layers import is_tf2onnx
from memcli.formats.scopes import Origin, Path, Scopes, dotted

_LEGACY = re.compile(r"^(?:/[^/]+)*/[A-Z][A-Za-z]*(?:_\d+)?$")
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_NUMBERED = re.compile(r"^(.+)_\d+$")
_OUTPUT = re.compile(r":\d+$")
# What stands for the weights of a convolution that a normalization went into.
_MERGED = re.compile(r"^(?P<scope>.+)/[^/]+/merged_input:0$")
# Names that tf2onnx makes up itself have no scope, but end so.
_MADE_UP = re.compile(r"__\d+$")


def scopes_of(file: OnnxFile) -> Scopes:
    """The scopes of a file's nodes; a tensor's producer lends its own to a node without one."""
    nodes = list(file.graph.node)
    called: set[Path] = set()
    sequences: set[Path] = set()
    origin: Origin = "other"
    if any(scope_names(node) for node in nodes):
        origin = "torch"
        paths = [_dotted(scope_names(node)[-2:-1]) for node in nodes]
        for node in nodes:
            called.update(_dotted([name]) for name in scope_names(node)[:-1])
            for name, kind in zip(scope_names(node), class_names(node), strict=False):
                if kind.endswith(".container.Sequential"):
                    sequences.add(_dotted([name]))
    elif is_tf2onnx(file.model):
        origin = "tensorflow"
        paths = _layers([_tf_scope(node) for node in nodes])
    else:
        legacy = sum(_LEGACY.match(name) is not None for name in file.node_names)
        if 2 * legacy > len(nodes):
            origin = "torch"
            paths = [_legacy(name) for name in file.node_names]
            called = {
                _legacy(name[: match.end()] + "/")
                for name in file.node_names
                for match in re.finditer(r"(?<=.)(?=/)", name)
            }
        else:
            paths = [tuple(name.split("/")[:-1]) for name in file.node_names]
    paths = _lent(nodes, paths)
    if not called:
        called = {path[:k] for path in paths for k in range(1, len(path) + 1)}
    return Scopes(origin, paths, frozenset(called - {()}), frozenset(sequences))


def _dotted(names: list[str]) -> Path:
    return tuple(part for name in names for part in dotted(name))


def _legacy(name: str) -> Path:
    """``layer1, 0, conv1`` for ``/layer1/layer1.0/conv1/Conv``."""
    parts = name.split("/")[1:-1]
    path: list[str] = []
    for before, part in zip(["", *parts], parts, strict=False):
        atoms = part.split(".")
        called = len(atoms) > 1 and before.rpartition("/")[2] == ".".join(atoms[:-1])
        path += atoms[-1:] if called else atoms
    return tuple(path)


def _tf_scope(node: NodeProto) -> Path:
    name = node.name
    if node.op_type == "Conv" and len(node.input) > 1 and (m := _MERGED.match(node.input[1])):
        name = f"{m['scope']}/convolution"
    elif node.op_type == "BatchNormalization" and "/" in node.output[0]:
        # put in anew, it is named after the convolution that it was folded into
        name = _OUTPUT.sub("", node.output[0])
    parts = [part for part in name.split("/")[:-1] if part not in _CALLS]
    if not parts and _MADE_UP.search(name) is None and name and name not in _CALLS:
        return (name,)
    return tuple(parts)


def _layers(paths: list[Path]) -> list[Path]:
    """Keras 3 enters every scope twice, and TensorFlow numbers the second: all end in a number, and
    without it they are still told apart."""
    known = {path[: k + 1] for path in paths for k in range(len(path))}
    heads = {path for path in known if len(path) <= 2}
    if not heads or not all(_NUMBERED.match(path[-1]) for path in heads):
        return paths
    short = Counter(tuple(_without(part) for part in path) for path in heads)
    if max(short.values()) > 1:
        return paths
    return [tuple(_without(part) for part in path) for path in paths]


def _without(part: str) -> str:
    match = _NUMBERED.match(part)
    return match[1] if match else part


def _lent(nodes: list[NodeProto], paths: list[Path]) -> list[Path]:
    made: dict[str, Path] = {}
    lent = []
    for node, path in zip(nodes, paths, strict=True):
        if not path:
            path = next((made[name] for name in node.input if made.get(name)), ())
        lent.append(path)
        made.update(dict.fromkeys(node.output, path))
    return lent
