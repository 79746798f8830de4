"""The classic pass against a plain restatement of its rules, on random lists of feature maps.

The rules are those of arXiv 1604.06174, section 4.3, with marks as possible cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.search.thresholds import (
    ClassicPass,
    ClassicRow,
    classic_pass,
    classic_thresholds,
    is_parameter_name,
)

STAGES = st.sampled_from([None, None, "True", "a", "b", "7"])


@st.composite
def row_lists(draw: st.DrawFn, smallest: int = 0) -> list[ClassicRow]:
    """Rows of single-output nodes, each at least ``smallest`` bytes."""
    items = draw(st.lists(st.tuples(st.integers(smallest, 50), st.booleans(), STAGES), max_size=40))
    return [
        ClassicRow(3 * place + 1, size, parameter and size % 2 == 0, stage)
        for place, (size, parameter, stage) in enumerate(items)
    ]


def cuts_of(rows: list[ClassicRow]) -> list[list[int]]:
    """Possible cuts as places among ``rows``: each 'True' by itself, a run of one name as one."""
    marked = [i for i, row in enumerate(rows) if row.stage is not None]
    cuts = []
    for stage, run in groupby(marked, key=lambda i: rows[i].stage):
        together = list(run)
        cuts += [[i] for i in together] if stage == "True" else [together]
    return cuts


def restated(rows: list[ClassicRow], threshold: int) -> ClassicPass:
    """The same by sums over slices: a cut is kept if more than ``threshold`` came since the last.

    What a cut's first node begins, its other nodes follow; they count for the next stage.
    """
    maps = [row for row in rows if not row.is_parameter]
    kept: list[list[int]] = []
    since = 0
    stages = []
    for cut in cuts_of(maps):
        size = sum(row.bytes for row in maps[since : cut[0] + 1])
        if size > threshold:
            kept.append(cut)
            stages.append(size)
            since = cut[0] + 1
    places = {i for cut in kept for i in cut}
    return ClassicPass(
        mark={row.position: i not in places for i, row in enumerate(maps)},
        kept=[[maps[i].position for i in cut] for cut in kept],
        max_size=max(stages, default=0),
        save_size=sum(maps[i].bytes for i in places),
    )


@settings(deadline=None, max_examples=300)
@given(rows=row_lists(), threshold=st.integers(0, 300))
def test_same_as_restated(rows: list[ClassicRow], threshold: int) -> None:
    assert classic_pass(rows, threshold) == restated(rows, threshold)


@settings(deadline=None)
@given(rows=row_lists(), threshold=st.integers(0, 300))
def test_everything_but_parameters_is_kept_or_recomputed(
    rows: list[ClassicRow], threshold: int
) -> None:
    found = classic_pass(rows, threshold)
    assert set(found.mark) == {row.position for row in rows if not row.is_parameter}
    kept = [position for cut in found.kept for position in cut]
    assert sorted(kept) == sorted(p for p, again in found.mark.items() if not again)
    # Only what carries a mark is kept.
    assert set(kept) <= {row.position for row in rows if row.stage is not None}


@settings(deadline=None)
@given(rows=row_lists(), threshold=st.integers(0, 300))
def test_a_run_of_one_stage_name_shares_one_decision(
    rows: list[ClassicRow], threshold: int
) -> None:
    found = classic_pass(rows, threshold)
    maps = [row for row in rows if not row.is_parameter]
    for cut in cuts_of(maps):
        assert len({found.mark[maps[i].position] for i in cut}) == 1


@settings(deadline=None)
@given(rows=row_lists(smallest=1))
def test_threshold_zero_keeps_every_cut(rows: list[ClassicRow]) -> None:
    maps = [row for row in rows if not row.is_parameter]
    expected = [[maps[i].position for i in cut] for cut in cuts_of(maps)]
    assert classic_pass(rows, 0).kept == expected


@settings(deadline=None)
@given(rows=row_lists(), more=st.integers(0, 10))
def test_a_threshold_not_below_the_total_keeps_nothing(rows: list[ClassicRow], more: int) -> None:
    total = sum(row.bytes for row in rows if not row.is_parameter)
    found = classic_pass(rows, total + more)
    assert (found.kept, found.save_size, found.max_size) == ([], 0, 0)
    assert all(found.mark.values())


@settings(deadline=None)
@given(rows=row_lists(), first=st.integers(0, 300), more=st.integers(0, 300))
def test_a_higher_threshold_keeps_no_more_cuts(
    rows: list[ClassicRow], first: int, more: int
) -> None:
    assert len(classic_pass(rows, first + more).kept) <= len(classic_pass(rows, first).kept)


@settings(deadline=None)
@given(rows=row_lists(), threshold=st.integers(0, 300))
def test_every_stage_that_is_closed_is_larger_than_the_threshold(
    rows: list[ClassicRow], threshold: int
) -> None:
    found = classic_pass(rows, threshold)
    assert bool(found.kept) == (found.max_size > threshold)
    total = sum(row.bytes for row in rows if not row.is_parameter)
    assert found.max_size <= total and found.save_size <= total


@dataclass
class Tried:
    """A search that answers with fixed sizes, in MB."""

    save: int
    largest: int

    def __call__(self, threshold: int) -> tuple[int, int]:
        return self.save << 20, max(0, self.largest - threshold) << 20


@settings(deadline=None)
@given(save=st.integers(0, 4000), largest=st.integers(0, 4000), trials=st.integers(-1, 12))
def test_three_guesses_from_zero_then_even_steps(save: int, largest: int, trials: int) -> None:
    listed = list(classic_thresholds(Tried(save, largest), trials))
    assert listed[0] == 0 and len(listed) in (3, 3 + max(0, trials))
    assert all(threshold >= 0 for threshold in listed)
    # The second guess is what an even split of the stages would need.
    assert listed[1] == int((save * largest / 2) ** 0.5)
    steps = {after - before for before, after in pairwise(listed[3:])}
    assert len(steps) <= 1 and all(step > 0 for step in steps)


def test_parameters_are_told_by_the_end_of_their_name() -> None:
    for name in ("fc1_weight", "bn_gamma", "bn_beta", "conv0_bias", "weight"):
        assert is_parameter_name(name)
    for name in ("data", "softmax_label", "bn_moving_mean", "weight_decay", "l0_init_c"):
        assert not is_parameter_name(name)
