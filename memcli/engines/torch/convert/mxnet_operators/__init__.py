"""Translations of MXNet's operators, a module for each family."""

from __future__ import annotations

import importlib

_FAMILIES = (
    "activation",
    "attention",
    "constants",
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
    "scalars",
    "sequence",
)


def register_all() -> None:
    """Import all translations, which puts them into the registry."""
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
