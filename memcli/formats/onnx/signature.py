"""What PyTorch's exporter noted in an ONNX file about the program that it came from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Literal

from onnx import GraphProto, NodeProto, StringStringEntryProto

SignatureKind = Literal["parameter", "buffer", "constant"]

KIND_KEY = "pkg.torch.export.graph_signature.InputSpec.kind"
_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_KINDS: dict[str, SignatureKind] = {
    "PARAMETER": "parameter",
    "BUFFER": "buffer",
    "CONSTANT_TENSOR": "constant",
}
_LINE = re.compile(r"^\s*\S+: (PARAMETER|BUFFER|CONSTANT_TENSOR) target='([^']+)'", re.MULTILINE)


def signature_kinds(graph: GraphProto) -> dict[str, SignatureKind]:
    """{name of a parameter or buffer of the module: what it is}, as far as the file says.

    Names that are no tensors of the graph (any more) are listed as well: what was folded away.
    """
    found: dict[str, SignatureKind] = {}
    inputs, _, _ = metadata(graph.metadata_props, _SIGNATURE).partition("# outputs")
    for kind, target in _LINE.findall(inputs):
        found[target] = _KINDS[kind]
    for value in graph.value_info:
        noted = metadata(value.metadata_props, KIND_KEY)
        if noted in _KINDS:
            found[value.name] = _KINDS[noted]
    return found


def scope_names(node: NodeProto) -> list[str]:
    """Names of the modules that a node stands in, outermost (``""``) first, and its own."""
    return _strings(metadata(node.metadata_props, _SCOPES))


def class_names(node: NodeProto) -> list[str]:
    """The classes of these, with their packages."""
    return _strings(metadata(node.metadata_props, _CLASSES))


def module_of(node: NodeProto) -> str:
    """The name of the module that a node came from (``layer1.0.bn1``); empty where unknown."""
    scopes = scope_names(node)
    return scopes[-2] if len(scopes) >= 2 else ""


def module_class(node: NodeProto) -> str:
    """The class of that module, with its package; empty where unknown."""
    classes = class_names(node)
    return classes[-2] if len(classes) >= 2 else ""


def metadata(entries: Iterable[StringStringEntryProto], key: str) -> str:
    """The value of a metadata entry, empty where there is none."""
    return next((entry.value for entry in entries if entry.key == key), "")


def _strings(text: str) -> list[str]:
    """A list of strings in Python's spelling; empty where it is anything else."""
    try:
        value = ast.literal_eval(text) if 0 < len(text) < 1 << 16 else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []
