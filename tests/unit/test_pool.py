"""The compiled pool against a plain restatement of MXNet's rules, on random graphs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from memcli.engines.mxnet.memory import pool_kernel as fast_pool
from memcli.engines.mxnet.memory import pool_layout
from memcli.engines.mxnet.memory.bounds import working_set_bound
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.graph.training import Kind, TrainingGraph


def random_graph(seed: int, n_forward: int) -> TrainingGraph:
    """A joint graph: variables, forward operators, and a backward node for each of them.

    Sizes, edges, in-place pairs and what the gradients read are drawn at random.
    """
    chance = random.Random(seed)
    nodes: list[dict[str, Any]] = []
    for v in range(n_forward):
        variable = v == 0 or (v < n_forward - 1 and chance.random() < 0.2)
        reads = [] if variable else sorted(chance.sample(range(v), min(v, chance.randint(1, 3))))
        outputs = 1 if variable or chance.random() < 0.8 else 2
        nodes.append(
            {
                "var": variable,
                "in": [(u, 0) for u in reads],
                "deps": [],
                "owner": -1,
                "sizes": [chance.choice([1, 2, 4, 64, 100, 1000]) for _ in range(outputs)],
            }
        )
    gradient: dict[int, int] = {}
    for v in range(n_forward - 1, -1, -1):
        if nodes[v]["var"]:
            continue
        reads = []
        readers = [
            gradient[u]
            for u in range(v + 1, n_forward)
            if u in gradient and any(s == v for s, _ in nodes[u]["in"])
        ]
        for g in readers[:2]:
            reads.append((g, 0))
        if chance.random() < 0.6:
            reads.append((v, 0))
        if nodes[v]["in"] and chance.random() < 0.7:
            reads.append(nodes[v]["in"][0])
        gradient[v] = len(nodes)
        sizes = [nodes[u]["sizes"][0] for u, _ in nodes[v]["in"]] or [1]
        # sums have gradients that wait for nothing
        waits = [v] if (v, 0) in reads or chance.random() < 0.6 else []
        nodes.append({"var": False, "in": reads, "deps": waits, "owner": v, "sizes": sizes})
    return to_graph(nodes, n_forward, chance)


def to_graph(nodes: list[dict[str, Any]], n_forward: int, chance: random.Random) -> TrainingGraph:
    first = np.cumsum([0] + [len(n["sizes"]) for n in nodes])
    flat = [(int(first[u]) + k, u) for n in nodes for u, k in n["in"]]
    pairs: list[list[tuple[int, int, bool]]] = []
    for n in nodes:
        found = []
        if not n["var"] and n["in"] and chance.random() < 0.5:
            found.append((chance.randrange(len(n["in"])), 0, chance.random() < 0.3))
        pairs.append(found)
    read = {u for n in nodes for u, _ in n["in"]} | {d for n in nodes for d in n["deps"]}
    sinks = [v for v in range(len(nodes)) if v not in read]
    forward_read = {u for n in nodes[:n_forward] for u, _ in n["in"]}
    results = [v for v in range(n_forward) if v not in forward_read and not nodes[v]["var"]]
    reachable_heads = [int(first[v]) for v in results]
    reachable_heads += [int(first[v]) for v in sinks if v >= n_forward]
    external = np.zeros(int(first[-1]), np.int64)
    external[reachable_heads[len(results) :]] = -2
    n_entries = int(first[-1])
    flat_pairs = [p for found in pairs for p in found]
    ignored = np.array([chance.random() < 0.1 for _ in flat], np.uint8)
    in_ptr = np.cumsum([0] + [len(n["in"]) for n in nodes])
    for v, found in enumerate(pairs):
        for slot, _, _ in found:
            # no operator of MXNet writes over an input that it reads for its shape alone
            ignored[in_ptr[v] + slot] = 0

    def pointers(lengths: list[int]) -> np.ndarray:
        return np.cumsum([0, *lengths]).astype(np.int64)

    return TrainingGraph(
        n_forward=n_forward,
        kind=np.array([-1 if n["var"] else 0 for n in nodes], np.int64),
        kinds=[Kind("op", {}, 0, 0)],
        first=first.astype(np.int64),
        elements=np.array([s for n in nodes for s in n["sizes"]], np.int64),
        itemsize=np.full(n_entries, 4, np.int64),
        in_ptr=pointers([len(n["in"]) for n in nodes]),
        in_entry=np.array([e for e, _ in flat], np.int64),
        in_node=np.array([u for _, u in flat], np.int64),
        in_ignored=ignored,
        dep_ptr=pointers([len(n["deps"]) for n in nodes]),
        dep_node=np.array([d for n in nodes for d in n["deps"]], np.int64),
        owner=np.array([n["owner"] for n in nodes], np.int64),
        position=np.arange(len(nodes)),
        outputs=np.array(reachable_heads, np.int64),
        n_forward_outputs=len(results),
        external=external,
        pair_ptr=pointers([len(found) for found in pairs]),
        pair_in=np.array([p[0] for p in flat_pairs], np.int64),
        pair_out=np.array([p[1] for p in flat_pairs], np.int64),
        pair_identity=np.array([p[2] for p in flat_pairs], np.uint8),
        ignores_all=np.zeros(len(nodes), np.uint8),
        is_grad_add=np.zeros(len(nodes), np.uint8),
        can_recompute=np.array([not n["var"] for n in nodes[:n_forward]], np.uint8),
        can_barrier=np.ones(n_forward, np.uint8),
        flops=np.ones(len(nodes)),
        shape_ptr=np.arange(n_entries + 1),
        shape_dim=np.array([s for n in nodes for s in n["sizes"]], np.int64),
        fails_unread=np.ones(n_forward, np.uint8),
        visible=np.ones(n_entries, np.uint8),
        names=[f"n{v}" for v in range(len(nodes))],
        file_names=[f"n{v}" for v in range(n_forward)],
        file_variable=[n["var"] for n in nodes[:n_forward]],
    )


def restated(
    graph: TrainingGraph,
    mark: list[int],
    match_range: int,
    reserved: Sequence[int] = (),
    copied: int = 0,
) -> tuple[int, int]:
    """Pool total and live peak, restated with dictionaries and lists: names for nodes are
    ``(v, copy)``, an entry is ``(v, copy, k)``. Marks are 0, 1 or 2 (behind a save barrier).
    ``reserved``: elements of blocks that are free before anything runs but what takes ``copied``
    bytes to the end of the step."""
    n_forward = graph.n_forward

    def source(reader: tuple[int, bool], node: int) -> tuple[int, bool]:
        v, copy = reader
        if node < n_forward and mark[node]:
            owner = int(graph.owner[v])
            if mark[node] == 2:
                # behind a barrier only the node's own gradient has the copy
                return node, owner == node
            if copy or (owner >= 0 and mark[owner]):
                return node, True
        return node, False

    def reads(node: tuple[int, bool]) -> list[tuple[tuple[int, bool], int, bool]]:
        v = node[0]
        rows = []
        for i in range(graph.in_ptr[v], graph.in_ptr[v + 1]):
            u = int(graph.in_node[i])
            rows.append(
                (
                    source(node, u),
                    int(graph.in_entry[i] - graph.first[u]),
                    bool(graph.in_ignored[i]),
                )
            )
        return rows

    order: list[tuple[int, bool]] = []
    seen = set()

    def visit(node: tuple[int, bool]) -> None:
        if node in seen:
            return
        seen.add(node)
        for u, _, _ in reads(node):
            visit(u)
        for i in range(graph.dep_ptr[node[0]], graph.dep_ptr[node[0] + 1]):
            visit(source(node, int(graph.dep_node[i])))
        order.append(node)

    for entry in graph.outputs:
        visit((int(graph.entry_node[entry]), False))
    refs: dict[tuple[int, bool, int], int] = {}
    for node in order:
        for u, k, ignored in reads(node):
            if not ignored and not graph.variable[node[0]]:
                refs[(*u, k)] = refs.get((*u, k), 0) + 1
    for entry in graph.outputs:
        v = int(graph.entry_node[entry])
        key = (v, False, int(entry - graph.first[v]))
        refs[key] = refs.get(key, 0) + 1

    blocks: list[int] = []
    count: list[int] = []
    holds: list[int] = []
    free: list[tuple[int, int]] = []  # (size, block), sorted, first in first out among equals
    where: dict[tuple[int, bool, int], int] = {}
    live = peak = 0

    def release(block: int) -> None:
        nonlocal live
        live -= holds[block]
        holds[block] = 0
        at = sum(size <= blocks[block] for size, _ in free)
        free.insert(at, (blocks[block], block))

    def taken_for(wanted: int) -> int:
        chosen = None
        for at, (have, _) in enumerate(free):
            if have >= wanted:
                if have <= wanted * match_range:
                    chosen = at
                break
        if chosen is None:
            smaller = [
                a for a, (have, _) in enumerate(free) if wanted // match_range <= have < wanted
            ]
            chosen = smaller[-1] if smaller else None
        if chosen is None:
            blocks.append(wanted)
            count.append(0)
            holds.append(0)
            return len(blocks) - 1
        _, block = free.pop(chosen)
        blocks[block] = max(blocks[block], wanted)
        return block

    for elements in reserved:
        blocks.append(elements * 4)
        count.append(0)
        holds.append(0)
        release(len(blocks) - 1)
    if reserved:
        taken_for(copied)
    for node in order:
        v, copy = node
        if graph.variable[v]:
            continue
        taken = set()
        for p in range(graph.pair_ptr[v], graph.pair_ptr[v + 1]):
            i, k = int(graph.pair_in[p]), int(graph.pair_out[p])
            u, ku, _ = reads(node)[i]
            out, inp = (v, copy, k), (*u, ku)
            e_out, e_in = graph.first[v] + k, graph.first[u[0]] + ku
            fits = graph.elements[e_out] == graph.elements[e_in]
            external = not copy and graph.external[e_out]
            block = where.get(inp, -1)
            if i in taken or external or block < 0 or not fits or not refs.get(out):
                continue
            if graph.pair_identity[p] or count[block] == 1:
                taken.add(i)
                where[out] = block
                count[block] += refs[out]
        rest = []
        for k in range(len(graph.entries(v))):
            e = int(graph.first[v]) + k
            if (v, copy, k) not in where and not (not copy and graph.external[e]):
                rest.append((int(graph.elements[e]), k))
        for size, k in sorted(rest, reverse=True):
            wanted = size * 4
            block = taken_for(wanted)
            where[(v, copy, k)] = block
            count[block] = refs.get((v, copy, k), 0)
            holds[block] = wanted
            live += wanted
        peak = max(peak, live)
        for u, k, ignored in reads(node):
            block = where.get((*u, k), -1)
            if ignored or block < 0:
                continue
            count[block] -= 1
            if count[block] == 0:
                release(block)
        for k in range(len(graph.entries(v))):
            block = where.get((v, copy, k), -1)
            if block >= 0 and count[block] == 0:
                release(block)
    return sum(blocks), peak


@settings(max_examples=150, deadline=None)
@example(seed=120, size=19, match_range=1)
@given(st.integers(0, 10**6), st.integers(3, 24), st.sampled_from([1, 2, 4, 16]))
def test_pool_equals_its_restatement(seed: int, size: int, match_range: int) -> None:
    graph = random_graph(seed, size)
    chance = random.Random(seed + 1)
    mark = [int(graph.can_recompute[v]) * chance.choice((0, 1, 1, 2)) for v in range(size)]
    model = MXNetModel(graph)
    cost = model.evaluate(np.array(mark, np.uint8), (match_range,))
    assert (cost.total_bytes, cost.live_peak_bytes) == restated(graph, mark, match_range)
    # the kernels that list where everything is agree with those that searches use
    flags = np.array(mark, np.uint8)
    order = model.execution_order(flags)
    counts = model.reference_counts(order, flags)
    _, blocks, live, _ = model.allocate(order, counts, flags, match_range)
    assert (int(blocks.sum()), live) == (cost.total_bytes, cost.live_peak_bytes)
    again = order[order >= graph.n_nodes] - graph.n_nodes
    assert cost.recompute_flops == graph.flops[again].sum()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 24), st.sampled_from([1, 4, 16]))
def test_reserved_blocks_are_there_from_the_start(seed: int, size: int, match_range: int) -> None:
    graph = random_graph(seed, size)
    chance = random.Random(seed + 1)
    mark = [int(graph.can_recompute[v]) * chance.choice((0, 1, 1, 2)) for v in range(size)]
    operators = [v for v in range(graph.n_forward) if not graph.variable[v]]
    assume(operators)
    model = MXNetModel(graph)
    first = int(pool_layout.layout_of(graph).prefix[0])
    copied = 4 * chance.choice((1, 16, 500))
    model.reservable = pool_layout.Reservable(first, 4, least=1, copied=copied, extra=0)
    reserved = [chance.choice((0, 1, 7, 64, 300)) for _ in range(chance.randint(0, 5))]
    flags, blocks = np.array(mark, np.uint8), np.array(reserved, np.int64)
    cost = model.evaluate(flags, (match_range,), blocks)
    asked = [elements for elements in reserved if elements]
    assert (cost.total_bytes, cost.live_peak_bytes) == restated(
        graph, mark, match_range, asked, copied
    )


@settings(max_examples=100, deadline=None)
@example(seed=1706, size=17, match_range=1)
@given(st.integers(0, 10**6), st.integers(3, 20), st.sampled_from([1, 3, 16]))
def test_every_pool_has_a_block_for_each_tensor(seed: int, size: int, match_range: int) -> None:
    """What the search goes by lies between what is alive at once and what the pool takes."""
    graph = random_graph(seed, size)
    model = MXNetModel(graph)
    chance = random.Random(seed + 1)
    mark = np.array([chance.choice((0, 1, 1, 2)) for _ in range(size)], np.uint8)
    mark *= graph.can_recompute
    layout, scratch = model.layout, pool_layout.scratch(model.layout)
    steps, _, _ = fast_pool.trace(layout, scratch, mark)

    def filled(ceiling: int) -> tuple[int, int, int, int]:
        result: tuple[int, int, int, int] = fast_pool.fill(
            layout, scratch, mark, steps, match_range, ceiling, True, fast_pool.NOTHING
        )
        return result

    whole = filled(fast_pool.ANY)
    _, pool, live, least = whole
    assert live <= least <= pool
    assert model.needed_blocks(mark).sum() * 4 == least
    # an evaluation that stops at a ceiling tells as much: the pool is above it
    for ceiling in (pool - 1, pool // 2):
        assert ceiling < filled(ceiling)[1] <= pool
    assert filled(pool) == whole


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12))
def test_no_plan_gets_under_the_bound(seed: int, size: int) -> None:
    graph = random_graph(seed, size)
    graph.in_ignored[:] = 0
    model = MXNetModel(graph)
    assume(len(model.execution_order(model.none())) == graph.n_nodes)
    bound = working_set_bound(graph)
    chance = random.Random(seed)
    for _ in range(20):
        mark = np.array([chance.random() < 0.5 for _ in range(size)], np.uint8)
        assert model.evaluate(mark & graph.can_recompute, (1, 4, 16)).total_bytes >= bound


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 20))
def test_every_copy_that_must_be_read_is(seed: int, size: int) -> None:
    graph = random_graph(seed, size)
    chance = random.Random(seed)
    graph.fails_unread[:] = [chance.random() < 0.5 for _ in range(size)]
    model = MXNetModel(graph)
    mark = np.array([chance.random() < 0.6 for _ in range(size)], np.uint8) & graph.can_recompute
    kept = model.without_unread(mark)
    assert not (kept & ~mark).any()
    order = model.execution_order(kept)
    counts = model.reference_counts(order, kept)
    for node in order[order >= graph.n_nodes] - graph.n_nodes:
        assert counts[graph.n_entries + graph.first[node]] or not graph.fails_unread[node]


def test_more_memory_is_never_reported_than_the_pool_holds() -> None:
    graph = random_graph(7, 20)
    cost = MXNetModel(graph).evaluate(MXNetModel(graph).none())
    assert cost.live_peak_bytes <= cost.total_bytes
    assert cost.pool_bytes <= cost.total_bytes


if __name__ == "__main__":
    pytest.main([__file__])
