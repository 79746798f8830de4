"""A toy engine and a toy strategy behind the seams of the search, with no engine's file imported.

The engine trains a chain. Its memory model is a dozen lines of Python, so that every plan can be
tried, and it has none of what engines may have: no compiled annealing, no proofs, no barriers.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost
from memcli.graph.training import Flags, Ints, Kind, TrainingGraph
from memcli.marks import AGAIN, KEPT
from memcli.search.base import Search, Settings
from memcli.search.over_forms import search_plan, search_spaces
from memcli.search.registry import STRATEGIES
from memcli.search.space import NO_BLOCKS, Floats, SearchSpace
from memcli.search.strategy import Strategy

SIZES = (60, 40, 90, 30, 80, 50, 20, 70)  # bytes of what each operator makes
FLOPS = (5.0, 40.0, 3.0, 30.0, 8.0, 2.0, 25.0, 6.0)
ENGINES = ("memcli.engines", "mxnet", "torch")


def chain(sizes: Sequence[int] = SIZES) -> TrainingGraph:
    """Operators one after another; the gradient of each reads what the operator read."""
    n = len(sizes)
    reads = [[v - 1] if v else [] for v in range(n)]
    for v in reversed(range(n)):
        reads.append(([] if v == n - 1 else [len(reads) - 1]) + ([v - 1] if v else []))
    elements = np.array([*sizes, *reversed(sizes)], np.int64)
    pointers = np.concatenate([[0], np.cumsum([len(row) for row in reads])]).astype(np.int64)
    sources = np.array([u for row in reads for u in row], np.int64)
    backward = np.arange(n)[::-1]
    zeros = np.zeros(2 * n, np.uint8)
    return TrainingGraph(
        n_forward=n,
        kind=np.zeros(2 * n, np.int64),
        kinds=[Kind("toy", {}, 1, 1)],
        first=np.arange(2 * n + 1),
        elements=elements,
        itemsize=np.ones(2 * n, np.int64),
        in_ptr=pointers,
        in_entry=sources,
        in_node=sources,
        in_ignored=np.zeros(len(sources), np.uint8),
        dep_ptr=np.zeros(2 * n + 1, np.int64),
        dep_node=np.zeros(0, np.int64),
        owner=np.concatenate([np.full(n, -1), backward]),
        position=np.concatenate([np.arange(n), np.full(n, -1)]),
        outputs=np.array([2 * n - 1]),
        n_forward_outputs=0,
        external=np.zeros(2 * n, np.int64),
        pair_ptr=np.zeros(2 * n + 1, np.int64),
        pair_in=np.zeros(0, np.int64),
        pair_out=np.zeros(0, np.int64),
        pair_identity=np.zeros(0, np.uint8),
        ignores_all=zeros,
        is_grad_add=zeros,
        can_recompute=np.ones(n, np.uint8),
        can_barrier=np.zeros(n, np.uint8),
        fails_unread=np.zeros(n, np.uint8),
        flops=np.array([*FLOPS[:n], *[0.0] * n]),
        shape_ptr=np.arange(2 * n + 1),
        shape_dim=elements,
        visible=np.ones(2 * n, np.uint8),
        names=[f"op{v}" for v in range(n)] + [f"gradient{v}" for v in backward],
        file_names=[f"op{v}" for v in range(n)],
        file_variable=[False] * n,
        keeps_inputs=False,
    )


class ToySpace(SearchSpace):
    """What the toy engine gives a search: a graph, and the cost of a plan."""

    most_steps = 2000  # each is a walk in Python

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        self._graph = chain(sizes)
        self.evaluations = 0

    @property
    def graph(self) -> TrainingGraph:
        return self._graph

    @property
    def seconds(self) -> Floats:
        return self._graph.flops[: self._graph.n_forward]

    @property
    def forward_seconds(self) -> float:
        return float(self.seconds.sum())

    @property
    def forward_flops(self) -> float:
        return self.forward_seconds

    def evaluate(
        self,
        flags: Flags,
        match_ranges: Sequence[int] = (DEFAULT_MATCH_RANGE,),
        reserved: Ints = NO_BLOCKS,
    ) -> Cost:
        """The most bytes alive in the backward pass, where what is missing is made again."""
        self.evaluations += 1
        sizes, n = self._graph.elements.tolist(), self._graph.n_forward
        alive = {v for v in range(n) if flags[v] == KEPT}
        peak = again = 0.0
        for v in reversed(range(n)):
            wanted = v - 1
            while wanted >= 0 and wanted not in alive:
                alive.add(wanted)
                again += float(self._graph.flops[wanted])
                wanted -= 1
            peak = max(peak, sizes[v] + sum(sizes[u] for u in alive))
            alive.discard(v)
        size = int(peak)
        return Cost(
            size,
            size,
            size,
            again,
            self.forward_flops,
            recompute_seconds=again,
            forward_seconds=self.forward_seconds,
        )


def every_plan(space: ToySpace) -> list[Cost]:
    marks = itertools.product((KEPT, AGAIN), repeat=space.graph.n_forward)
    return [space.evaluate(np.array(plan, np.uint8)) for plan in marks]


def searched(strategy: str) -> Search:
    """A strategy on the chain, after its answer was checked."""
    space = ToySpace()
    found, search = search_plan(space, strategy, Settings())
    assert found.cost == space.evaluate(found.plan.recompute)
    assert found.cost.pool_bytes >= min(cost.pool_bytes for cost in every_plan(space))
    assert found.cost.pool_bytes <= space.evaluate(space.none()).pool_bytes
    return search


@pytest.mark.parametrize("strategy", ["none", "sqrt", "cheap", "memonger", "dp", "milp", "local"])
def test_strategies_for_any_graph_run_on_a_toy_engine(strategy: str) -> None:
    search = searched(strategy)
    assert search.tried
    assert (strategy == "none") != any(found.plan.recompute.any() for found in search.tried)


def test_the_best_plan_is_found() -> None:
    for strategy in ("local", "auto"):
        found, search = search_plan(ToySpace(), strategy, Settings())
        least = min(cost.pool_bytes for cost in every_plan(ToySpace()))
        assert found.cost.pool_bytes == least
        assert search.evaluated > 100  # annealed, by evaluating one plan after another


def test_within_a_budget_the_least_is_recomputed() -> None:
    costs = every_plan(ToySpace())
    pools = sorted({cost.pool_bytes for cost in costs})
    budget = pools[len(pools) // 3]
    found, _ = search_plan(ToySpace(), "local", Settings(budget=budget))
    assert found.cost.pool_bytes <= budget
    assert found.cost.recompute_flops == min(
        cost.recompute_flops for cost in costs if cost.pool_bytes <= budget
    )


def test_hints_hold_on_a_toy_engine() -> None:
    settings = Settings(keep=["op2"], recompute=["op4"])
    found, _ = search_plan(ToySpace(), "local", settings)
    assert found.plan.recompute[2] == KEPT and found.plan.recompute[4] == AGAIN


def test_a_toy_strategy_is_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two forms of a network, the better one is explored and refined."""
    refined: list[float] = []

    def keep_every_third(search: Search) -> None:
        flags = np.full(search.graph.n_forward, AGAIN, np.uint8)
        flags[::3] = KEPT
        search.consider("thirds", flags, [])

    def note(search: Search, part: float) -> None:
        refined.append(part)

    toy = Strategy("thirds", "keep every third operator", keep_every_third, refine=note)
    monkeypatch.setitem(STRATEGIES, toy.name, toy)
    large, small = ToySpace([2 * size for size in SIZES]), ToySpace()
    found, form, evaluated = search_spaces([large, small], toy.name, Settings())
    assert (form, evaluated, refined) == (1, 2, [1.0])
    assert found.plan.strategy == "thirds"
    assert np.flatnonzero(found.plan.recompute == KEPT).tolist() == [0, 3, 6]


def test_no_file_of_an_engine_is_imported() -> None:
    code = (
        "import sys\n"
        "from tests.unit.test_strategy_seam import ENGINES, searched\n"
        "for name in ('none', 'sqrt', 'cheap', 'local'): searched(name)\n"
        "print(*[name for name in sys.modules if name.startswith(ENGINES)])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
