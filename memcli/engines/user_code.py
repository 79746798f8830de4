"""Runs the user's own Python files in an engine's process, so that MXNet knows their operators.

They are named on the command line (``--import``), never by a model or a plan.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memcli.errors import BadInput
from memcli.quoting import first_of, shown, shown_path

CUSTOM = "Custom"


def custom_nodes(raw: Mapping[str, Any]) -> dict[str, str]:
    """The user operators of a symbol: {``op_type``: the first node of it}."""
    found: dict[str, str] = {}
    for node in raw["nodes"]:
        if node["op"] != CUSTOM:
            continue
        kind = "?"
        for table in ("attrs", "attr", "param"):
            kind = str((node.get(table) or {}).get("op_type", kind))
        found.setdefault(kind, str(node["name"]))
    return found


def refuse_unknown(raw: Mapping[str, Any], imports: Sequence[str]) -> None:
    """Refuse a graph with user operators where no file is named that could register them.

    Raises:
        BadInput: names a node, its operator and the option.
    """
    found = custom_nodes(raw)
    if found and not imports:
        kind, name = next(iter(found.items()))
        more = f" (and {len(found) - 1} more kinds)" if len(found) > 1 else ""
        raise BadInput(
            f"node {shown(name)} is a user operator (Custom, op_type {shown(kind)}){more}, whose "
            "code is not in the file",
            "name the Python file that registers it: --import FILE (its code is run)",
        )


def refuse_unregistered(kind: str, raw: Mapping[str, Any], names: Sequence[str]) -> BadInput:
    """The refusal of a user operator that none of the files has registered.

    Args:
        kind: its ``op_type``.
        raw: the symbol file's content.
        names: of the nodes in the file, by position.
    """
    places = [
        name
        for name, node in zip(names, raw["nodes"], strict=False)
        if node["op"] == CUSTOM and kind in custom_nodes({"nodes": [node]})
    ]
    return BadInput(
        f"node {first_of(map(shown, places))}: no file that --import names registers the user "
        f"operator {shown(kind)}",
        f"one of them should have @mx.operator.register({shown(kind)}) at its top level",
    )


def check_files(paths: Iterable[str]) -> tuple[str, ...]:
    """The files' absolute paths.

    Raises:
        BadInput: one is not there.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise BadInput(f"--import {shown_path(path)}: there is no such file")
    return tuple(os.path.abspath(path) for path in paths)


def run_files(paths: Iterable[str]) -> None:
    """Import each file as a module of its own, its folder in front of the path.

    ``__name__`` is not ``__main__``, so that a script's main part does not run.

    Raises:
        BadInput: one fails; with the line, and what it says.
    """
    for number, path in enumerate(paths):
        sys.path.insert(0, os.path.dirname(path))
        name = f"memcli_user_code_{number}"
        spec = importlib.util.spec_from_file_location(
            name, path, loader=importlib.machinery.SourceFileLoader(name, path)
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            lines = [
                f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path
            ]
            if isinstance(error, SyntaxError) and error.filename == path:
                lines.append(error.lineno)
            where = f", line {lines[-1]}" if lines else ""
            said = (str(error).splitlines() or [""])[0]
            raise BadInput(
                f"--import {shown_path(path)}{where}: {type(error).__name__}: {said[:200]}",
                "it is run as a module, before the graph is read: it should define operators, "
                "and train under if __name__ == '__main__'",
            ) from None
