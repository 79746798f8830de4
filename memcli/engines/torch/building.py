"""A model that the user's code builds, as the exported program that it becomes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from memcli.engines.processes.jobs import run_job
from memcli.engines.torch.record import check_torch
from memcli.errors import BadInput
from memcli.formats.detect import LARGEST_FILE, ModelSource


def built_source(name: str) -> ModelSource:
    """Calls ``package.module:function`` in a process of its own, and exports what it gives.

    Args:
        name: the current folder is searched first. The function gives ``(model, args)``,
            ``(model, args, kwargs)`` or ``(model, args, kwargs, loss)``; ``loss`` takes what the
            model gives. The model is exported in the mode that it is in.

    Raises:
        BadInput: no such module or function, what it raises, what it gives, or a model that
            ``torch.export`` cannot follow.
        EngineFailed: PyTorch is missing, or the code ended the process.
    """
    check_torch()
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        path = Path(folder) / "model.pt2"
        result = run_job(
            "memcli.engines.torch.export_worker",
            {"name": name, "folder": os.getcwd(), "out": str(path)},
            doing=f"building {name}",
        )
        if path.stat().st_size > LARGEST_FILE:
            raise BadInput(
                f"{name}: the exported program takes more than the 2 GiB that memcli reads",
                "memcli.torch.plan(model, ...) plans a module of any size in Python",
            )
        data = path.read_bytes()
    notes = (f"{name} is your code, which was run in a process of its own", *result["notes"])
    return ModelSource(name, data, hashlib.sha256(data).hexdigest(), "pt2", notes)
