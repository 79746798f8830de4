"""``memcli solve`` in a real process: the contract, the exit statuses, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.commands.solve import read_cost_graph
from memcli.solve.simulator import simulate
from tests.conftest import ROOT, Command, only_json

PEERS = ROOT.parent / "shared" / "peers"
needs_peers = pytest.mark.skipif(not PEERS.is_dir(), reason="the published graphs are not here")


def training_graph(n: int = 8) -> dict[str, Any]:
    """A chain of ``n`` forward nodes, and the backward of each, which reads input and output."""
    nodes = [{"id": v, "cost_cpu": 1, "cost_ram": 10, "backward": v >= n} for v in range(2 * n)]
    links = [{"source": v - 1, "target": v} for v in range(1, 2 * n)]
    for v in range(n):
        links += [{"source": u, "target": 2 * n - 1 - v} for u in (v - 1, v) if 0 <= u < n - 1]
    return {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}


@pytest.fixture
def graph(tmp_path: Path) -> str:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(training_graph()))
    return str(path)


def judged(path: str, result: dict[str, Any]) -> None:
    """The simulator agrees with what the JSON says."""
    costs = read_cost_graph(path)
    place = {identity: v for v, identity in enumerate(costs.ids)}
    run = simulate(costs, np.array([place[i] for i in result["schedule"]]))
    assert run.peak == result["peak"]
    overhead = 100 * (run.seconds / costs.plain_seconds - 1)
    assert overhead == pytest.approx(result["overhead_percent"], abs=1e-9)
    assert result["lower_bound_percent"] <= result["overhead_percent"]


def test_the_json_of_the_contract(memcli: Command, graph: str, tmp_path: Path) -> None:
    done = memcli("solve", graph, "--budget", "80%", "--time-limit", "20", "--json")
    assert done.returncode == 0, done.stderr
    result = only_json(done)
    assert result["schema"] == 1
    assert set(result) >= {
        "schedule",
        "peak",
        "plain_peak",
        "overhead_percent",
        "proven",
        "lower_bound_percent",
        "seconds",
    }
    assert result["peak"] <= 0.8 * result["plain_peak"]
    assert result["proven"] is True
    assert result["seconds"] < 20
    judged(graph, result)
    again = only_json(memcli("solve", graph, "--budget", "80%", "--time-limit", "20", "--json"))
    assert again["schedule"] == result["schedule"]


def test_without_a_budget_the_least_peak(memcli: Command, graph: str) -> None:
    result = only_json(memcli("solve", graph, "--time-limit", "5", "--json"))
    judged(graph, result)
    assert result["peak"] == result["peak_lower_bound"] == 40


def test_the_table(memcli: Command, graph: str) -> None:
    done = memcli("solve", graph, "--budget", "90%", "--time-limit", "20")
    assert done.returncode == 0
    assert "Recomputed" in done.stdout
    assert "proven: no schedule takes less" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_budget_nothing_meets(memcli: Command, graph: str, tmp_path: Path) -> None:
    done = memcli("solve", graph, "--budget", "30B", "--json", "-o", "out.json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert answer["error"]["message"].startswith("no schedule fits 30 B")
    assert answer["error"]["nearest"]["peak"] == 40
    assert "no schedule fits 30 B, proven: the least peak found is 40 B" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_the_written_file(memcli: Command, graph: str, tmp_path: Path) -> None:
    arguments = ("solve", graph, "--budget", "90%", "--strategy", "greedy", "-o", "out.json")
    assert memcli(*arguments).returncode == 0
    judged(graph, json.loads((tmp_path / "out.json").read_text()))
    kept = memcli(*arguments)
    assert kept.returncode == 2
    assert "exists already" in kept.stderr
    assert memcli(*arguments, "--force").returncode == 0
    itself = memcli("solve", graph, "-o", graph, "--force")
    assert itself.returncode == 2
    assert "never overwritten" in itself.stderr


def changed(**changes: Any) -> dict[str, Any]:
    return {**training_graph(3), **changes}


def node(**changes: Any) -> dict[str, Any]:
    """The graph with its second node changed; None takes a key away."""
    graph = training_graph(3)
    for key, value in changes.items():
        if value is None:
            del graph["nodes"][1][key]
        else:
            graph["nodes"][1][key] = value
    return graph


def link(**changes: Any) -> dict[str, Any]:
    graph = training_graph(3)
    graph["links"].append(changes)
    return graph


NAN = json.dumps(node(cost_cpu=7)).replace('"cost_cpu": 7', '"cost_cpu": NaN')

BROKEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("empty",)),
    "not JSON": ('{"nodes": [', ("line 1, column 12", "not JSON")),
    "a list": ("[1]", ("not an object",)),
    "no nodes": ('{"links": []}', ("'nodes'",)),
    "an empty graph": ('{"nodes": [], "links": []}', ("empty",)),
    "no links": (json.dumps({"nodes": []}), ("'links'",)),
    "not directed": (json.dumps(changed(directed=False)), ("not directed",)),
    "a node that is none": (json.dumps(changed(nodes=[7])), ("nodes[0]",)),
    "no id": (json.dumps(node(id=None)), ("nodes[1]", "id")),
    "an id twice": (json.dumps(node(id=0)), ("nodes[1]", "nodes[0]")),
    "an id that is a list": (json.dumps(node(id=[1])), ("nodes[1]", "id")),
    "no time": (json.dumps(node(cost_cpu=None)), ("nodes[1]", "cost_cpu")),
    "no memory": (json.dumps(node(cost_ram=None)), ("nodes[1]", "cost_ram")),
    "a negative time": (json.dumps(node(cost_cpu=-1)), ("nodes[1]", "negative")),
    "a negative memory": (json.dumps(node(cost_ram=-5)), ("nodes[1]", "negative")),
    "part of a byte": (json.dumps(node(cost_ram=0.5)), ("nodes[1]", "whole number")),
    "a cost that is text": (json.dumps(node(cost_cpu="1")), ("nodes[1]", "not a number")),
    "a huge cost": (json.dumps(node(cost_ram=10**40)), ("nodes[1]", "2^53")),
    "an infinite cost": (
        json.dumps(node(cost_cpu=7)).replace('"cost_cpu": 7', '"cost_cpu": 1e999'),
        ("nodes[1]", "finite"),
    ),
    "NaN": (NAN, ("NaN",)),
    "a link that is none": (json.dumps(changed(links=[5])), ("links[0]",)),
    "a link to nowhere": (json.dumps(link(source=0, target=99)), ("links", "99")),
    "a link without source": (json.dumps(link(target=1)), ("links", "source")),
    "a node that reads itself": (json.dumps(link(source=2, target=2)), ("reads itself",)),
    "a cycle": (json.dumps(link(source=5, target=0)), ("cycle",)),
    "an order that is none": (json.dumps(changed(graph={"order": 5})), ("graph.order",)),
    "an order against a link": (
        json.dumps(changed(graph={"order": [1, 0, 2, 3, 4, 5]})),
        ("graph.order[0]", "before 0"),
    ),
    "an order that lacks a node": (
        json.dumps(changed(graph={"order": [0, 1, 2, 3, 4]})),
        ("graph.order", "lacks node 5"),
    ),
    "an order with a node twice": (
        json.dumps(changed(graph={"order": [0, 0, 1]})),
        ("graph.order[1]", "twice"),
    ),
    "deep nesting": ("[" * 100000, ("graph.json",)),
    "a Chainer graph cut short": ("2 1\n0 5 _\n", ("line 3", "a tensor")),
    "a Chainer graph with a word": ("2 1\n0 five _\n", ("line 2", "a tensor")),
    "a Chainer graph with no such tensor": (
        "1 1\n0 5 _\nforward\n1 1\n7 _\n0\nReLU\n{}\n",
        ("no tensor 7",),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_graphs(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from memcli.cli.main import status

    text, words = BROKEN[case]
    path = tmp_path / "graph.json"
    path.write_text(text)
    out = tmp_path / "out.json"
    assert status(["solve", str(path), "--budget", "80%", "--json", "-o", str(out)]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert json.loads(printed.out)["error"]["status"] == 2
    assert 1 <= len(lines) <= 2, printed.err
    assert lines[0].startswith("memcli: ")
    assert "graph.json" in lines[0]
    for word in words:
        assert word in printed.err
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [["--budget", "much"], ["--budget", "0"], ["--time-limit", "-1"], ["--strategy", "none"]],
)
def test_bad_options(memcli: Command, graph: str, arguments: list[str]) -> None:
    done = memcli("solve", graph, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_missing_file(memcli: Command) -> None:
    done = memcli("solve", "nowhere.json")
    assert done.returncode == 2
    assert "nowhere.json" in done.stderr


def test_orders(tmp_path: Path) -> None:
    """Ids that are numbers are the order where links go upwards; else it is topological."""
    raw = training_graph(3)
    raw["nodes"].reverse()
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(raw))
    assert read_cost_graph(str(path)).ids == [0, 1, 2, 3, 4, 5]
    names = "fedcba"
    for entry in raw["nodes"]:
        entry["id"] = names[entry["id"]]
    for entry in raw["links"]:
        entry["source"], entry["target"] = names[entry["source"]], names[entry["target"]]
    path.write_text(json.dumps(raw))
    assert read_cost_graph(str(path)).ids == list(names)


@needs_peers
@pytest.mark.parametrize(
    ("name", "budget", "wanted"),
    [
        ("vgg16_256", 90, 1.97),
        ("unet_32", 80, 1.98),
        ("unet_32", 60, 4.45),
        ("fcn8_32", 80, 0.14),
        ("segnet_32", 90, 0.10),
        ("mobilenet_512", 90, 0.16),
    ],
)
def test_published_optima(memcli: Command, name: str, budget: int, wanted: float) -> None:
    """Reached in a second of search, without the time of a proof."""
    path = str(PEERS / "checkmate-graphs" / f"{name}_train.json")
    result = only_json(
        memcli(
            "solve",
            path,
            "--budget",
            f"{budget}%",
            "--time-limit",
            "2",
            "--json",
            "--strategy",
            "annealing",
        )
    )
    judged(path, result)
    assert result["overhead_percent"] <= wanted + 0.006
    assert result["peak"] <= budget / 100 * result["plain_peak"]


@needs_peers
def test_what_is_infeasible_is_proven_so(memcli: Command) -> None:
    path = str(PEERS / "checkmate-graphs" / "vgg16_256_train.json")
    done = memcli("solve", path, "--budget", "80%", "--json")
    assert done.returncode == 1
    assert "proven" in done.stderr


@needs_peers
def test_layered_and_chainer_graphs(memcli: Command) -> None:
    for path in (PEERS / "layered-graphs" / "n250.json", PEERS / "kusumoto-graphs" / "cg_unet.txt"):
        done = memcli("solve", str(path), "--budget", "90%", "--strategy", "greedy", "--json")
        assert done.returncode == 0, done.stderr
        judged(str(path), only_json(done))
