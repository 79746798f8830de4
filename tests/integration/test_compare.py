"""``memcli compare`` by the real command: rows, frontier, and the plot's file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from memcli.search.registry import GENERAL
from tests.conftest import EXAMPLES, Command, needs_mxnet, only_json

pytestmark = needs_mxnet

RESNET = str(EXAMPLES / "resnet-50-symbol.json")
QUICK = ("--batch", "4", "--time-limit", "0.5")


def frontier(rows: list[dict[str, Any]]) -> list[bool]:
    """Which rows nothing dominates, worked out anew from what the command printed."""
    points = [
        (r["planned_bytes"], r["recompute"]["time_fraction"]) if r["feasible"] else None
        for r in rows
    ]
    return [
        p is not None
        and not any(q is not None and q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
        for p in points
    ]


def test_all_strategies_and_budgets_on_one_graph(memcli: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = memcli(
        "compare",
        RESNET,
        "--json",
        "--budget",
        "50%",
        "--budget",
        "20MiB",
        "--plot",
        "page.html",
        *QUICK,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    found = only_json(result)
    rows = found["rows"]
    assert [r["strategy"] for r in rows if r["budget_bytes"] is None] == list(GENERAL)
    assert [r["budget"] for r in rows if r["budget_bytes"] is not None] == ["50%", "20MiB"]
    assert [r["on_frontier"] for r in rows] == frontier(rows)
    half, impossible = rows[-2:]
    assert half["feasible"] and half["planned_bytes"] <= found["baseline_bytes"] // 2
    assert not impossible["feasible"] and not impossible["on_frontier"]
    assert impossible["planned_bytes"] > impossible["budget_bytes"] == 20 << 20
    bare = next(r for r in rows if r["strategy"] == "none")
    assert bare["planned_bytes"] == found["baseline_bytes"]
    assert bare["on_frontier"] and bare["recompute"]["flops"] == 0
    assert all(r["live_peak_bytes"] <= r["planned_bytes"] for r in rows)

    page = (tmp_path / "page.html").read_text()
    assert found["plot"] == "page.html"
    assert page.count("<svg") == 1 and page.count("<tr") == len(rows) + 1
    assert "does not fit" in page
    # nothing is fetched: the only addresses are names of XML vocabularies
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    again = memcli("compare", RESNET, "--plot", "page.html")
    assert again.returncode == 2 and "exists already" in again.stderr
    assert (tmp_path / "page.html").read_text() == page


@pytest.mark.slow
def test_what_a_row_says_is_what_plan_says(memcli: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    size = ("--batch", "4", "--environment", "default")
    result = memcli(
        "compare",
        RESNET,
        "--strategy",
        "memonger",
        "--budget",
        "45%",
        "--json",
        "--plot",
        "p.svg",
        *size,
    )
    bare, _, row = only_json(result)["rows"]
    assert bare["strategy"] == "none" and bare["on_frontier"]  # where the frontier begins
    assert (row["strategy"], row["environment"]) == ("memonger", {})
    plan = only_json(
        memcli("plan", RESNET, "--strategy", "memonger", "--budget", "45%", "--json", *size)
    )
    assert row["planned_bytes"] == plan["memory"]["planned_bytes"]
    assert row["recompute"]["flops"] == plan["recompute"]["flops"]
    assert (tmp_path / "p.svg").read_bytes().startswith(b"<?xml")


def test_bad_plot_is_refused_before_any_work(memcli: Command, tmp_path: Path) -> None:
    result = memcli("compare", RESNET, "--plot", "picture.pdf")
    assert result.returncode == 2 and result.stdout == ""
    assert all(ending in result.stderr for ending in (".svg", ".png", ".html"))
    missing = memcli("compare", RESNET, "--plot", "nowhere/p.svg")
    assert missing.returncode == 2 and "nowhere" in missing.stderr
    wrong = memcli("compare", RESNET, "--budget", "lots")
    assert wrong.returncode == 2 and "'lots' is not a size" in wrong.stderr
    assert not list(tmp_path.glob("*.*"))


def test_without_matplotlib_the_plot_names_the_extra(memcli: Command, tmp_path: Path) -> None:
    hidden = tmp_path / "matplotlib.py"
    hidden.write_text("raise ImportError('not here')\n")
    result = memcli("compare", RESNET, "--plot", "p.svg")
    assert result.returncode == 3
    assert "pip install 'memcli[plot]'" in result.stderr
    assert "comparing:" not in result.stderr and not (tmp_path / "p.svg").exists()
