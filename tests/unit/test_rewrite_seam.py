"""The seam of rewrites: one class, and one entry in the registry.

The toy rewrite puts a ``Flatten`` behind each LayerNorm of a matrix, which hands the matrix on: an
operator that no other rewrite puts in. Nothing but the tuple of rewrites hears of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from memcli.cli.main import main
from memcli.engines.mxnet.record import Analysis
from memcli.engines.mxnet.rewrites import registry
from memcli.engines.mxnet.rewrites.base import Rewrite, RewriteConditions
from memcli.errors import BadInput
from memcli.formats.symbol.edits import GraphBuilder, Raw
from memcli.formats.symbol.file import SymbolFile
from tests.conftest import ONCE, needs_mxnet

pytestmark = needs_mxnet


class FlattensBehindNorms(Rewrite[list[int]]):
    """Consumes recomputed normalizations, so that MXNet makes their statistics."""

    name = "toy"
    makes_tensors = False

    def find(
        self, raw: Raw, analysis: Analysis | None, conditions: RewriteConditions
    ) -> list[int] | None:
        return [p for p, node in enumerate(raw["nodes"]) if node["op"] == "LayerNorm"] or None

    def relocated(self, found: list[int], moved: Mapping[int, int]) -> list[int]:
        return [moved[p] for p in found]

    def apply(self, raw: Raw, found: list[int]) -> tuple[Raw, dict[int, int]]:
        new = GraphBuilder(raw)
        for position, node in enumerate(raw["nodes"]):
            new.keep(position)
            if position in found:
                at = new.insert("Flatten", f"{node['name']}_flat", [[new.moved[position], 0, 0]])
                for reader, other in enumerate(raw["nodes"]):
                    for slot, source in enumerate(other["inputs"]):
                        if source[0] == position:
                            new.turned[reader, slot] = (at, 0)
        return new.finished(), new.moved

    def recognizes(self, nodes: Sequence[Raw], position: int) -> bool:
        return nodes[position]["op"] == "Flatten"

    def describe(self, found: list[int]) -> str:
        return f"{len(found)} toy rewrites"


def network(path: Path) -> dict[str, Any]:
    """Writes six dense layers with normalizations and residual sums; returns the content."""
    nodes: list[dict[str, Any]] = [
        {"op": "null", "name": "data", "attrs": {"__shape__": "(512, 1024)"}, "inputs": []}
    ]

    def add(op: str, name: str, *inputs: int, **attrs: str) -> int:
        reads = [[p, 0, 0] for p in inputs]
        own = {"attrs": attrs} if attrs else {}
        nodes.append({"op": op, "name": name, **own, "inputs": reads})
        return len(nodes) - 1

    def variable(name: str) -> int:
        nodes.append({"op": "null", "name": name, "inputs": []})
        return len(nodes) - 1

    x = 0
    for k in range(6):
        dense = add(
            "FullyConnected", f"fc{k}", x, variable(f"w{k}"), num_hidden="1024", no_bias="True"
        )
        norm = add("LayerNorm", f"norm{k}", dense, variable(f"gamma{k}"), variable(f"beta{k}"))
        x = add("elemwise_add", f"sum{k}", norm, x)
    out = add("LinearRegressionOutput", "loss", x, variable("label"))
    raw = {
        "nodes": nodes,
        "arg_nodes": [p for p, node in enumerate(nodes) if node["op"] == "null"],
        "heads": [[out, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }
    path.write_text(json.dumps(raw))
    return raw


def run(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json; it must end well."""
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def test_a_rewrite_is_one_class_and_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, planned, bare = (tmp_path / name for name in ("net.json", "p.json", "bare.json"))
    raw = network(model)
    monkeypatch.setattr(registry, "REWRITES", (*registry.REWRITES, FlattensBehindNorms()))

    plan = run("plan", str(model), "-o", str(planned))
    assert "6 toy rewrites" in plan["rewrites"]
    nodes = {node["name"]: node for node in json.loads(planned.read_text())["nodes"]}
    assert [nodes[f"norm{k}_flat"]["op"] for k in range(6)] == ["Flatten"] * 6

    verified = run("verify", str(planned), *ONCE)
    assert verified["ok"] is True

    run("strip", str(planned), "-o", str(bare))
    assert json.loads(bare.read_text())["nodes"] == raw["nodes"]


def test_nodes_of_a_rewrite_that_is_not_registered_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, planned = tmp_path / "net.json", tmp_path / "p.json"
    network(model)
    with monkeypatch.context() as registered:
        registered.setattr(registry, "REWRITES", (*registry.REWRITES, FlattensBehindNorms()))
        run("plan", str(model), "-o", str(planned))
    with pytest.raises(BadInput, match="is on no identity"):
        SymbolFile.read(planned).stripped()
