"""Names in tables: cut to the terminal's width, and never to the same letters."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from memcli.reports.tables import add_folded, clip_names, new_table

NAMES = st.lists(
    st.one_of(
        st.from_regex(
            r"(stage|block)[0-9]{1,3}_unit[0-9]{1,2}_(conv|bn|relu)[0-9]_(w|fwd|kept)",
            fullmatch=True,
        ),
        st.text("ab_1", min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=60,
    unique=True,
)


@settings(deadline=None)
@given(NAMES, st.integers(8, 40))
def test_names_that_differ_still_do_when_they_are_cut(names: list[str], width: int) -> None:
    cut = clip_names(names, width)
    assert all(len(text) <= width for text in cut)
    assert all(text == name for text, name in zip(cut, names, strict=True) if len(name) <= width)
    assert len(set(cut)) == len(names)


@settings(deadline=None, max_examples=50)
@given(NAMES, st.integers(60, 200))
def test_a_table_of_names_is_as_wide_as_the_terminal_at_most(names: list[str], width: int) -> None:
    table = new_table("t", [("#", "right"), ("from", "left"), ("to", "left"), ("MiB", "right")])
    rows = [[str(i), name, name[::-1], "1,234.5"] for i, name in enumerate(names)]
    add_folded(table, rows, names=(1, 2), width=width)
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    # each on a line of its own, and whole where there is room
    shown = len(rows) if len(rows) <= 24 else 23
    assert len([line for line in lines if line.endswith("1,234.5")]) == shown
    if width > 110:
        assert all(any(name in line for line in lines) for name in (names[0], names[-1]))


def test_blocks_by_number_keep_their_numbers() -> None:
    names = [f"block{k}_expand_bn_kept" for k in range(17)]
    assert clip_names(names, 12)[16] == "block16~kept"
