"""The whole training step: its parts, budgets for all of it, and the optimizer's own step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memcli.choices import CARD_NAMES
from memcli.frameworks.cards import CARDS
from memcli.results.step_total import Breakdown, StepTotal
from tests.conftest import EXAMPLES, Command, needs_mxnet, only_json

LSTM = str(EXAMPLES / "lstm-symbol.json")
GIVEN = ("--batch", "4", "--strategy", "cheap")


def test_every_card_that_the_command_line_names_is_known() -> None:
    assert tuple(CARDS) == CARD_NAMES
    assert all(card.source and card.bytes > 2**33 for card in CARDS.values())


def test_temporaries_of_the_update_count_only_where_activations_are_fewer() -> None:
    large = Breakdown(100, 100, 200, 1, 10, 0, pool=50, update=100)
    assert large.beside_pool == 411 and large.total == 511
    small = Breakdown(100, 100, 200, 1, 10, 0, pool=150, update=100)
    assert small.total == 561
    total = StepTotal("adam", small, large, reserve=9)
    assert (total.baseline_bytes, total.planned_bytes) == (570, 520)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "adam-fused", "adamw-fused"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_optimizers_step_takes_what_is_said(name: str, device: str) -> None:
    """PyTorch's own optimizers, all allocations counted; "foreach" is what a card gets."""
    torch = pytest.importorskip("torch")
    from memcli.choices import OPTIMIZERS
    from memcli.engines.torch.fitting import update_bytes
    from memcli.engines.torch.tape import ALLOCATED, FREED, Tape

    kind, _, fused = name.partition("-")
    made = {
        "sgd": lambda p, **k: torch.optim.SGD(p, lr=0.1, **k),
        "momentum": lambda p, **k: torch.optim.SGD(p, lr=0.1, momentum=0.9, **k),
        "adam": lambda p, **k: torch.optim.Adam(p, lr=0.1, **k),
        "adamw": lambda p, **k: torch.optim.AdamW(p, lr=0.1, **k),
    }[kind]
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (300_000, 200_000, 40_000)]
    options = {"fused": True} if fused else {"foreach": device == "cuda"}
    optimizer = made(parameters, **options)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # which makes what it keeps
    states = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    kept = sum(state.untyped_storage().nbytes() for state in states if state.dim())
    sizes = torch.tensor([4 * p.numel() for p in parameters]).numpy()
    assert kept == OPTIMIZERS[name] * int(sizes.sum())
    tape = Tape()
    tape.known([*parameters, *(p.grad for p in parameters), *states])
    with tape:
        optimizer.step()
    live = peak = 0
    for event, number, _ in tape.events:
        if event in (ALLOCATED, FREED):
            live += tape.bytes[number] * (1 if event == ALLOCATED else -1)
            peak = max(peak, live)
    expected = update_bytes(sizes, name, device)
    assert peak <= expected + 4096  # and a few scalars
    assert peak >= expected if device == "cuda" else peak >= 0.8 * expected


@needs_mxnet
def test_the_whole_step_is_held_to_its_memory(memcli: Command, tmp_path: Path) -> None:
    free = only_json(memcli("plan", LSTM, *GIVEN, "--optimizer", "momentum", "--json"))
    total = free["step_total"]
    assert total["baseline"]["optimizer_bytes"] == free["memory"]["parameter_bytes"]
    assert total["planned"]["pool_bytes"] == free["memory"]["planned_bytes"]
    for side in ("baseline", "planned"):
        parts = total[side]
        beside = total["reserve_bytes"] + total[f"{side}_slack_bytes"]
        assert sum(parts.values()) + beside == total[f"{side}_bytes"]
    between = (total["baseline_bytes"] + total["planned_bytes"]) // 2 - total["reserve_bytes"]
    held = memcli(
        *("plan", LSTM, *GIVEN, "--optimizer", "momentum", "--reserve", "0"),
        *("--memory", f"{between}B", "--json"),
    )
    found = only_json(held)["step_total"]
    assert found["planned_bytes"] <= between < found["baseline_bytes"]
    assert found["memory_bytes"] == between
    least = memcli("plan", LSTM, *GIVEN, "--memory", "1MiB", "--reserve", "0", "--json")
    assert least.returncode == 1
    assert "before any activation" in json.loads(least.stdout)["error"]["message"]
    screen = memcli("plan", LSTM, *GIVEN, "--card", "rtx4090").stdout
    assert "RTX 4090" in screen and "24,564.0" in screen
    both = memcli("plan", LSTM, "--card", "t4", "--budget", "1GiB")
    assert both.returncode == 2 and "--budget" in both.stderr
