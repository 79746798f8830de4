"""Mutated files of all formats: a bounded run of benchmarks/fuzz.py at each of its levels."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, needs_mxnet

SEED = 22


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark as a module; processes keep their state in the test's folder."""
    pytest.importorskip("hypothesis")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    import fuzz

    return fuzz


def assert_sound(result: Any, kinds: int, inputs: int) -> None:
    """No rule is broken, and the inputs were of so many files."""
    assert not result.findings, [(f.key, f.text) for f in result.findings]
    assert result.inputs >= inputs
    assert len({base for base, _ in result.outcomes if base}) >= kinds


@pytest.mark.slow
def test_readers_take_mutated_files_or_refuse_them(fuzz: Any) -> None:
    result = fuzz.fuzz("readers", 1000, SEED)
    assert_sound(result, 20, 1000)
    outcomes = Counter()
    for (_, outcome), count in result.outcomes.items():
        outcomes[outcome] += count
    # or nothing is looked into
    assert outcomes["taken"] > 100 and outcomes["refused"] > 100


@pytest.mark.slow
@needs_mxnet
@pytest.mark.skipif(sys.platform != "linux", reason="engines are hosted on Linux")
def test_engines_refuse_what_readers_let_pass(fuzz: Any) -> None:
    pytest.importorskip("torch")
    assert_sound(fuzz.fuzz("engines", 24, SEED), 5, 24)


@pytest.mark.slow
@needs_mxnet
def test_commands_end_well_on_mutated_files(fuzz: Any) -> None:
    pytest.importorskip("torch")
    assert_sound(fuzz.fuzz("commands", 4, SEED), 3, 4)


def test_the_rules_tell_a_bad_reader_from_a_good_one(
    fuzz: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that nothing breaks says nothing: here each is broken."""
    from memcli.errors import BadInput

    base = fuzz.Base("net.json", b"{}", "symbol")

    def judged(error: Exception) -> str:
        def read(base: Any, data: bytes) -> bool:
            raise error

        monkeypatch.setattr(fuzz, "read", read)
        finding = fuzz.judge_reader(base, base.data)[1]
        return "" if finding is None else finding.kind

    assert judged(BadInput("net.json: is empty", "copy it again")) == ""
    assert judged(BadInput("is empty")) == "no name"
    assert judged(BadInput("net.json: " + "x" * 20_000)) == "long"
    assert judged(KeyError("nodes")) == "exception"
    ran = fuzz.Ran(2, "", "memcli: net.json: is empty\n", [], [], 1.0, 1 << 20)
    assert ran.fault("net.json", False) is None
    for broken, kind in (
        ({"errors": "Traceback (most recent call last):\nKeyError: 1\n"}, "traceback"),
        ({"status": 3}, "status 3"),
        ({"status": -11}, "status -11"),
        ({"written": ["out.json"]}, "output"),
        ({"stray": ["memcli-x"]}, "stray files"),
        ({"errors": "memcli: net.json: \x1b[31m\n"}, "unprintable"),
        ({"errors": "memcli: is empty\n"}, "no name"),
        ({"stdout": "baseline"}, "output"),
    ):
        assert fuzz.Ran(**{**vars(ran), **broken}).fault("net.json", False)[0] == kind
