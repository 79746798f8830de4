"""Tables on a terminal or in a log file, readable at 80 columns."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memcli.quoting import cut, printable
from memcli.units import MIB

_LONGEST_FACT = 2000  # characters
# Rows that a stage table shows before it folds its middle.
MOST_ROWS = 24
# What a name is never cut below.
_LEAST_NAME = 8


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


def step_time(seconds: float | None) -> str:
    """A step's median time, where steps were timed."""
    return "-" if seconds is None else f"{seconds:.2f} s"


def clip(name: str, width: int) -> str:
    """A name cut in the middle to ``width`` characters, control characters in it escaped."""
    name = printable(name)
    if len(name) <= width:
        return name
    half = (width - 1) // 2
    return f"{name[: width - 1 - half]}~{name[-half:]}"


def clip_names(names: Sequence[str], width: int) -> list[str]:
    """Names cut to ``width`` characters so that those that differ still do, if that can be had.

    All are cut at one place, in the middle unless another tells more of them apart.
    """
    whole = {name: printable(name) for name in names}
    long = {text for text in whole.values() if len(text) > width}
    room = max(1, width - 1)
    middle = room - room // 2

    def cut_at(head: int) -> dict[str, str]:
        ends = {text: f"{text[:head]}~{text[len(text) - (room - head) :]}" for text in long}
        return {name: ends.get(text, text) for name, text in whole.items()}

    heads = sorted(range(room + 1), key=lambda head: abs(head - middle))
    best = max((cut_at(head) for head in heads), key=lambda found: len(set(found.values())))
    _tell_apart(best, whole, width)
    return [best[name] for name in names]


def _tell_apart(cut: dict[str, str], whole: dict[str, str], width: int) -> None:
    """Has names that were cut to the same show where they differ, or a number."""
    for text, times in Counter(cut.values()).items():
        if times == 1:
            continue
        same = [name for name, short in cut.items() if short == text]
        letters = zip(*(whole[name] for name in same), strict=False)
        start = sum(1 for _ in itertools.takewhile(lambda found: len(set(found)) == 1, letters))
        head = min(3, start, max(0, width - 6))
        for name in same:
            cut[name] = f"{whole[name][:head]}~{whole[name][start : start + width - head - 1]}"
        taken: set[str] = set()
        for number, name in enumerate(same):
            if cut[name] in taken:
                mark = f"#{number}"
                cut[name] = f"{cut[name][: max(0, width - len(mark))]}{mark}"
            taken.add(cut[name])


def new_table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    """A table with ``(heading, 'left' or 'right')`` columns."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
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


def add_folded(
    table: Table,
    rows: Sequence[Sequence[str]],
    most: int = MOST_ROWS,
    *,
    names: Sequence[int] = (),
    width: int = 80,
) -> None:
    """Add rows, and one that says how many are left out.

    Cells are plain text: a node may well be called ``[/b]``, which is markup to rich.

    Args:
        table: with its columns.
        rows: cells of each.
        most: rows that are shown.
        names: columns that hold names, which are cut to what ``width`` leaves for them.
        width: of the terminal, in characters.
    """
    shown = folded(rows, most)
    cells = [list(row) for row in shown if row is not None]
    for column, room in _room(table, cells, names, width).items():
        cut = clip_names([row[column] for row in cells], room)
        for row, name in zip(cells, cut, strict=True):
            row[column] = name
    left = iter(cells)
    for row in shown:
        if row is None:
            left_out = len(rows) - len(shown) + 1
            table.add_row(*["...", f"{left_out} more", *["..."] * (len(rows[0]) - 2)])
        else:
            table.add_row(*map(Text, next(left)))


def _room(
    table: Table, rows: Sequence[Sequence[str]], names: Sequence[int], width: int
) -> dict[int, int]:
    """Characters for each column of names, where the others take what they need."""
    needed = [
        max([len(str(column.header)), *(len(printable(row[i])) for row in rows)])
        for i, column in enumerate(table.columns)
    ]
    # one blank at either edge, two between columns
    free = width - 2 * len(needed) - sum(n for i, n in enumerate(needed) if i not in names)
    room: dict[int, int] = {}
    for done, column in enumerate(sorted(names, key=lambda i: needed[i])):
        room[column] = max(_LEAST_NAME, min(needed[column], free // (len(names) - done)))
        free -= room[column]
    return room


def facts(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Lines of ``label   value``, long values continued under their beginning."""
    width = max((len(label) for label, _ in pairs), default=0)
    for label, value in pairs:
        lines = textwrap.wrap(
            cut(printable(value), _LONGEST_FACT),
            max(20, console.width - width - 2),
            break_on_hyphens=False,
        )
        for number, line in enumerate(lines or [""]):
            head = label if number == 0 else ""
            console.print(f"{head:<{width}}  {line}".rstrip(), markup=False, soft_wrap=True)
