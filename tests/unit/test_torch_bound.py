"""Bounds for PyTorch's plans against the truth: every plan of hundreds of small random graphs."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from memcli.engines.torch.memory.backwards_bound import backwards_bound, limited_bound  # noqa: E402
from memcli.engines.torch.memory.bound import least_of_all, torch_bound  # noqa: E402
from memcli.engines.torch.memory.model import TorchModel  # noqa: E402
from memcli.engines.torch.memory.moments import columns, moments_of  # noqa: E402
from memcli.engines.torch.memory.plan_model import TorchPlanModel  # noqa: E402
from memcli.engines.torch.search_space import TorchSpace  # noqa: E402
from memcli.engines.torch.trace import trace  # noqa: E402
from memcli.search.base import Search, Settings  # noqa: E402
from memcli.search.registry import STRATEGIES  # noqa: E402
from tests.unit import torch_nets as nets  # noqa: E402

torch.set_num_threads(1)


def small_models(seeds: range, most: int = 6) -> list[TorchModel]:
    """Models of random nets, in bytes and in CUDA's blocks, with gradients of the input or not."""
    found = []
    for seed in seeds:
        net = nets.random_net(seed, random.Random(seed).randint(2, most))
        recorded = trace(net, [torch.randn(6, 4, requires_grad=seed % 2 == 0)])
        found.append(TorchModel(recorded, allocator="cuda" if seed % 3 == 0 else "exact"))
    return found


@pytest.fixture(scope="module")
def models() -> list[TorchModel]:
    return small_models(range(220))


def least_of(model: TorchModel, limit: float = math.inf) -> int:
    """The least live peak of all plans within a limit."""
    least = least_of_all(model, (limit,))
    assert least is not None
    return least[0]


def searched(model: TorchModel, ceiling: int, limit: float = math.inf) -> tuple[int, int]:
    """The bound by moments alone, and that of the search."""
    moments = moments_of(model.trace, model.block)
    low = int(moments.most.max())
    bound = backwards_bound(model, moments, low, ceiling)
    if not math.isinf(limit):
        bound = limited_bound(model, moments, bound, ceiling, limit)
    return low, bound


def test_no_plan_is_under_the_bound(models: list[TorchModel]) -> None:
    tight = by_moments = 0
    for number, model in enumerate(models):
        least = least_of(model)
        low, bound = searched(model, model.evaluate(model.none()).live_peak_bytes)
        assert low <= bound <= least, number
        assert searched(model, least)[1] == bound, number  # whatever plan is known
        assert torch_bound(model, least).bytes == least
        tight += bound == least
        by_moments += low == least
    # Nearly always the best order of recomputations is a plan; moments alone prove less.
    assert tight > 0.96 * len(models) > by_moments


def test_no_plan_within_a_limit_is_under_its_bound(models: list[TorchModel]) -> None:
    tight = higher = 0
    for number, model in enumerate(models):
        limit = float(model.trace.flops.sum()) * (0.2, 0.5, 1.0)[number % 3]
        least = least_of(model, limit)
        top = model.evaluate(model.none()).live_peak_bytes
        bound = searched(model, top, limit)[1]
        assert bound <= least, number
        both = torch_bound(model, top, limit)
        assert both.bytes <= both.within == least
        tight += bound == least
        higher += bound > searched(model, top)[1]
    assert tight > 0.9 * len(models)
    assert higher > 5  # what nothing can spare within the limit can be spared beyond it


def test_some_tensors_alone_are_a_bound_too(
    models: list[TorchModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in large graphs, where small tensors are left out."""
    for part in (0.3, 0.1):
        monkeypatch.setattr("memcli.engines.torch.memory.backwards_bound._PARTS", (part,))
        for number, model in enumerate(models[:80]):
            least = least_of(model)
            assert searched(model, 1 << 40)[1] <= least, number


def test_a_search_that_does_not_end_is_a_bound_too(
    models: list[TorchModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    for states in (2, 10, 40):
        for room in ("_STATES", "_FEW_STATES"):
            monkeypatch.setattr(f"memcli.engines.torch.memory.backwards_bound.{room}", states)
        for number, model in enumerate(models[:80]):
            limit = float(model.trace.flops.sum()) * (0.5 if number % 2 else math.inf)
            least = least_of(model, limit)
            assert searched(model, 1 << 40, limit)[1] <= least, number


@pytest.mark.parametrize("name", nets.NETS)
def test_no_strategy_is_under_the_bound(name: str) -> None:
    make, inputs = nets.NETS[name]
    model = TorchPlanModel(trace(make(), inputs()))
    for limit in (1.0, 0.3):
        search = Search(TorchSpace(model), Settings(max_recompute=limit))
        for strategy in ("cheap", "dp", "sqrt", "memonger"):
            STRATEGIES[strategy].run(search)
        peaks = [f.cost.live_peak_bytes for f in search.tried if f.cost.recompute_fraction <= limit]
        bound = search.lower_bound(1 << 40)
        assert bound.bytes <= bound.within <= min(peaks)


def test_residual_sums_need_more_than_any_moment_shows() -> None:
    """What runs again for a gradient is there beside the gradients that wait: 15% more here."""
    model = TorchModel(trace(nets.resnet(), [torch.randn(2, 3, 16, 16)]))
    low, bound = searched(model, model.evaluate(model.none()).live_peak_bytes)
    assert low < 0.9 * bound
    # and some plan takes no more
    search = Search(TorchSpace(TorchPlanModel(model.trace)), Settings(max_recompute=100.0))
    STRATEGIES["local"].run(search)
    assert bound <= search.answer().cost.live_peak_bytes <= 1.03 * bound


def test_moments_are_those_of_every_plan(models: list[TorchModel]) -> None:
    """What is held at a moment, and alive before a request, is so whatever the marks."""
    chance = np.random.default_rng(0)
    for model in models[:40]:
        moments = moments_of(model.trace, model.block)
        everything = np.arange(len(moments.sizes))
        held: Any = columns(moments.held, everything)
        assert (held @ moments.sizes <= moments.most).all()
        assert (columns(moments.held_before, everything) @ moments.sizes <= moments.before).all()
        assert (np.diff(moments.following) >= 0).all() and (np.diff(moments.made) >= 0).all()
        for _ in range(5):
            marks = chance.integers(0, 3, model.trace.n_steps).astype(np.uint8)
            cost = model.evaluate(marks)
            assert not cost.feasible or moments.most.max() <= cost.live_peak_bytes
