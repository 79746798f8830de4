"""What no plan can get under.

A bound here holds for the pool of every plan of a graph (any marks, save barriers included), at
any match range. Gradient sums count as the pool counts them: before MXNet lets them share a block
(see ``Timeline``).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memcli.engines.mxnet.memory import integer_bound as program
from memcli.engines.mxnet.memory import integer_bound_solver as program_solver
from memcli.engines.mxnet.memory.exhaustive import all_plans
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.mxnet.memory.size_bands import ends_of_bands, in_band, pool_bound
from memcli.graph.lifetimes import Lifetimes, lifetimes
from memcli.graph.training import Flags, TrainingGraph

# Recomputable nodes up to which the program is solved with whole marks, and relaxed.
SMALL = 64
MEDIUM = 450
_STEPS_TIMES_NODES = 2400  # of a relaxed program, which then takes seconds
_BANDS = 6  # of sizes, in programs
_MOST_ROWS = 20_000  # at one place, up to which each band has a place of its own

_PROGRAM_SECONDS = 2.0  # for all forms of a network
# Recomputable nodes up to which recomputation within a budget gets a bound, and seconds for it.
_MOST_BUDGETED = 2500
BUDGET_SECONDS = 20.0


@dataclass
class PoolBound:
    """A proof. ``bytes``: no plan's pool is less. ``flags``: a plan of the solver's, or None."""

    bytes: int
    source: str  # sizes, program, relaxed program, all plans
    flags: Flags | None = None


def _solved(
    graph: TrainingGraph, facts: Lifetimes, model: MXNetModel, time_limit: float, ceiling: int
) -> PoolBound:
    """The bound of the program, whole or relaxed as the graph's size allows."""
    nodes = int(graph.can_recompute.sum())
    if nodes > MEDIUM or not facts.sound or not nodes or time_limit <= 0:
        return PoolBound(0, "program")
    found = all_plans(graph, model)
    if found is not None:
        return PoolBound(found.needed_bytes, "all plans", found.needed_flags)
    ends = ends_of_bands(facts, _BANDS)
    if nodes <= SMALL:
        built = program.build(graph, facts, ceiling, ends=ends)
        done = program_solver.solve(built, graph.n_forward, time_limit=time_limit, relaxed=False)
        return PoolBound(done.bound_bytes, "program", done.flags)
    most = max(4, _STEPS_TIMES_NODES // nodes)
    built = program.build(graph, facts, ceiling, most_steps=most, ends=ends)
    done = program_solver.solve(built, graph.n_forward, time_limit=time_limit, relaxed=True)
    return PoolBound(done.bound_bytes, "relaxed program", done.flags)


def _some_pool(model: MXNetModel) -> int:
    """The pool of a plan that is always there."""
    return model.evaluate(model.none()).pool_bytes


def program_bound(
    graph: TrainingGraph, model: MXNetModel, time_limit: float = 20.0, ceiling: int | None = None
) -> PoolBound:
    """The dual bound of the integer program, or of all plans where they can be tried.

    See :mod:`memcli.engines.mxnet.memory.integer_bound`.

    Args:
        graph: the joint graph.
        model: of the same graph.
        time_limit: seconds, for the solver.
        ceiling: bytes, the pool of the best plan known; None: the empty plan's. A low one helps.

    Returns:
        0 bytes for graphs of more than some hundred operators, for which the program is too large.
    """
    facts = lifetimes(graph)
    top = _some_pool(model) if ceiling is None else ceiling
    return _solved(graph, facts, model, time_limit, top)


def best_lower_bound(
    graph: TrainingGraph, model: MXNetModel, time_limit: float = 0.0, ceiling: int | None = None
) -> PoolBound:
    """The largest of all bounds of every plan's pool.

    The bound of sizes always (two seconds at 50,000 nodes); the program's where it gets time.

    Args:
        graph: the joint graph.
        model: of the same graph.
        time_limit: seconds, for the program.
        ceiling: as in :func:`program_bound`.
    """
    started = time.monotonic()
    facts = lifetimes(graph)
    best = PoolBound(pool_bound(graph, facts), "sizes")
    top = _some_pool(model) if ceiling is None else ceiling
    if time_limit > 0 and best.bytes < top:
        left = time_limit - (time.monotonic() - started)
        best = max(best, _solved(graph, facts, model, left, top), key=lambda b: b.bytes)
    return best


def reported_bound(forms: Sequence[tuple[TrainingGraph, MXNetModel]], ceiling: int) -> int:
    """What no plan of any form of a network gets under: the bound that plans are reported with.

    The program is asked where it ends within seconds, on graphs of some sixty operators.

    Args:
        forms: the graph of each form, and its model.
        ceiling: the pool of the best plan known, bytes.

    Returns:
        Bytes: the least bound of a form.
    """
    by_sizes = [best_lower_bound(graph, model, ceiling=ceiling).bytes for graph, model in forms]
    until = time.monotonic() + _PROGRAM_SECONDS
    least = ceiling
    # A form cannot lift what another one has: those of the least bounds are solved first.
    for left, form in zip(range(len(forms), 0, -1), np.argsort(by_sizes), strict=True):
        bound = by_sizes[form]
        if bound >= least:
            break
        graph, model = forms[form]
        seconds = (until - time.monotonic()) / left
        if int(graph.can_recompute.sum()) <= SMALL and seconds > 0:
            bound = best_lower_bound(graph, model, seconds, ceiling).bytes
        least = min(least, bound)
    return least


def recompute_bound(
    graph: TrainingGraph,
    model: MXNetModel,
    budget: int,
    *,
    most_nodes: int = _MOST_BUDGETED,
    time_limit: float = BUDGET_SECONDS,
) -> float:
    """FLOPs that every plan whose pool fits ``budget`` bytes recomputes at least.

    Of the program (:mod:`memcli.engines.mxnet.memory.integer_bound`), on graphs of more than some
    sixty operators relaxed and at few moments: the end of the forward pass, when all that is kept
    is there, and the one in the backward pass that leaves the least room for it; on graphs of some
    hundred operators the ones in each band of sizes as well.

    Args:
        graph: the joint graph.
        model: of the same graph.
        budget: bytes of the pool.
        most_nodes: operators that may be recomputed up to which it is tried.
        time_limit: seconds, for the solver.

    Returns:
        0 where nothing is proven: on larger graphs, and where all fits.
    """
    nodes = int(graph.can_recompute.sum())
    if not 0 < nodes <= most_nodes or _some_pool(model) <= budget:
        return 0.0
    facts = lifetimes(graph)
    if not facts.sound:
        return 0.0
    work = graph.flops[: graph.n_forward]
    ends = ends_of_bands(facts, _BANDS)
    if nodes <= SMALL:
        whole = program.build(graph, facts, budget, ends=ends)
        return program_solver.least_recomputation(
            whole, work, time_limit=_PROGRAM_SECONDS, relaxed=False
        )
    places = {_narrowest(graph, facts, budget)}
    built = program.build(graph, facts, budget, places=sorted(places), ends=ends)
    if len(built.rows.low) <= _MOST_ROWS:
        for low, high in itertools.pairwise(ends):
            places.add(_narrowest(graph, in_band(facts, low, high), budget))
        built = program.build(graph, facts, budget, places=sorted(places), ends=ends)
    return program_solver.least_recomputation(built, work, time_limit=time_limit, relaxed=True)


def _narrowest(graph: TrainingGraph, facts: Lifetimes, budget: int) -> int:
    """The place in the backward pass at which the smallest part of what is kept can be there.

    Gradients take more room as the pass goes on, and less of what is kept is still to be read.
    """
    reader = np.repeat(np.arange(graph.n_nodes), np.diff(graph.in_ptr))
    at = facts.place[reader]
    late = (at >= facts.n_first) & (graph.in_node < graph.n_forward) & (graph.in_ignored == 0)
    last = np.full(graph.n_entries, -1)
    np.maximum.at(last, graph.in_entry[late], at[late])
    saved = (last >= 0) & (facts.bytes > 0)
    released = np.bincount(last[saved] + 1, facts.bytes[saved], len(facts.order) + 1)
    wanted = facts.bytes[saved].sum() - np.cumsum(released)[: len(facts.order)]
    room = budget - facts.least
    part = np.where(wanted > 0, room / np.maximum(wanted, 1), np.inf)
    return facts.n_first + int(np.argmin(part[facts.n_first :]))


def working_set_bound(graph: TrainingGraph) -> int:
    """Bytes of the largest operator's own inputs and outputs, a bound for every plan's pool.

    While an operator runs, all it reads and all it writes is allocated, recomputed or not.
    Caller's memory (parameters, inputs, their gradients) does not count, nor an output that may
    share its input's block, nor an input that is read for its shape alone.
    """
    worst = 0
    pooled = (graph.external == 0) & (graph.variable[graph.entry_node] == 0)
    for v in range(graph.n_nodes):
        if graph.variable[v]:
            continue
        begin, end = int(graph.in_ptr[v]), int(graph.in_ptr[v + 1])
        reads = {
            int(graph.in_entry[i])
            for i in range(begin, end)
            if not graph.in_ignored[i] and pooled[graph.in_entry[i]]
        }
        shared = {
            int(graph.first[v] + graph.pair_out[p])
            for p in range(graph.pair_ptr[v], graph.pair_ptr[v + 1])
        }
        writes = {e for e in graph.entries(v) if pooled[e] and e not in shared}
        # in-place inputs of one block count once
        total = int(sum(graph.entry_bytes[e] for e in writes))
        sizes = sorted((int(graph.entry_bytes[e]) for e in reads), reverse=True)
        blocks = _distinct_blocks(graph, reads)
        total += sum(sizes) if blocks else (sizes[0] if sizes else 0)
        worst = max(worst, total)
    return worst


def _distinct_blocks(graph: TrainingGraph, reads: set[int]) -> bool:
    """Whether no two of the entries can be views of one block (an identity shares its input's)."""
    roots = set()
    for entry in reads:
        root = entry
        for _ in range(64):
            node = int(graph.entry_node[root])
            begin, end = int(graph.pair_ptr[node]), int(graph.pair_ptr[node + 1])
            nxt = next(
                (
                    int(graph.in_entry[graph.in_ptr[node] + graph.pair_in[p]])
                    for p in range(begin, end)
                    if graph.pair_identity[p] and graph.first[node] + graph.pair_out[p] == root
                ),
                None,
            )
            if nxt is None:
                break
            root = nxt
        if root in roots:
            return False
        roots.add(root)
    return True
