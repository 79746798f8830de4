"""Search for a batch, frontier, tables and picture of ``fit`` and ``compare``, without MXNet."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from memcli.engines.largest_batch import largest
from memcli.engines.mxnet.record import Analysis
from memcli.errors import BadInput
from memcli.formats.symbol.file import SymbolFile
from memcli.graph.cost import Cost
from memcli.graph.training import Plan
from memcli.reports import plot
from memcli.reports.compare_page import comparison_page
from memcli.reports.compare_report import compare_json, print_comparison
from memcli.reports.fit_report import fit_json, print_fitted
from memcli.results.compared import Comparison, Row, mark_frontier
from memcli.results.fitted import Fitted, Side
from memcli.results.step_total import Breakdown
from tests.unit.test_reports import expect

MIB = 1 << 20
SOURCE = SymbolFile("a/net-symbol.json", "ab" * 32, {}, [], [])


def analysis(batch: int) -> Analysis:
    """What reports read of an analysis."""
    inputs = {"data": [batch, 3, 224, 224], "softmax_label": [batch]}
    return Analysis(
        graph=cast(Any, None),
        model=cast(Any, None),
        inputs=inputs,
        assumed=["data"],
        arguments=[],
        auxiliary=[],
        outputs=[],
        parameter_bytes=0,
        state_bytes=0,
        loss_heads=0,
        dtype="float32",
        bound_total_mb=0,
        bind_seconds=0.0,
    )


def cost(mib: float, again: float, live: float = 0.0) -> Cost:
    size = int(mib * MIB)
    return Cost(
        size,
        size,
        int((live or 0.9 * mib) * MIB),
        again * 1e9,
        1e9,
        16,
        recompute_seconds=0.9 * again,
        forward_seconds=1.0,
    )


def row(strategy: str, mib: float, part: float, budget: float | None = None, **more: Any) -> Row:
    """A row of a graph of 1000 MiB."""
    size = None if budget is None else int(budget * 1000 * MIB)
    return Row(
        strategy=strategy,
        budget=None if budget is None else f"{budget:.0%}",
        budget_bytes=size,
        found_by=strategy,
        planned_bytes=int(mib * MIB),
        live_peak_bytes=int(0.9 * mib * MIB),
        recompute_flops=part * 1e9,
        recompute_fraction=part,
        time_fraction=part,
        seconds=1.25,
        environment=more.pop("environment", {}),
        feasible=size is None or mib * MIB <= size,
        **more,
    )


def comparison() -> Comparison:
    failed = Row(
        "milp",
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        0.1,
        {},
        False,
        problem="the graph has 9,000 nodes, and highspy takes 2,000",
    )
    ranged = {"NNVM_EXEC_MATCH_RANGE": "4"}
    rows = [
        row("auto", 230, 0.97),
        row("memonger", 340, 1.0),
        row("none", 1000, 0.0),
        failed,
        row("auto", 799.5, 0.02, 0.8, environment=ranged),
        row("auto", 500, 0.15, 0.5),
        row("auto", 230, 0.97, 0.2),
    ]
    mark_frontier(rows)
    return Comparison(
        SOURCE, "cd" * 32, analysis(32), 0, "mxnet", cost(1000, 0.0, 950), 60 * MIB, rows, []
    )


def test_comparison() -> None:
    expect(
        lambda console: print_comparison(console, comparison()),
        """
Memory and recomputation (part: of baseline; FLOPs, cost: of a forward pass)

    strategy  budget      MiB  part  live peak  FLOPs  cost    s
 ─────────────────────────────────────────────────────────────────────────────
 *  auto                230.0   23%      207.0    97%   97%  1.2
    memonger            340.0   34%      306.0   100%  100%  1.2
 *  none              1,000.0  100%      900.0   0.0%  0.0%  1.2
    milp                    -     -          -      -     -  0.1  failed [1]
 *  auto         80%    799.5   80%      719.5   2.0%  2.0%  1.2  [2]
 *  auto         50%    500.0   50%      450.0    15%   15%  1.2
    auto         20%    230.0   23%      207.0    97%   97%  1.2  does not fit

inputs        data 32,3,224,224; softmax_label 32 (float32)
baseline      1,000.0 MiB (live peak 950.0 MiB)
lower bound   60.0 MiB (of every plan of this kind)
cost          time by the roofline, of recomputing operators: what plans within
              a budget minimize
*             no other row has less memory without more cost, or the reverse
does not fit  no plan found fits the budget; the row is the nearest one
[1]           milp: the graph has 9,000 nodes, and highspy takes 2,000
[2]           train with NNVM_EXEC_MATCH_RANGE=4, or compare --environment
              default
""",
    )


def test_comparison_json() -> None:
    found = json.loads(json.dumps(compare_json(comparison(), "p.svg"), allow_nan=False))
    assert found["schema"] == 1 and found["baseline_bytes"] == 1000 * MIB
    assert [r["on_frontier"] for r in found["rows"]] == [1, 0, 1, 0, 1, 1, 0]
    assert [r["feasible"] for r in found["rows"]] == [1, 1, 1, 0, 1, 1, 0]
    assert found["rows"][3]["recompute"] is None and "highspy" in found["rows"][3]["problem"]
    assert found["rows"][4]["budget_bytes"] == 800 * MIB
    assert found["plot"] == "p.svg"


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.booleans()), max_size=12))
def test_frontier_is_what_nothing_dominates(values: list[tuple[int, int, bool]]) -> None:
    rows = [row("x", mib, again / 10) for mib, again, _ in values]
    for one, (_, _, feasible) in zip(rows, values, strict=True):
        one.feasible = feasible
    mark_frontier(rows)
    for one in rows:
        better = [
            other
            for other in rows
            if other.feasible
            and other.planned_bytes <= one.planned_bytes
            and other.time_fraction <= one.time_fraction
            and (other.planned_bytes, other.time_fraction) != (one.planned_bytes, one.time_fraction)
        ]
        assert one.on_frontier == (one.feasible and not better)


def crowded() -> Comparison:
    """Nine strategies and the default budgets, near one another as they are on real graphs."""
    compared = comparison()
    rows = [
        row(name, 1000 * part, again)
        for name, part, again in (
            ("auto", 0.230, 0.97),
            ("local", 0.230, 0.97),
            ("memonger", 0.34, 1.0),
            ("sqrt", 0.36, 0.98),
            ("cheap", 0.62, 0.08),
            ("dp", 0.236, 0.95),
            ("milp", 0.225, 0.99),
            ("none", 1.0, 0.0),
        )
    ]
    rows += [
        row("auto", 1000 * budget, again, budget)
        for budget, again in (
            (0.8, 0.03),
            (0.6, 0.11),
            (0.5, 0.15),
            (0.4, 0.3),
            (0.3, 0.53),
            (0.25, 0.81),
        )
    ]
    mark_frontier(rows)
    return dataclasses.replace(compared, rows=rows)


@pytest.mark.parametrize("make", [comparison, crowded])
def test_labels_of_the_plot_do_not_touch_one_another(make: Any) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    figure = Figure(figsize=(9.0, 5.6), dpi=100)
    FigureCanvasAgg(figure)
    compared = make()
    plot._compose(figure, compared)
    renderer = figure.canvas.get_renderer()
    axes = figure.axes[0]
    notes = [t for t in axes.texts if isinstance(t, Annotation) and t.get_text()]
    assert len(notes) == len(plot.points(compared.rows))
    boxes = [note.get_window_extent(renderer) for note in notes]
    frame = axes.get_window_extent(renderer)
    for number, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1, notes[number].get_text()
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1, notes[number].get_text()
        for other in boxes[:number]:
            assert plot._shared(box, other) == 0, notes[number].get_text()
    words = " ".join(note.get_text().replace("\n", " ") for note in notes)
    for one in compared.rows:
        assert not one.feasible or one.strategy in words


def test_plot_is_the_same_every_time_and_stands_alone() -> None:
    pytest.importorskip("matplotlib")
    compared = comparison()
    compared.source = dataclasses.replace(SOURCE, path="$x^2$ <b>&.json")
    svg = plot.draw(compared, "svg")
    assert svg == plot.draw(compared, "svg")
    assert plot.draw(compared, "png").startswith(b"\x89PNG")
    page = comparison_page(compared, svg).decode()
    assert "<h1>$x^2$ &lt;b&gt;&amp;.json" in page
    assert page.count('class="frontier"') == 4


def test_a_point_is_labelled_by_all_its_rows() -> None:
    same = [
        row("auto", 230, 0.97),
        row("local", 230, 0.97),
        row("auto", 230, 0.97, 0.3),
        row("auto", 230, 0.97, 0.25),
    ]
    assert plot.label_of(same) == "auto, local, auto ≤30%,\n≤25%"
    with pytest.raises(BadInput, match=r"ending"):
        plot.plot_kind("picture.PDF")
    assert plot.plot_kind("a.b/Picture.SVG") == "svg"


def fitted(*, bare: int = 104) -> Fitted:
    def side(batch: int, pool: float, again: float) -> Side:
        parts = Breakdown(
            98 * MIB, 98 * MIB, 196 * MIB, MIB // 5, 59 * MIB, 59 * MIB, int(pool * MIB)
        )
        more = parts.total + 150 * MIB
        return Side(batch, parts, cost(pool, again), more, "")

    planned = side(430, 15800, 0.97)
    planned.next_bytes, planned.next_problem = None, "a tensor would be too large"
    return Fitted(
        source=SOURCE,
        sha256="cd" * 32,
        memory=16384 * MIB,
        reserve=512 * MIB,
        optimizer="adam",
        strategy="auto",
        baseline=side(bare, 15700, 0.0),
        planned=planned,
        analysis=analysis(430),
        operator_count=0,
        engine="MXNet",
        plan=Plan("local", cast(Any, None)),
        environment={"NNVM_EXEC_MATCH_RANGE": "4"},
        notes=[],
        searches=2,
        batches=7,
        seconds=16.04,
        cost_of="measured",
    )


def test_fitted() -> None:
    expect(
        lambda console: print_fitted(console, fitted()),
        """
The largest batch, and where its memory goes (MiB)

                                              baseline   planned
 ───────────────────────────────────────────────────────────────
 batch                                             104       430
 parameters                                       98.0      98.0
 their gradients                                  98.0      98.0
 optimizer (adam)                                196.0     196.0
 auxiliary states                                  0.2       0.2
 inputs                                           59.0      59.0
 their gradients                                  59.0      59.0
 feature maps and their gradients (the pool)  15,700.0  15,800.0
 sum                                          16,210.2  16,310.2
 reserve                                         512.0     512.0
 memory                                       16,384.0  16,384.0

batch        430 planned, 104 baseline: 4.13 times
one more     baseline, 105 needs 16,360.2 MiB; planned, MXNet refuses 431: a
             tensor would be too large
inputs       data 430,3,224,224; softmax_label 430 (float32)
recomputed   97% of one forward pass (87% of its time as measured)
strategy     auto: local (2 searches and 7 batches in 16.0 s)
not counted  what the engine and its libraries take for themselves (--reserve)
environment  NNVM_EXEC_MATCH_RANGE=4 (train with it, or fit --environment
             default)
""",
    )


def test_fitted_where_no_baseline_fits() -> None:
    def show(console: Console) -> None:
        print_fitted(console, fitted(bare=0))

    from tests.unit.test_reports import rendered

    lines = rendered(show)
    assert " batch                                        1 (does not fit)       430" in lines
    assert "batch        430 planned; baseline not even 1" in lines
    found = json.loads(json.dumps(fit_json(fitted(bare=0)), allow_nan=False))
    assert found["ratio"] is None and found["unplanned"]["batch"] == 0
    assert found["planned"]["bytes"] == sum(found["planned"]["breakdown"].values())
    assert found["planned"]["environment"] == {"NNVM_EXEC_MATCH_RANGE": "4"}


@given(
    st.integers(0, 1000),
    st.integers(1, 500),
    st.floats(0.5, 2.0),
    st.integers(0, 10**6),
    st.integers(1, 5000),
    st.sets(st.integers(1, 300), max_size=3),
    st.integers(0, 40),
)
def test_largest_batch_fits_and_the_next_does_not(
    fixed: int, slope: int, power: float, available: int, limit: int, seen: set[int], noise: int
) -> None:
    asked: list[int] = []

    def need(batch: int) -> int | None:
        """On a curve, not quite growing, and refused beyond a limit."""
        asked.append(batch)
        if batch > limit:
            return None
        return fixed + int(slope * batch**power) + (batch * 7919 % 13) * noise

    found = largest(need, available, seen=seen)
    size = need(found) if found else 0
    assert size is not None and size <= available
    more = need(found + 1)
    assert more is None or more > available
    assert len(asked) < 90


def test_on_a_line_few_batches_are_looked_at() -> None:
    asked: list[int] = []

    def need(batch: int) -> int:
        asked.append(batch)
        return 1_000_000 + 37_123 * batch

    available = 16 << 30
    assert largest(need, available, seen=[32, 64]) == math.floor((available - 1_000_000) / 37_123)
    assert len(asked) <= 6
