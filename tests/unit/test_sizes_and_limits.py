"""Sizes as users write them, shapes by the file, and searches that end when they are to."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli import time_limit
from memcli.cli.shape_file import read_shape_file
from memcli.commands.fit import room
from memcli.engines.mxnet.shapes import _grouped_names
from memcli.engines.runtime import default_reserve, reserve_or_default
from memcli.errors import AnswerIsNo, BadInput
from memcli.units import distinct_sizes, parse_size, parse_size_or_zero


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 << 30),
        ("8g", 8 << 30),
        ("8GiB", 8 << 30),
        ("8GB", 8 * 10**9),
        ("500M", 500 << 20),
        ("500MB", 500 * 10**6),
        ("1.5 kib", 1536),
        ("7B", 7),
        ("80%", 80),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, whole=100) == size


@pytest.mark.parametrize("text", ["8", "0", "8.5", "8 ", "8XB", "GiB", "-8G", "8GiBs", "\u0668G"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_size(text, whole=100)
    assert refused.value.hint or "byte" in refused.value.message


def test_a_bare_number_is_told_its_units() -> None:
    with pytest.raises(BadInput) as refused:
        parse_size("8")
    assert "without a unit" in refused.value.message
    assert all(unit in refused.value.hint for unit in ("8GiB", "8G", "8MB", "8B"))
    assert parse_size_or_zero("0") == parse_size_or_zero("0 GiB") == 0


@given(st.lists(st.integers(0, 1 << 40), min_size=2, max_size=4))
def test_sizes_of_one_message_differ_where_they_do(sizes: list[int]) -> None:
    shown = distinct_sizes(*sizes)
    assert len(set(shown)) == len(set(sizes))


def test_what_is_left_of_a_card() -> None:
    for engine in ("mxnet", "torch"):
        card = default_reserve(engine, cpu=False, memory=8 << 30)
        assert default_reserve(engine, cpu=True, memory=8 << 30).bytes + (50 << 20) > 300 << 20
        assert 512 << 20 < card.bytes < 1 << 30 and "CUDA's context" in card.assumed
        assert room(8 << 30, card) == (8 << 30) - card.bytes
        with pytest.raises(AnswerIsNo, match="before training"):
            room(256 << 20, card)
        assert reserve_or_default(0, engine, cpu=False, memory=8 << 30).bytes == 0


def test_shapes_by_file(tmp_path: Path) -> None:
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps({f"t{k}_data": [32, 50] for k in range(408)}))
    assert read_shape_file(str(path))["t407_data"] == [32, 50]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        '{"x": 4}',
        '{"x": []}',
        '{"x": [0]}',
        '{"x": [true]}',
        '{"x": [1.5]}',
        '{"x": [1], "x": [2]}',
        '{"x": ["4"]}',
        '{"x": [99999999999]}',
        "[" * 100_000,
        "\x00",
        '{"x": [' + "9" * 5000 + "]}",
    ],
)
def test_bad_shape_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shapes.json"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_shape_file(str(path))
    assert "shapes.json" in refused.value.message and len(refused.value.message) < 300


def test_shape_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("a\0b")):
        with pytest.raises(BadInput):
            read_shape_file(str(path))


def test_inputs_are_named_together_where_a_glob_fits_no_other() -> None:
    names = ["t0_data", "t1_data", "x1", "x2", "alone"]
    groups = _grouped_names(names, [*names, "xy"])
    assert groups == {"t*_data": names[:2], "x1": ["x1"], "x2": ["x2"], "alone": ["alone"]}


def test_work_is_given_up_at_the_deadline() -> None:
    began = time.monotonic()
    assert time_limit.finished_by(began + 0.2, lambda: time.sleep(1.0) or 1, 7) == 7
    assert time.monotonic() - began < 0.8
    assert time_limit.left_behind()
    assert time_limit.finished_by(None, lambda: 3, 7) == 3
    assert time_limit.finished_by(time.monotonic() + 30, lambda: 3, 7) == 3
    with pytest.raises(ZeroDivisionError):
        time_limit.finished_by(time.monotonic() + 30, lambda: 1 // 0, 7)
