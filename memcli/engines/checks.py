"""One line of what ``memcli doctor`` finds."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line: ``ok`` is None where something optional is not here."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


def package_check(name: str, *, needed: bool) -> Check:
    """Whether a package is installed, and which version; nothing is imported."""
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False if needed else None, "not installed", f"pip install {name}")
