"""From a job's file to the module that PyTorch runs, and the values that it runs on."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from memcli.engines.torch.convert.exported_graph import convert_exported
from memcli.engines.torch.convert.mxnet_graph import ConvertedSymbol, convert_analyzed
from memcli.engines.torch.convert.mxnet_step_values import step_values
from memcli.engines.torch.convert.onnx_graph import Converted, convert
from memcli.engines.torch.inputs import input_values
from memcli.engines.torch.loss import training_loss
from memcli.engines.torch.tracking import total
from memcli.formats.pt2.archive import open_archive
from memcli.formats.symbol.prepare import prepare


def converted(job: dict[str, Any], *, fake: bool) -> Converted:
    """The model of a job.

    An ONNX model: ``model`` (path of its bytes), ``name``, ``shapes``, ``roles``, ``seed``. An
    MXNet symbol: ``symbol`` (path of its JSON), ``analysis`` (path of MXNet's analysis of it,
    pickled by the process that asks), ``name``, ``seed``. An exported program: ``exported`` (path
    of the checked file, pickled by that process), ``archive`` (path of the archive, for weights),
    ``name``, ``shapes``. ``untrained``: parameters without a gradient. ``fake``: parameters
    without data.

    Raises:
        BadInput: operators that are not supported, shapes that do not fit.
    """
    seed = int(job.get("seed", 0))
    if "exported" in job:
        archive = None if fake else open_archive(Path(job["archive"]).read_bytes(), job["name"])
        program = pickle.loads(Path(job["exported"]).read_bytes())
        found = convert_exported(
            program, shapes=job["shapes"], archive=archive, fake=fake, name=job["name"]
        )
        freeze(found, job.get("untrained", ()))
        return found
    if "symbol" in job:
        raw, analysis = _symbol(job)
        return convert_analyzed(
            raw, analysis, seed=None if fake else seed, fake=fake, name=job["name"]
        )
    model = onnx.ModelProto()
    model.ParseFromString(Path(job["model"]).read_bytes())
    found = convert(
        model,
        shapes=job["shapes"],
        roles=job["roles"],
        seed=seed,
        fake=fake,
        name=job["name"],
    )
    freeze(found, job.get("untrained", ()))
    return found


def freeze(found: Converted, untrained: Collection[str]) -> None:
    """Train no parameter of these names in the file."""
    for attribute, name in found.parameters.items():
        if name in untrained:
            found.module.get_parameter(attribute).requires_grad_(False)


def _symbol(job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    raw = json.loads(Path(job["symbol"]).read_text())
    return raw, pickle.loads(Path(job["analysis"]).read_bytes())


def values_for(found: Converted, job: dict[str, Any]) -> list[Tensor]:
    """What the inputs of a job's module are fed with; a symbol's as MXNet's own step has them."""
    seed = int(job.get("seed", 0))
    if not isinstance(found, ConvertedSymbol):
        return input_values(found.inputs, seed)
    raw, analysis = _symbol(job)
    text, _ = prepare(raw, marked=(), losses=analysis.loss_heads > 0)
    values = step_values(json.loads(text), analysis, seed)
    by_argument = {h.attribute: values[h.prepared] for h in found.arguments}
    return [torch.from_numpy(by_argument[i.argument].copy()).to(i.dtype) for i in found.inputs]


def loss_for(found: Converted) -> Callable[[Any], Tensor]:
    """What is trained on: a symbol's outputs are its losses, with gradients of their own."""
    return total if isinstance(found, ConvertedSymbol) else training_loss


def described(found: Converted) -> list[dict[str, Any]]:
    """What is known of each step, in the order in which steps run: name in the file, operator,
    first output that is there (an LSTM may give its last state alone), place in an MXNet file."""
    return [
        {
            "step": node.name,
            "name": str(meta["name"]),
            "op": str(meta["op"]),
            "output": str(meta.get("output") or next(filter(None, meta.get("outputs", ())), "")),
            "position": meta.get("position", -1),
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
    if isinstance(found, ConvertedSymbol):
        return [{"name": name} for name in found.outputs]  # MXNet's own analysis has the rest
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
    values = meta.get("values", ())
    names = [*meta.get("outputs", ()), *[""] * len(values)]
    rows = [_row(name, value) for name, value in zip(names, values, strict=False)]
    return [row for row in rows if row]


def _row(name: str, value: Any) -> dict[str, Any]:
    """Empty for what is no tensor: an output that is not there, a sequence."""
    if not isinstance(value, tuple):
        return {}
    shape, dtype = value
    return {
        "name": name,
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "itemsize": dtype.itemsize,
    }
