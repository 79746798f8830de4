"""Commands that are ended at random moments: a bounded run of benchmarks/kills.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, needs_mxnet

TRIES = 40
SECONDS = 1.5  # signals come within these: where most commands import, load engines and search


@pytest.mark.slow
@needs_mxnet
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_commands_that_are_ended_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import kills

    killer = kills.Killer(tmp_path, seed=0, seconds=dict.fromkeys(kills.COMMANDS, SECONDS))
    names = list(kills.COMMANDS)
    done = [killer.kill(names[number % len(names)]) for number in range(TRIES)]
    wrong = [tried for tried in done if tried.faults]
    assert not wrong, "\n".join(map(str, wrong))
    # most were at work when the signal came, or nothing was tried
    assert sum(tried.kind == "ended" for tried in done) > TRIES // 2
