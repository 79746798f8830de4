"""Weights that an ONNX file keeps in data files beside it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from memcli.errors import BadInput
from memcli.formats.onnx.external import external_tensors
from memcli.formats.onnx.file import OnnxFile
from memcli.formats.onnx.weights import leaf_values
from memcli.quoting import shown, shown_path


def filled_values(file: OnnxFile, names: Collection[str], *, required: bool) -> dict[str, Any]:
    """{tensor: its elements} for tensors that the file itself has no elements of.

    Raises:
        BadInput: a data file is damaged, or (where ``required``) one that is needed is missing.
    """
    if not names:
        return {}
    values, missing = leaf_values(file, names)
    missing = sorted({*missing, *(name for name in names if name not in values)})
    if missing and required:
        places = {
            entry.value
            for tensor in external_tensors(file.model)
            if tensor.name in missing
            for entry in tensor.external_data
            if entry.key == "location"
        }
        where = f" ({', '.join(shown(place) for place in sorted(places)[:3])})" if places else ""
        raise BadInput(
            f"{shown_path(file.path)}: the data{where} of {len(missing)} of its tensors is not "
            f"there: {', '.join(map(shown, missing[:3]))}{', ...' if len(missing) > 3 else ''}",
            "put the data file beside the model, or take made-up weights: weights='random'",
        )
    return values


def copy_into(tensor: torch.Tensor, value: Any, name: str) -> None:
    """Copies the elements of a tensor or array.

    Raises:
        BadInput: they are of another shape.
    """
    if isinstance(value, np.ndarray):
        value = np.array(value, copy=True)
        if value.dtype.name == "bfloat16":
            value = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    value = torch.as_tensor(value)
    if value.shape != tensor.shape:
        raise BadInput(
            f"{shown(name)}: is of shape {tuple(tensor.shape)}, and the given weight of "
            f"{tuple(value.shape)}"
        )
    tensor.copy_(value)
