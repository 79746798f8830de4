"""Remembers which plans were made from which folder, for commands that are given no file.

A convenience: where it cannot be read or written, nothing fails and nothing is remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from memcli.errors import BadInput
from memcli.formats.atomic import write_atomically
from memcli.quoting import STANDARD

_PLANS_PER_FOLDER = 20
_FOLDERS = 200
_LARGEST_STATE = 4 << 20  # bytes; what is larger was not written here


def remember_plan(out_path: str | os.PathLike[str]) -> None:
    """Notes that a command started in the current folder has just written ``out_path``.

    Never raises for anything that the system or the state file does. Standard output is no file.
    """
    if out_path == STANDARD:
        return
    with contextlib.suppress(OSError, ValueError, RuntimeError, BadInput):
        folder, plan = os.path.realpath(os.getcwd()), os.path.realpath(out_path)
        folders = _load()
        plans = [plan] + [other for other in folders.pop(folder, []) if other != plan]
        # The folder used last comes last; the oldest are forgotten.
        folders[folder] = plans[:_PLANS_PER_FOLDER]
        kept = dict(list(folders.items())[-_FOLDERS:])
        path = _state_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema": 1, "folders": kept}, indent=1)
        write_atomically(path, text.encode(), overwrite=True, asked_for=False)


def newest_plan(folder: str | os.PathLike[str] = ".") -> Path | None:
    """The plan written last by a command started in ``folder``, of those still there."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        for plan in _load().get(os.path.realpath(folder), []):
            if os.path.isfile(plan):
                return Path(plan)
    return None


def _state_file() -> Path:
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification has relative paths ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return root / "memcli" / "plans.json"


def _load() -> dict[str, list[str]]:
    """{folder: plans, newest first}; empty where there is nothing usable."""
    try:
        with open(_state_file(), "rb") as file:
            state: Any = json.loads(file.read(_LARGEST_STATE))
        folders = state["folders"]
        return {
            folder: [plan for plan in plans if isinstance(plan, str)]
            for folder, plans in folders.items()
            if isinstance(plans, list)
        }
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return {}
