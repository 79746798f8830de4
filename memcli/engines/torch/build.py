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
    """File name, operator and first output of each step, in the order in which steps run."""
    return [
        {"step": node.name, **{key: str(node.meta["memcli"][key]) for key in _KEYS}}
        for node in found.module.graph.nodes
        if node.op == "call_function" and "memcli" in node.meta
    ]


_KEYS = ("name", "op", "output")
