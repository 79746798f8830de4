"""What works here, check by check, as lines and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console

from memcli.quoting import printable

# The engines that plan, inspect and verify need; names of their checks begin with them.
ENGINES = {"mxnet": "MXNet", "torch": "PyTorch"}
_DEVICES = ("gpu", "cuda")


class Check(Protocol):
    """What a report needs of :class:`memcli.engines.doctor.Check`."""

    @property
    def name(self) -> str:
        """What is checked."""

    @property
    def ok(self) -> bool | None:
        """Whether it works; None for something optional that is not here."""

    @property
    def detail(self) -> str:
        """What was found."""

    @property
    def mend(self) -> str:
        """What the user can do about it; "" where nothing needs to be done."""


def word(ok: bool | None) -> str:
    """``ok``, ``no``, or ``--`` for something optional that is not here."""
    if ok is None:
        return "--"
    return "ok" if ok else "no"


def works(checks: Sequence[Check], engine: str) -> bool:
    """Whether an engine trains here: it is there, and of its own checks none failed.

    A card that cannot be used is no hindrance: it trains on the CPU.
    """
    own = [
        check
        for check in checks
        if check.name.lower().startswith(engine)
        and not any(device in check.name.lower() for device in _DEVICES)
    ]
    return any(check.ok for check in own) and not any(check.ok is False for check in own)


def engine_works(checks: Sequence[Check]) -> bool:
    """Whether any engine trains here: MXNet its graphs, PyTorch ONNX files."""
    return any(works(checks, engine) for engine in ENGINES)


def next_step(checks: Sequence[Check]) -> str:
    """The last line: what to do next."""
    mxnet, torch = works(checks, "mxnet"), works(checks, "torch")
    if mxnet and torch:
        return "MXNet and PyTorch train here; next: memcli plan MODEL -o PLANNED"
    if mxnet:
        return "MXNet trains here; next: memcli plan MODEL -o planned.json"
    if torch:
        return "PyTorch trains ONNX files here; next: memcli plan MODEL -o planned.onnx"
    return "no engine works here; next: mend what stops mxnet above, then: memcli doctor"


def doctor_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The object of ``doctor --json``; ``ok`` null: optional, and not here."""
    return {
        "schema": 1,
        "ok": engine_works(checks),
        "engines": {engine: works(checks, engine) for engine in ENGINES},
        "checks": [
            {"name": check.name, "ok": check.ok, "detail": check.detail, "mend": check.mend}
            for check in checks
        ],
    }


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """A line for each check, and under each that is not ok what would mend it."""
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        head = f"{word(check.ok)}  {printable(check.name):<{width}}  "
        _print_wrapped(console, head, check.detail)
        if check.ok is not True and check.mend:
            _print_wrapped(console, " " * 6, check.mend)


def _print_wrapped(console: Console, head: str, text: str) -> None:
    """``text`` behind ``head``, long lines continued under the text's beginning."""
    room = max(20, console.width - len(head))
    lines = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(
            printable(line), room, break_on_hyphens=False, break_long_words=False
        )
    ]
    for number, line in enumerate(lines or [""]):
        start = head if number == 0 else " " * len(head)
        console.print((start + line).rstrip(), markup=False, soft_wrap=True)
