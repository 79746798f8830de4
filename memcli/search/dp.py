"""``dp``: dynamic programming over lower sets.

Source: Kusumoto, Inoue, Watanabe, Akiba and Koyama, "A Graph Theoretic Framework of Recomputation
Algorithms for Memory-Efficient Backpropagation", NeurIPS 2019, arXiv 1905.11722. A lower set is a
set of forward nodes that contains all that its members read; its boundary are the members that
others read. A canonical strategy is a growing sequence of lower sets: boundaries are kept, and what
lies between two lower sets is recomputed when the backward pass gets there (section 3). Section
4.2's dynamic programming keeps, for each lower set and each amount of recomputation, the least
memory that the boundaries take, and drops what breaks the budget. Families of lower sets:

- all of them, where there are at most a few hundred (section 4.2, exact);
- the ancestors of each node (section 4.3, approximate), on graphs of medium size;
- prefixes of the execution order, at the cuts of :mod:`memcli.search.cutpoints`.

Two things differ from the paper. A stretch may also be kept whole, as MXNet recomputes only marked
nodes. And the memory of a stretch while it is recomputed is what its gradients read plus the
gradients that live meanwhile, which do not depend on the plan. Still this is a model of the live
peak: plans for a ladder of budgets are judged by the exact pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcli.compiled import compiled
from memcli.graph.lifetimes import NEVER, lifetimes
from memcli.graph.training import Flags, Ints, TrainingGraph
from memcli.marks import AGAIN, KEPT
from memcli.search.base import Search
from memcli.search.cutpoints import CutPoint, last_forward_use, pinned_bytes
from memcli.search.marks import keep_marks

NAME = "dp"
_MOST_SETS = 400  # lower sets of a family
_MOST_ANCESTORS = 3000  # forward nodes up to which sets of ancestors are taken
_LEVELS = 48  # steps into which recomputation is divided
_LADDER = (1.0, 1.03, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)  # of the least peak
_KIB = 1024.0

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class Family:
    """Nested-able lower sets, the empty one first and all nodes last."""

    inside: Bools  # sets x forward nodes
    boundary: Bools  # sets x forward nodes


@dataclass
class Stretches:
    """Of each pair of sets ``i < j``, sizes in KiB, work in FLOPs; inf where not nested."""

    kept: Floats  # the boundary of j outside i
    whole: Floats  # all of the stretch that gradients read, kept
    running: Floats  # all of the stretch that gradients read, and the gradients meanwhile
    flops: Floats


def _boundary(graph: TrainingGraph, inside: Bools) -> Bools:
    """Members that a node outside reads, variables apart."""
    n_forward = graph.n_forward
    reader = np.repeat(np.arange(n_forward), np.diff(graph.in_ptr[: n_forward + 1]))
    source = graph.in_node[: len(reader)]
    result = np.zeros_like(inside)
    for row in range(len(inside)):
        leaves = inside[row, source] & ~inside[row, reader]
        result[row, source[leaves]] = True
    result[:, graph.variable[:n_forward] == 1] = False
    return result


def prefix_family(search: Search, cuts: list[CutPoint]) -> Family:
    """Prefixes of the execution order that end at cuts; the cheapest cut of each neighbourhood."""
    graph = search.graph
    # as many nodes as sets at most 40 million flags
    most = int(min(_MOST_SETS, max(64, 40_000_000 // max(1, graph.n_forward))))
    if len(cuts) > most:
        groups = np.array_split(np.arange(len(cuts)), most)
        cuts = [min((cuts[k] for k in g), key=lambda c: c.bytes) for g in groups]
    n_forward = graph.n_forward
    last = last_forward_use(graph)
    inside = np.zeros((len(cuts) + 2, n_forward), bool)
    boundary = np.zeros_like(inside)
    for row, cut in enumerate(cuts):
        inside[row + 1, : cut.after + 1] = True
        boundary[row + 1, cut.nodes] = True
    inside[-1] = True
    assert (last >= 0).all()
    return Family(inside, boundary)


def ancestor_family(graph: TrainingGraph) -> Family:
    """The ancestors of each node, with the node; of the tensors that gradients read."""
    n_forward = graph.n_forward
    above = np.zeros((n_forward, n_forward), bool)
    for v in range(n_forward):
        above[v, v] = True
        for u in graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]]:
            above[v] |= above[u]
    rows = np.flatnonzero(graph.variable[:n_forward] == 0)
    if len(rows) > _MOST_SETS:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST_SETS).astype(int)]
    return _sorted_family(graph, above[rows])


def all_lower_sets(graph: TrainingGraph) -> Family | None:
    """Every lower set, or None where there are too many."""
    n_forward = graph.n_forward
    operators = np.flatnonzero(graph.variable[:n_forward] == 0)
    variables = frozenset(np.flatnonzero(graph.variable[:n_forward] == 1).tolist())
    reads = {
        int(v): frozenset(graph.in_node[graph.in_ptr[v] : graph.in_ptr[v + 1]].tolist())
        for v in operators
    }
    found = {variables}
    for v in operators.tolist():
        # in topological order each set without v that has all v reads can take v in
        found |= {s | {v} for s in found if reads[v] <= s}
        if len(found) > _MOST_SETS:
            return None
    rows = np.zeros((len(found), n_forward), bool)
    for row, members in enumerate(found):
        rows[row, list(members)] = True
    return _sorted_family(graph, rows)


def _sorted_family(graph: TrainingGraph, rows: Bools) -> Family:
    """The sets by size, with variables, the empty set and the whole graph, each once."""
    n_forward = graph.n_forward
    variables = graph.variable[:n_forward] == 1
    ends = np.stack([variables, np.ones(n_forward, bool)])
    rows = np.unique(np.concatenate([rows | variables, ends]), axis=0)
    rows = rows[np.argsort(rows.sum(axis=1), kind="stable")]
    return Family(rows, _boundary(graph, rows))


def stretches(graph: TrainingGraph, family: Family, keep: Flags) -> Stretches:
    """Memory and work between each pair of lower sets.

    Args:
        graph: the training graph.
        family: the lower sets.
        keep: over forward nodes, the mark of a boundary's node: ``KEPT`` or behind a save barrier.

    Returns:
        Matrices, sets x sets, of which only those above the diagonal are used.
    """
    n_sets = len(family.inside)
    operator = graph.variable[: graph.n_forward] == 0
    sizes = graph.operator_bytes() / _KIB
    held = sizes + np.where(keep == KEPT, pinned_bytes(graph) / _KIB, 0)
    saved = np.zeros(graph.n_nodes)
    flags = graph.saved_entries()
    np.add.at(saved, graph.entry_node, flags * graph.entry_bytes / _KIB)
    saved = saved[: graph.n_forward]
    outside = (~family.inside).astype(np.float32)
    inside = family.inside.astype(np.float32)

    def between(weights: Floats, rows: NDArray[np.float32]) -> Floats:
        """Of ``rows[j]`` the weight outside of set ``i``."""
        return (outside @ (rows * weights.astype(np.float32)).T).astype(np.float64)

    kept = between(held, family.boundary.astype(np.float32))
    whole = between(saved, inside)
    recomputed = np.where(graph.can_recompute & operator, graph.flops[: graph.n_forward], 0.0)
    flops = between(recomputed, inside)
    # a kept node without a barrier is not recomputed
    plain = np.where(keep == KEPT, recomputed, 0.0)
    flops -= between(plain, family.boundary.astype(np.float32))
    nested = inside @ outside.T == 0  # [i, j]: nothing of i is outside of j
    earlier = np.triu(np.ones((n_sets, n_sets), bool), 1) & nested
    # gradients alive while a stretch's own gradients run: by the first set that has a node
    facts = lifetimes(graph)
    rank = np.argmax(family.inside, axis=0)
    gradients = np.zeros(n_sets)
    timed = operator & (facts.turn != NEVER)
    np.maximum.at(gradients, rank[timed], facts.gradients[facts.turn[timed]] / _KIB)
    running = np.zeros((n_sets, n_sets))
    for i in range(n_sets):
        running[i, i + 1 :] = np.maximum.accumulate(gradients[i + 1 :])
    running += whole
    for matrix in (kept, whole, running, flops):
        matrix[~earlier] = np.inf
    return Stretches(kept, whole, running, np.maximum(flops, 0))


@compiled
def _solve(kept, whole, running, level, levels, budget, least, came_set, came_level, came_kind):
    """Fill in the least memory of what is kept up to each set, by amount of recomputation.

    ``least[j, t]`` is that of the best way to set ``j`` with ``t`` levels of recomputation;
    ``came_*[j, t]`` tell its last stretch: from which set and level it came, and its kind, 1
    recomputed or 0 kept.
    """
    n = kept.shape[0]
    for j in range(n):
        for t in range(levels + 1):
            least[j, t] = np.inf
    least[0, 0] = 0.0
    for i in range(n - 1):
        for j in range(i + 1, n):
            if not np.isfinite(whole[i, j]):
                continue
            for t in range(levels + 1):
                have = least[i, t]
                if not np.isfinite(have):
                    continue
                if have + running[i, j] <= budget:
                    # kept whole: gradients meanwhile count, and are gone behind it
                    total = have + whole[i, j]
                    if total < least[j, t]:
                        least[j, t] = total
                        came_set[j, t], came_level[j, t], came_kind[j, t] = i, t, 0
                    later = t + level[i, j]
                    total = have + kept[i, j]
                    if later <= levels and total <= budget and total < least[j, later]:
                        least[j, later] = total
                        came_set[j, later], came_level[j, later] = i, t
                        came_kind[j, later] = 1


class Solver:
    """The dynamic programming over one family, for any budget and limit of recomputation."""

    def __init__(self, pairs: Stretches, forward_flops: float) -> None:
        self.pairs = pairs
        n = len(pairs.kept)
        self.levels = _LEVELS
        step = max(forward_flops, 1.0) / self.levels
        finite = np.where(np.isfinite(pairs.flops), pairs.flops, 0)
        self.fine = np.rint(finite / step).astype(np.int64)
        self.rounded_up = np.zeros((n, n), np.int64)
        shape = (n, self.levels + 1)
        self.least = np.zeros(shape)
        self.came = tuple(np.zeros(shape, np.int64) for _ in range(3))

    def solve(self, budget: float, *, free: bool = False) -> list[tuple[int, int, bool]] | None:
        """The plan of the least recomputation within a budget.

        Args:
            budget: KiB.
            free: any recomputation, and the least memory kept, instead.

        Returns:
            Of each stretch the numbers of the sets that it lies between, and whether it is
            recomputed; in order. None where nothing fits.
        """
        pairs = self.pairs
        levels = 0 if free else self.levels
        level = self.rounded_up if free else self.fine
        _solve(
            pairs.kept, pairs.whole, pairs.running, level, levels, budget, self.least, *self.came
        )
        fits = np.flatnonzero(np.isfinite(self.least[-1, : levels + 1]))
        if not len(fits):
            return None
        j, t = len(pairs.kept) - 1, int(fits[0])
        result = []
        while j > 0:
            i, kind = int(self.came[0][j, t]), bool(self.came[2][j, t])
            t = int(self.came[1][j, t])
            result.append((i, j, kind))
            j = i
        return result[::-1]

    def least_budget(self) -> float:
        """The least KiB for which a plan exists, to a thousandth."""
        low, high = 0.0, float(self.pairs.running[0, -1]) + 1.0
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            if self.solve(middle, free=True) is None:
                low = middle
            else:
                high = middle
        return high


def marks(
    graph: TrainingGraph, family: Family, path: list[tuple[int, int, bool]], keep: Flags
) -> tuple[Flags, list[list[int]]]:
    """The marks of a sequence of lower sets, and its boundaries.

    Args:
        graph: the training graph.
        family: the lower sets.
        path: stretches, as :meth:`Solver.solve` gives them.
        keep: as for :func:`stretches`.

    Returns:
        Marks over forward nodes, and the kept nodes of each boundary.
    """
    flags: Ints = np.zeros(graph.n_forward, np.uint8)
    cuts = []
    for i, j, recomputed in path:
        stretch = family.inside[j] & ~family.inside[i]
        edge = family.boundary[j] & stretch
        if recomputed:
            flags[stretch & ~edge] = AGAIN
            flags[edge] = keep[edge]
        if edge.any():
            cuts.append(np.flatnonzero(edge).tolist())
    return np.where(graph.can_recompute, flags, KEPT).astype(np.uint8), cuts


def family_list(search: Search) -> list[Family]:
    """The families to search: all lower sets alone, or ancestors and cuts."""
    graph = search.graph
    exact = all_lower_sets(graph)
    if exact is not None:
        return [exact]
    result = []
    if search.cuts:
        result.append(prefix_family(search, search.cuts))
    if graph.n_forward <= _MOST_ANCESTORS:
        result.append(ancestor_family(graph))
    return result


def run(search: Search) -> None:
    """Consider plans of a ladder of budgets, for each family and both ways to keep a tensor."""
    graph = search.graph
    seen: set[bytes] = set()
    search.consider(NAME, search.space.none(), [])
    families = () if search.out_of_time else family_list(search)
    for number, family in enumerate(families):
        for barriers in (False, True):
            if search.out_of_time:
                return
            search.progress("lower sets", number / 2 + barriers / 4)
            keep = keep_marks(search, barriers)
            if barriers and not keep.any():
                continue
            solver = Solver(stretches(graph, family, keep), search.space.forward_flops)
            least = solver.least_budget()
            for factor in _LADDER:
                for free in (True, False):
                    if search.out_of_time:
                        return
                    path = solver.solve(least * factor, free=free)
                    if path is None:
                        continue
                    flags, cuts = marks(graph, family, path, keep)
                    if flags.tobytes() in seen:
                        continue
                    seen.add(flags.tobytes())
                    found = search.consider(NAME, flags, cuts)
                    found.plan.notes["budget_bytes"] = int(least * factor * _KIB)
