"""What each ONNX operator becomes, one file for each family of operators."""

from __future__ import annotations

import importlib

_FAMILIES = (
    "attention",
    "constant",
    "convolution",
    "elementwise",
    "indexing",
    "layout",
    "linear",
    "losses",
    "normalization",
    "pooling",
    "random",
    "recurrent",
    "reduce",
    "resize",
    "sequence",
)


def register_all() -> None:
    """Have all operators registered; the families import the registry, so not at import."""
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
