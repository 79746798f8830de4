"""When a measurement confirms an estimate, and how a step that takes more is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.engines.timed_steps import LEAST, steps_to_time
from memcli.reports.verify_report import verify_json
from memcli.results.verified import Compared, Run, StageMeasured, Verified

MIB = 1 << 20


def verified(baseline: Run, planned: Run) -> Verified:
    return Verified(
        planned_path="planned.json",
        original="net-symbol.json",
        device="cpu",
        shapes={"data": [2, 3, 224, 224]},
        baseline=baseline,
        planned=planned,
        outputs=Compared(1, 1),
        gradients=Compared(2, 2),
        states=Compared(0, 0),
        stages=[
            StageMeasured(0, "a", "b", 4, 10 * MIB, 10 * MIB, 90 * MIB, 160 * MIB),
            StageMeasured(1, "c", "d", 5, 20 * MIB, 30 * MIB, 80 * MIB, 90 * MIB),
        ],
        method="mallinfo2",
        scaled=None,
        notes=[],
        seed=0,
        beside_estimate=["oneDNN is on"],
    )


@settings(deadline=None)
@given(st.integers(MIB, 1 << 40), st.floats(0, 2), st.booleans())
def test_more_than_five_percent_over_is_a_no_of_either_graph(
    estimated: int, factor: float, plan: bool
) -> None:
    good = Run(estimated, estimated, None, 0)
    other = Run(estimated, int(estimated * factor), None, 0)
    found = verified(*((good, other) if plan else (other, good)))
    assert found.memory_ok == (other.measured_bytes <= 1.05 * estimated)
    assert bool(found.memory_faults()) == (not found.memory_ok)
    report = verify_json(found)
    assert report["ok"] is True and report["memory_ok"] == found.memory_ok


def test_a_no_says_how_much_where_first_and_why() -> None:
    found = verified(Run(200 * MIB, 200 * MIB, 1.0, 0), Run(90 * MIB, 160 * MIB, 1.0, 0))
    text = "; ".join(found.memory_faults())
    assert "planned graph takes 160.0 MiB, 78% over the 90.0 MiB" in text
    assert "first in the forward of stage 1 (c to d)" in text and "oneDNN is on" in text
    assert "baseline graph" not in text


def test_a_graph_of_no_size_is_held_to_what_the_measurement_can_tell() -> None:
    assert Run(0, 40_000, None, 0, granularity_bytes=64 << 10).memory_ok
    assert not Run(0, 80_000, None, 0, granularity_bytes=64 << 10).memory_ok


@pytest.mark.parametrize("seconds, count", [(0.01, 5), (0.6, 5), (2.0, LEAST), (60.0, 0)])
def test_steps_are_timed_while_they_are_short(seconds: float, count: int) -> None:
    assert steps_to_time(None, seconds) == count
    assert steps_to_time(7, seconds) == 7 and steps_to_time(0, seconds) == 0
