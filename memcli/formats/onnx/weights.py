"""The values of an ONNX file's tensors, where they can be had."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import TensorProto

from memcli.formats.onnx.external import is_external, tensor_array
from memcli.formats.onnx.file import OnnxFile
from memcli.formats.onnx.roles import constant_tensor


def leaf_values(
    file: OnnxFile, names: Collection[str] | None = None, *, external: bool = True
) -> tuple[dict[str, np.ndarray], list[str]]:
    """({tensor: value}, tensors without one) of initializers and Constant nodes' outputs.

    ``names``: those alone; None: all. ``external``: load data files beside the model as well;
    without, what is in them counts as not there. Arrays may be read-only, and those of bfloat16
    and the like have types of ``ml_dtypes``.

    Raises:
        BadInput: a data file that is outside of the model's folder, too short, or unreadable.
    """
    found: dict[str, np.ndarray] = {}
    missing: list[str] = []
    tensors: list[tuple[str, TensorProto | None]] = [(t.name, t) for t in file.graph.initializer]
    tensors += [
        (node.output[0], constant_tensor(node))
        for node in file.graph.node
        if node.op_type == "Constant" and node.output
    ]
    for name, tensor in tensors:
        if (names is not None and name not in names) or tensor is None:
            continue
        value = None
        if external or not is_external(tensor):
            value = tensor_array(tensor, file.path)
        if value is None:
            missing.append(name)
        else:
            found[name] = value
    return found, missing
