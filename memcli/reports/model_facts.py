"""What reports of several commands say of the model that they are about."""

from __future__ import annotations

from typing import Any

from memcli.formats.registry import FORMATS
from memcli.graph.cost import Cost
from memcli.reports.tables import percent
from memcli.results.planned import Source, Step


def model_json(source: Source, sha256: str, operators: int) -> dict[str, Any]:
    """``model`` of a command's JSON.

    Args:
        source: the file without any plan.
        sha256: of the file that a plan is made from.
        operators: nodes that compute something.
    """
    return {
        "path": source.path,
        "format": source.format,
        "sha256": sha256,
        "nodes": source.node_count,
        "operators": operators,
    }


def ending(kind: str) -> str:
    """What the name of a planned file ends in, by its format."""
    return FORMATS[kind].ending


# What stands for the cost of recomputing an operator (see Settings.cost).
COST_WORDS = {
    "roofline": "time by the roofline",
    "flops": "FLOPs",
    "measured": "time as measured",
}


def time_share(cost: Cost, cost_of: str) -> str:
    """What is recomputed in time, where that was what the search minimized."""
    if cost_of == "flops":
        return ""
    return f" ({percent(cost.time_fraction)} of its {COST_WORDS[cost_of]})"


def engine_json(device: str, restored: list[str]) -> dict[str, Any]:
    """What PyTorch's figures hold for; nothing where MXNet is the engine (no ``device``)."""
    if not device:
        return {}
    return {"engine": "torch", "device": device, "as_training": restored}


def shown_inputs(analysis: Step) -> str:
    """Shapes of the first inputs, and the type."""
    shapes = list(analysis.inputs.items())
    shown = "; ".join(f"{n} {','.join(map(str, s))}" for n, s in shapes[:3])
    more = f"; and {len(shapes) - 3} more" if len(shapes) > 3 else ""
    return f"{shown}{more} ({analysis.dtype})"
