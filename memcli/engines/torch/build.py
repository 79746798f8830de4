"""From a job's file to the module that PyTorch runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from memcli.convert.onnx_graph import Converted, convert


def converted(job: dict[str, Any], *, fake: bool) -> Converted:
    """The model of a job: ``model`` (path of its bytes), ``name``, ``shapes``, ``roles``, ``seed``.

    ``fake``: parameters without data.

    Raises:
        BadInput: operators that are not supported, shapes that do not fit.
    """
    model = onnx.ModelProto()
    model.ParseFromString(Path(job["model"]).read_bytes())
    return convert(
        model,
        shapes=job["shapes"],
        roles=job["roles"],
        seed=int(job.get("seed", 0)),
        fake=fake,
        name=job["name"],
    )


def described(found: Converted) -> list[dict[str, str]]:
    """File name, operator and first output of each step, in the order in which steps run.

    The first output that is there: an LSTM may give its last state alone.
    """
    return [
        {
            "step": node.name,
            "name": str(meta["name"]),
            "op": str(meta["op"]),
            "output": str(meta["output"] or next(filter(None, meta["outputs"]), "")),
        }
        for node in found.module.graph.nodes
        if node.op == "call_function" and (meta := node.meta.get("memcli")) is not None
    ]


def tensors_of(found: Converted) -> dict[str, list[dict[str, Any]]]:
    """{step: name, shape and type of each tensor that it gives}, as :func:`described` has them."""
    return {
        node.name: _tensors(node.meta["memcli"])
        for node in found.module.graph.nodes
        if node.op == "call_function" and "memcli" in node.meta
    }


def outputs_of(found: Converted) -> list[dict[str, Any]]:
    """Name, shape and type of each of the graph's outputs."""
    (returned,) = next(n for n in found.module.graph.nodes if n.op == "output").args
    rows = []
    for name, node in zip(found.outputs, returned, strict=True):
        if node.op == "get_attr":
            tensor = getattr(found.module, node.target)
            value = (tuple(tensor.shape), tensor.dtype)
        else:
            value = node.meta["memcli"]["values"][0]
        rows.append(_row(name, value))
    return rows


def _tensors(meta: dict[str, Any]) -> list[dict[str, Any]]:
    names = [*meta["outputs"], *[""] * len(meta["values"])]
    rows = [_row(name, value) for name, value in zip(names, meta["values"], strict=False)]
    return [row for row in rows if row]


def _row(name: str, value: Any) -> dict[str, Any]:
    """Empty for what is no tensor: an output that is not there, a sequence."""
    if not isinstance(value, tuple):
        return {}
    shape, dtype = value
    return {
        "name": name, "shape": list(shape), "dtype": str(dtype).removeprefix("torch."),
        "itemsize": dtype.itemsize,
    }  # fmt: skip
