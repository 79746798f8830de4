"""Tables on a terminal or in a log file, readable at 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memcli.formats.wording import shown_path
from memcli.units import MIB

# Rows that a stage table shows before it folds its middle.
MOST_ROWS = 24


def mib(size: float | None) -> str:
    """A column of MiB."""
    return "-" if size is None else f"{size / MIB:,.1f}"


def flops(count: float) -> str:
    """FLOPs with a prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.1f} {prefix}"
    return f"{count:.0f}"


def percent(part: float) -> str:
    """A part of one as percent, with a digit where it matters."""
    return f"{part:.1%}" if part < 0.0995 else f"{part:.0%}"


def clip(name: str, width: int) -> str:
    """A name cut in the middle to ``width`` characters, control characters in it escaped."""
    name = shown_path(name)
    if len(name) <= width:
        return name
    half = (width - 1) // 2
    return f"{name[: width - 1 - half]}~{name[-half:]}"


def new_table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    """A table with ``(heading, 'left' or 'right')`` columns."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    for heading, side in columns:
        right = side == "right"
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    return table


def folded(rows: Sequence[Any], most: int = MOST_ROWS) -> list[Any]:
    """The rows, with None in place of the middle where there are too many."""
    if len(rows) <= most:
        return list(rows)
    head = most // 2
    return [*rows[:head], None, *rows[len(rows) - (most - head - 1) :]]


def add_folded(table: Table, rows: Sequence[Sequence[str]], most: int = MOST_ROWS) -> None:
    """Add rows, and one that says how many are left out.

    Cells are plain text: a node may well be called ``[/b]``, which is markup to rich.
    """
    shown = folded(rows, most)
    for row in shown:
        if row is None:
            left_out = len(rows) - len(shown) + 1
            table.add_row(*["...", f"{left_out} more", *["..."] * (len(rows[0]) - 2)])
        else:
            table.add_row(*map(Text, row))


def facts(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Lines of ``label   value``, long values continued under their beginning."""
    width = max((len(label) for label, _ in pairs), default=0)
    for label, value in pairs:
        lines = textwrap.wrap(
            shown_path(value), max(20, console.width - width - 2), break_on_hyphens=False
        )
        for number, line in enumerate(lines or [""]):
            head = label if number == 0 else ""
            console.print(f"{head:<{width}}  {line}".rstrip(), markup=False, soft_wrap=True)
