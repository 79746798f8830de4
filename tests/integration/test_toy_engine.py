"""A toy format and a toy engine, both in this file: commands and the API work with them.

The format is text: a line ``toy 1``, a line of sizes, and in a planned file a line of marks. The
engine trains a chain of operators of these sizes (``tests/unit/test_strategy_seam.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import memcli
from memcli import engine as engines
from memcli.cli.main import status
from memcli.engine import Network, PlanRequest, SearchAnswer
from memcli.errors import AnswerIsNo, BadInput
from memcli.formats import registry as formats
from memcli.formats.detect import ModelSource
from memcli.formats.output import check_output, write_output
from memcli.formats.registry import ModelFormat
from memcli.formats.stripped import Stripped
from memcli.graph.cost import Cost, Found
from memcli.request import Devices
from memcli.results.planned import Planned
from memcli.results.stage import Stage
from memcli.results.verified import Compared, Run, Verified
from memcli.search.base import Settings
from memcli.search.over_forms import search_plan
from tests.unit.test_strategy_seam import SIZES, ToySpace

FILE = f"toy 1\n{' '.join(map(str, SIZES))}\n"


def lines_of(source: ModelSource) -> list[str]:
    return source.data.decode().splitlines()


def strip_toy(source: ModelSource, out: str) -> Stripped:
    """Found by name through the registry, as formats' own are."""
    first, sizes, *plan = lines_of(source)
    if not plan:
        raise BadInput(f"{source.path}: carries no plan")
    data = f"{first}\n{sizes}\n".encode()
    return Stripped(source.path, source.format, data, "net.toy", True, plan[0].count("1"), 0)


class ToyNetwork(Network):
    """One step of a chain."""

    def __init__(self, source: ModelSource) -> None:
        self.sizes = list(map(int, lines_of(source)[1].split()))
        self.space = ToySpace(self.sizes)
        self.source: Any = SimpleNamespace(
            path=source.path,
            name="net.toy",
            format=source.format,
            sha256=source.sha256,
            node_count=len(self.sizes),
        )
        self.original = "net.toy", source.sha256
        self.analysis: Any = SimpleNamespace(
            graph=self.space.graph,
            model=self.space,
            inputs={"x": self.sizes[:1]},
            assumed=[],
            dtype="float32",
            frozen=(),
            loss_heads=0,
            parameter_bytes=0,
            state_bytes=0,
            parameter_gradient_bytes=0,
        )
        self.operator_count = len(self.sizes)
        self.restored, self.notes = [], ["a toy"]

    def set_costs(self, cost: str, on_progress: Any = None) -> list[str]:
        return []

    def search(self, strategy: str, settings: Settings) -> SearchAnswer:
        found, search = search_plan(self.space, strategy, settings)
        return SearchAnswer(None, found, search.evaluated)

    def estimate(self, strategy: str, settings: Settings) -> tuple[Found, dict[str, str]]:
        return self.search(strategy, settings).found, {}

    def lower_bound(self, costs: Sequence[Cost]) -> int:
        return max(self.sizes)

    def planned(self, answer: SearchAnswer, settings: Settings, **known: Any) -> Planned:
        cost = answer.found.cost
        size = cost.pool_bytes
        stage = Stage(0, "op0", f"op{len(self.sizes) - 1}", len(self.sizes), size, size, size, 0.0)
        return Planned(
            lower_bound=max(self.sizes),
            baseline_allocated=known["baseline"].pool_bytes,
            allocated=size,
            stages=[stage],
            **known,
        )

    def write(self, planned: Planned, out: str, force: bool) -> None:
        marks = "".join(map(str, planned.plan.recompute.tolist()))
        write_output(out, f"{FILE}{marks}\n".encode(), overwrite=force)
        planned.output = out


class ToyEngine:
    """Trains in its head."""

    name, title, plans_for_devices = "toy-engine", "Toy", False

    def check_request(self, source: Any, request: Any, devices: Devices, **asked: bool) -> None:
        if devices.count > 1:
            raise BadInput(f"{source.path}: toys play alone")

    def check_output(self, source: ModelSource, out: str | None, force: bool) -> None:
        check_output(source, out, force)

    def network(
        self,
        source: ModelSource,
        request: Any,
        settings: Settings,
        asked: PlanRequest,
        on_progress: Any = None,
    ) -> ToyNetwork:
        return ToyNetwork(source)

    def verify(self, planned: ModelSource, **asked: Any) -> Verified:
        network = ToyNetwork(planned)
        marks = np.array([int(mark) for mark in lines_of(planned)[2]], np.uint8)
        costs = [network.space.evaluate(m) for m in (network.space.none(), marks)]
        runs = [Run(cost.pool_bytes, cost.pool_bytes, None, 0) for cost in costs]
        return Verified(
            planned.path,
            "net.toy",
            "toy",
            network.analysis.inputs,
            *runs,
            Compared(1, 1),
            Compared(),
            Compared(),
            [],
            "counted",
            None,
            [],
            0,
            engine=self.name,
        )


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The registrations, which is all that a format and an engine need; and a file."""
    toy = ModelFormat(
        name="toy",
        noun="a toy",
        ending="toy",
        engine=ToyEngine.name,
        recognizes=lambda data: data.startswith(b"toy 1\n"),
        stripping=f"{__name__}:strip_toy",
    )
    monkeypatch.setitem(formats.FORMATS, toy.name, toy)
    monkeypatch.setitem(engines.ENGINES, ToyEngine.name, ToyEngine())
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.toy"
    path.write_text(FILE)
    return path


def test_the_command_line_plans_verifies_compares_and_strips(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(["plan", "net.toy", "-o", "planned.toy", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    baseline = ToySpace().evaluate(ToySpace().none()).pool_bytes
    assert plan["model"] == plan["model"] | {"format": "toy", "operators": len(SIZES)}
    assert plan["memory"]["planned_bytes"] < plan["memory"]["baseline_bytes"] == baseline
    assert status(["verify", "planned.toy"]) == 0
    assert "verified: same results to the bit" in capsys.readouterr().out
    assert status(["compare", "net.toy", "--strategy", "none", "--strategy", "sqrt", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["strategy"] for row in rows[:2]] == ["none", "sqrt"]
    assert rows[0]["planned_bytes"] == baseline
    assert status(["strip", "planned.toy", "-o", "bare.toy"]) == 0
    assert Path("bare.toy").read_text() == FILE


def test_the_reports_are_those_of_every_model(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(["plan", "net.toy", "-o", "planned.toy"]) == 0
    said = capsys.readouterr()
    assert "lower bound  90 B (of every plan of this kind)" in said.out
    assert "next: memcli verify planned.toy" in said.out
    assert "note: a toy" in said.err


def test_the_python_functions_do_the_same(toys: Path) -> None:
    planned = memcli.plan(toys, output="planned.toy")
    again = memcli.plan(toys)
    assert again.to_json()["memory"] == planned.to_json()["memory"]
    assert memcli.verify("planned.toy").ok
    assert memcli.strip("planned.toy", "bare.toy").exact
    with pytest.raises(AnswerIsNo, match="fits"):
        memcli.plan(toys, budget=1)
    with pytest.raises(BadInput, match="toys play alone"):
        memcli.plan(toys, workers=2)
