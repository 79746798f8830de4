"""Edits of symbols: what they do, and that taking them off gives the graph back."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memcli.engines.mxnet.rewrites.flattened_concats import (
    ConcatChain,
    flatten_concats,
    grouped_sums,
    insert_chains,
)
from memcli.engines.mxnet.rewrites.gradient_joins import Join, insert_joins
from memcli.engines.mxnet.rewrites.reserved_blocks import (
    Reservation,
    insert_reservation,
    reservation,
    scaled_reservation,
    waiting_arguments,
    without_reservation,
)
from memcli.engines.mxnet.rewrites.save_barriers import BARRIER_SUFFIX
from memcli.engines.mxnet.rewrites.split_activation_functions import SplitActivation, insert_splits
from memcli.errors import BadInput
from memcli.formats.symbol.edits import insert_identities, rewire, undo


def symbol(seed: int, size: int) -> dict[str, Any]:
    """A random symbol's content: every node reads earlier ones, as MXNet writes files."""
    chance = random.Random(seed)
    nodes: list[dict[str, Any]] = []
    for k in range(size):
        if k < 2 or chance.random() < 0.2:
            nodes.append({"op": "null", "name": f"v{k}", "inputs": []})
            continue
        inputs = [[chance.randrange(k), 0, 0] for _ in range(chance.randint(1, 4))]
        op = chance.choice(["Concat", "Concat", "Activation", "elemwise_add"])
        if op == "Activation":
            inputs = inputs[:1]
        if op == "elemwise_add":
            inputs = (inputs * 2)[:2]
        attrs = {"num_args": str(len(inputs))} if op == "Concat" else {}
        node = {"op": op, "name": f"n{k}", "inputs": inputs}
        if attrs:
            node["attrs"] = attrs
        nodes.append(node)
    heads = [[size - 1, 0, 0]]
    return {
        "nodes": nodes,
        "arg_nodes": [k for k, n in enumerate(nodes) if n["op"] == "null"],
        "node_row_ptr": list(range(size + 1)),
        "heads": heads,
        "attrs": {"mxnet_version": ["int", 10901]},
    }


def values(raw: dict[str, Any]) -> list[str]:
    """What each named node computes, as text: inserted nodes hand on, Concats are flat."""
    texts: list[list[str]] = []
    by_name = {}
    for node in raw["nodes"]:
        sources = [texts[i[0]][i[1] if len(i) > 1 else 0] for i in node["inputs"]]
        if node["op"] == "null":
            texts.append([node["name"]])
        elif node["op"] in ("_copy", "amp_multicast"):
            texts.append(sources)
        elif node["op"] == "reshape_like":  # looks at the other one's shape alone
            texts.append(sources[:1])
        elif node["op"] == "SliceChannel":
            count = int(node["attrs"]["num_outputs"])
            texts.append([f"{sources[0]}#{k}/{count}" for k in range(count)])
        elif node["op"] == "Concat" and "__memcli_inserted__" in node["attrs"]:
            # the whole of its pieces, where they are all there and in their order
            count = len(sources)
            whole = sources[0].removesuffix(f"#0/{count}]") + "]"
            assert sources == [f"{whole[:-1]}#{k}/{count}]" for k in range(count)]
            texts.append([whole])
        elif node["op"] == "Concat":
            inner = [s[4:-1] if s.startswith("cat(") else s for s in sources]
            texts.append(["cat(" + " ".join(inner) + ")"])
        else:
            texts.append([f"{node['op']}[{' '.join(sources)}]"])
        by_name[node["name"]] = texts[-1][0]
    return [by_name[node["name"]] for node in raw["nodes"] if node["op"] not in ("_copy",)]


def is_ordered(raw: dict[str, Any]) -> bool:
    """Whether every node comes after what it reads, and the row index counts outputs."""
    several = ("amp_multicast", "SliceChannel")
    widths = [
        int(node["attrs"]["num_outputs"]) if node["op"] in several else 1 for node in raw["nodes"]
    ]
    rows = raw["node_row_ptr"]
    return (
        all(i[0] < k for k, n in enumerate(raw["nodes"]) for i in n["inputs"])
        and [b - a for a, b in itertools.pairwise(rows)] == widths
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 30))
def test_barriers_hand_on_and_come_off(seed: int, size: int) -> None:
    raw = symbol(seed, size)
    before = copy.deepcopy(raw)
    chance = random.Random(seed)
    operators = [k for k, n in enumerate(raw["nodes"][:-1]) if n["op"] != "null"]
    chosen = [k for k in operators if chance.random() < 0.5]
    new, moved = insert_identities(raw, chosen, BARRIER_SUFFIX)
    assert raw == before
    assert is_ordered(new) and values(new) == values(raw)
    for k, node in enumerate(raw["nodes"]):
        assert new["nodes"][moved[k]]["name"] == node["name"]
    for k in chosen:
        readers = [n for n in new["nodes"] if any(i[0] == moved[k] for i in n["inputs"])]
        assert all(n["op"] == "_copy" for n in readers)
    assert undo(new, "x") == raw


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 30))
def test_flattened_concats_concatenate_the_same_and_come_off(seed: int, size: int) -> None:
    raw = symbol(seed, size)
    parts = ((), (0.5,), (0.5, 0.875))[seed % 3]
    changes = flatten_concats(raw, (2, 3, 5, math.inf)[seed % 4], longest=parts)
    flat = rewire(raw, changes)
    chained, _ = insert_chains(flat, grouped_sums(flat, {c.position for c in changes}))
    assert values(flat) == values(raw)
    assert is_ordered(chained) and values(chained) == values(raw)
    for node in flat["nodes"]:
        if node["op"] == "Concat":
            assert int(node["attrs"]["num_args"]) == len(node["inputs"])
    # barriers on top, then everything off at once
    operators = [k for k, n in enumerate(chained["nodes"][:-1]) if n["op"] == "Activation"]
    both, _ = insert_identities(chained, operators, BARRIER_SUFFIX)
    assert undo(both, "x") == raw


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 30))
def test_joins_hand_on_and_come_off(seed: int, size: int) -> None:
    raw = symbol(seed, size)
    chance = random.Random(seed)
    single = [k for k, n in enumerate(raw["nodes"]) if n["op"] == "Activation"]
    chance.shuffle(single)
    joins = []
    for a, b in zip(single[::2], single[1::2], strict=False):
        sources = [raw["nodes"][k]["inputs"][0][0] for k in (a, b)]
        if max(sources) < min(a, b):
            joins.append(Join([(a, 0), (b, 0)], f"join{a}"))
    new, _ = insert_joins(raw, joins)
    assert is_ordered(new)
    names = {n["name"]: t for n, t in zip(raw["nodes"], values(raw), strict=True)}
    for node, text in zip(new["nodes"], values(new), strict=True):
        if node["op"] != "amp_multicast":
            assert text == names[node["name"]]
    assert undo(new, "x") == raw


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 30))
def test_splits_hand_on_and_come_off(seed: int, size: int) -> None:
    raw = symbol(seed, size)
    chance = random.Random(seed)
    heads = {head[0] for head in raw["heads"]}
    splits = [
        SplitActivation(k, chance.choice([2, 3, 4]))
        for k, node in enumerate(raw["nodes"])
        if node["op"] == "Activation" and k not in heads and chance.random() < 0.7
    ]
    new, moved = insert_splits(raw, splits)
    assert is_ordered(new)
    old = dict(enumerate(values(raw)))
    texts = dict(zip((node["name"] for node in new["nodes"]), values(new), strict=True))
    cut = {split.position: split.parts for split in splits}
    for k, node in enumerate(raw["nodes"]):
        assert new["nodes"][moved[k]]["name"] == node["name"]
        if k in cut:  # it is the first piece, and others read the whole
            assert texts[node["name"]] == f"{old[k][:-1]}#0/{cut[k]}]"
            assert texts[f"{node['name']}_whole"] == old[k]
        else:
            assert texts[node["name"]] == old[k]
    assert undo(new, "x") == raw
    operators = [k for k, node in enumerate(new["nodes"]) if node["op"] != "null"]
    both, _ = insert_identities(new, chance.sample(operators, len(operators) // 2), BARRIER_SUFFIX)
    assert undo(both, "x") == raw


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 30), st.lists(st.integers(8, 99), min_size=1))
def test_reserved_blocks_hand_on_and_come_off(seed: int, size: int, blocks: list[int]) -> None:
    raw = symbol(seed, size)
    slots = [
        (k, slot)
        for k, node in enumerate(raw["nodes"])
        for slot, source in enumerate(node["inputs"])
        if raw["nodes"][source[0]]["op"] == "null"
    ]
    assume(slots)
    reader, slot = random.Random(seed).choice(slots)
    new, moved = insert_reservation(raw, Reservation(reader, slot, 0, 8, blocks, "float32"))
    assert is_ordered(new)
    names = {n["name"]: t for n, t in zip(raw["nodes"], values(raw), strict=True)}
    added = {new["nodes"][p]["name"] for p in reservation(new)}
    for node, text in zip(new["nodes"], values(new), strict=True):
        assert node["name"] in added or text == names[node["name"]]
    # the chain that the identity waits for: each slice reads its block, then the slice before, so
    # that all blocks are made before any of them is let go
    part = new["nodes"][new["nodes"][moved[reader]]["inputs"][slot][0]]["inputs"][1]
    shapes = []
    while part:
        block, *before = new["nodes"][part[0]]["inputs"]
        shapes.append(new["nodes"][block[0]]["attrs"]["shape"])
        part = before[0] if before else None
    assert shapes == [f"({elements},)" for elements in reversed(blocks)]
    argument = raw["nodes"][reader]["inputs"][slot][0]
    assert waiting_arguments(new) == [moved[argument]]
    back = [k for k, n in enumerate(raw["nodes"][:-1]) if n["op"] == "Activation"]
    both, _ = insert_identities(new, [moved[k] for k in back], BARRIER_SUFFIX)
    assert without_reservation(both, "x") == insert_identities(raw, back, BARRIER_SUFFIX)[0]
    assert undo(both, "x") == raw
    assert undo(scaled_reservation(both, 1, 2), "x") == raw


def test_reserved_blocks_shrink_with_the_batch() -> None:
    raw = symbol(1, 6)
    reader = next(k for k, n in enumerate(raw["nodes"]) if n["op"] != "null")
    new, _ = insert_reservation(
        raw, Reservation(reader, 0, 0, 8, [1 << 20, 1 << 18, 100], "float32")
    )
    half = scaled_reservation(new, 3, 6)
    shapes = [n["attrs"]["shape"] for n in half["nodes"] if n["op"] == "_zeros"]
    assert shapes == [f"({1 << 19},)", f"({1 << 17},)", "(100,)"]


def test_nested_concats_become_one() -> None:
    nodes: list[dict[str, Any]] = [
        {"op": "null", "name": name, "inputs": []} for name in ("a", "b", "c", "d")
    ]
    nodes += [
        {"op": "Concat", "name": "ab", "attrs": {"num_args": "2"}, "inputs": [[0, 0], [1, 0]]},
        {"op": "relu", "name": "r1", "inputs": [[4, 0]]},
        {"op": "Concat", "name": "abc", "attrs": {"num_args": "2"}, "inputs": [[4, 0], [2, 0]]},
        {"op": "relu", "name": "r2", "inputs": [[6, 0]]},
        # along another axis: not the same data when flattened
        {
            "op": "Concat",
            "name": "other",
            "attrs": {"num_args": "2", "dim": "2"},
            "inputs": [[6, 0], [3, 0]],
        },
    ]
    raw = {"nodes": nodes, "arg_nodes": [0, 1, 2, 3], "heads": [[8, 0], [5, 0], [7, 0]]}
    changes = flatten_concats(raw)
    assert [(c.position, list(c.inputs)) for c in changes] == [(6, [(0, 0), (1, 0), (2, 0)])]


@pytest.mark.parametrize(
    ("length", "parts", "stay"),
    [
        (3, (), []),
        (6, (), [4]),
        (12, (), [4, 8]),
        (16, (), [4, 8, 12]),
        (32, (), [8, 16, 24]),
        (32, (0.5,), [16]),
        (16, (0.5, 0.875), [8, 14]),
    ],
)
def test_long_chains_are_flattened_in_groups(
    length: int, parts: tuple[float, ...], stay: list[int]
) -> None:
    """A Concat reads what was added since the last one that stays, and that one."""
    nodes: list[dict[str, Any]] = [{"op": "null", "name": "x0", "inputs": []}]
    places = [0]
    for k in range(1, length + 1):
        nodes.append({"op": "null", "name": f"x{k}", "inputs": []})
        inputs = [[places[-1], 0], [len(nodes) - 1, 0]]
        places.append(len(nodes))
        attrs = {"num_args": "2"}
        nodes.append({"op": "Concat", "name": f"c{k}", "attrs": attrs, "inputs": inputs})
        nodes.append({"op": "relu", "name": f"r{k}", "inputs": [[places[-1], 0]]})
    raw = {
        "nodes": nodes,
        "arg_nodes": [p for p, node in enumerate(nodes) if node["op"] == "null"],
        "heads": [[p, 0] for p, node in enumerate(nodes) if node["op"] == "relu"],
    }
    flat = rewire(raw, flatten_concats(raw, 5, longest=parts))["nodes"]
    names = [node["name"] for node in flat]
    for k in range(1, length + 1):
        last = max((s for s in stay if s < k), default=0)
        first = [f"c{last}" if last else "x0"]
        read = [names[i[0]] for i in flat[places[k]]["inputs"]]
        assert read == first + [f"x{j}" for j in range(last + 1, k + 1)]


def test_an_inner_concat_with_two_other_readers_stays() -> None:
    """Its pieces' gradients would be grouped differently: (x + y) + z is not x + (y + z)."""
    nodes: list[dict[str, Any]] = [
        {"op": "null", "name": name, "inputs": []} for name in ("a", "b", "c")
    ]
    nodes += [
        {"op": "Concat", "name": "ab", "attrs": {"num_args": "2"}, "inputs": [[0, 0], [1, 0]]},
        {"op": "relu", "name": "r1", "inputs": [[3, 0]]},
        {"op": "tanh", "name": "r2", "inputs": [[3, 0]]},
        {"op": "Concat", "name": "abc", "attrs": {"num_args": "2"}, "inputs": [[3, 0], [2, 0]]},
    ]
    raw = {"nodes": nodes, "arg_nodes": [0, 1, 2], "heads": [[4, 0], [5, 0], [6, 0]]}
    assert flatten_concats(raw) == []


def test_three_readers_are_grouped_two_by_two() -> None:
    nodes: list[dict[str, Any]] = [
        {"op": "null", "name": "x", "inputs": []},
        {"op": "relu", "name": "p", "inputs": [[0, 0, 0]]},
        {"op": "tanh", "name": "r1", "inputs": [[1, 0, 0]]},
        {"op": "tanh", "name": "r2", "inputs": [[1, 0, 0]]},
        {"op": "tanh", "name": "r3", "inputs": [[1, 0, 0]]},
    ]
    raw = {"nodes": nodes, "arg_nodes": [0], "heads": [[2, 0], [3, 0], [4, 0]]}
    new, _ = insert_chains(raw, [ConcatChain(1, 0, [(2, 0), (3, 0), (4, 0)])])
    read = {n["name"]: new["nodes"][n["inputs"][0][0]]["name"] for n in new["nodes"][1:]}
    assert read["r1"] == "p" and read["r2"] == read["r3"] != "p"
    assert read[read["r2"]] == "p"


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", json.dumps({"inputs": [["gone", 0]], "attrs": {}})]
)
def test_an_edit_that_no_longer_fits_is_told(text: str) -> None:
    raw = symbol(1, 8)
    node = next(n for n in raw["nodes"] if n["op"] != "null")
    node["attrs"] = {"__memcli_original_inputs__": text}
    with pytest.raises(BadInput, match=r"model\.json: nodes\[\d+\]"):
        undo(raw, "model.json")


@pytest.mark.parametrize("op", ["Activation", "Concat", "elemwise_add"])
def test_an_inserted_mark_on_something_else_is_told(op: str) -> None:
    raw = symbol(1, 30)
    node = next(n for n in raw["nodes"] if n["op"] == op)
    node["attrs"] = {"__memcli_inserted__": "1"}
    with pytest.raises(BadInput, match="is on no identity"):
        undo(raw, "model.json")


def test_identities_in_a_circle_behind_pieces_are_told() -> None:
    raw = symbol(1, 8)
    inserted = {"__memcli_inserted__": "1"}
    for name, source in (("a", 9), ("b", 8)):
        raw["nodes"].append(
            {"op": "_copy", "name": name, "attrs": inserted, "inputs": [[source, 0, 0]]}
        )
    raw["nodes"].append({"op": "Concat", "name": "c", "attrs": inserted, "inputs": [[8, 0, 0]]})
    with pytest.raises(BadInput, match="is on no identity"):
        undo(raw, "model.json")
