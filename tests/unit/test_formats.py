"""Model files are told apart and read whole or refused in words; marks come off as they went on."""

from __future__ import annotations

import copy
import csv
import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcli.errors import BadInput
from memcli.formats.detect import detect_format, read_model_bytes
from memcli.formats.newest import newest_plan, remember_plan
from memcli.formats.symbol.file import MARK_KEY, SymbolFile
from memcli.formats.symbol.record import PLAN_KEY, PlanRecord

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CORPUS = ROOT.parent / "shared" / "corpus" / "mxnet"
FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)


def prefix(name: str, count: int) -> dict[str, Any]:
    """The first ``count`` nodes of an example, which are a graph of their own."""
    raw = json.loads((EXAMPLES / f"{name}-symbol.json").read_text())
    raw["nodes"] = raw["nodes"][:count]
    raw["arg_nodes"] = [position for position in raw["arg_nodes"] if position < count]
    raw["node_row_ptr"] = raw["node_row_ptr"][: count + 1]
    raw["heads"] = [[count - 1, 0, 0]]
    return raw


SMALL = {
    "resnet": prefix("resnet-50", 28),
    "densenet": prefix("densenet-201", 27),
    "lstm": prefix("lstm", 40),
}
SMALL["resnet"]["nodes"][8]["attrs"] = {MARK_KEY: "True", "fix_gamma": "True"}
SMALL["resnet"]["nodes"][19] = {  # a node with nothing but a mark
    "op": "elemwise_add",
    "name": "sum",
    "attrs": {MARK_KEY: "False"},
    "inputs": [[8, 0, 0], [9, 0, 0]],
}
LEGACY = {
    "nodes": [
        {"op": "null", "param": {}, "name": "data", "inputs": [], "backward_source_id": -1},
        {"op": "null", "param": {}, "name": "w", "inputs": [], "backward_source_id": -1},
        {
            "op": "FullyConnected",
            "param": {"num_hidden": "3", "no_bias": "True"},
            "name": "fc",
            "inputs": [[0, 0], [1, 0]],
            "backward_source_id": -1,
        },
        {
            "op": "Activation",
            "param": {"act_type": "relu"},
            "name": "act",
            "inputs": [[2, 0]],
            "backward_source_id": -1,
            "attr": {"force_mirroring": "True", "lr_mult": "2"},
        },
    ],
    "arg_nodes": [0, 1],
    "heads": [[3, 0]],
}
SMALL["legacy"] = LEGACY
ALL_SMALL = sorted(SMALL)


def parsed(raw: Any) -> SymbolFile:
    return SymbolFile.from_bytes(json.dumps(raw).encode(), "x.json")


def record(symbol: SymbolFile, **changes: Any) -> PlanRecord:
    values: dict[str, Any] = {
        "strategy": "auto",
        "shapes": {"data": [32, 3, 224, 224]},
        "dtype": "float32",
        "environment": {"NNVM_EXEC_MATCH_RANGE": "4"},
        "original_name": symbol.name,
        "original_sha256": symbol.sha256,
        "n_nodes": symbol.node_count,
        "original_marks": {k: list(v) for k, v in symbol.existing_marks().items()},
        "cuts": [symbol.node_count - 1],
        "memory": {"baseline_bytes": 1 << 40, "planned_bytes": 7},
        "recompute": {"flops": 10**15, "fraction": 0.25},
    }
    return PlanRecord(**{**values, **changes})


def reads_or_refuses(data: bytes) -> SymbolFile | None:
    """Anything but a SymbolFile or a BadInput of printable lines is a failure."""
    try:
        symbol = SymbolFile.from_bytes(data, "x.json")
    except BadInput as error:
        assert 1 <= len(error.lines()) <= 2
        assert all(line and line.isprintable() for line in error.lines()), error.lines()
        assert error.message.startswith("x.json: ")
        assert len(error.message) < 300
        return None
    order = symbol.execution_order()
    assert len(order) == len(set(order)) <= symbol.node_count
    again = SymbolFile.from_bytes(symbol.to_bytes(), "y.json")
    assert again.raw == symbol.raw
    return symbol


# ------------------------------------------------------------------ damaged files


@FUZZ
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(ALL_SMALL))
    text = bytearray(json.dumps(SMALL[name]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.integers(0, 255))
    reads_or_refuses(bytes(text))


@FUZZ
@given(data=st.data())
def test_swapped_characters_are_read_or_refused(data: st.DataObject) -> None:
    text = json.dumps(SMALL[data.draw(st.sampled_from(ALL_SMALL))])
    pieces = ["null", "NaN", "1" * 5000, "\\u", *'{}[]":,\\-+.01eE \t\n\x01é']
    parts = st.sampled_from(pieces)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(parts) + text[at + data.draw(st.integers(0, 5)) :]
    reads_or_refuses(text.encode())


@pytest.mark.parametrize("name", ["resnet-50", "lstm"])
def test_a_file_cut_short_is_refused_with_the_place(name: str) -> None:
    whole = (EXAMPLES / f"{name}-symbol.json").read_bytes().rstrip()
    for end in range(len(whole) - 1, 1, -len(whole) // 40):
        with pytest.raises(BadInput, match=r"x\.json: line \d+, column \d+: .*(cut|breaks|valid)"):
            SymbolFile.from_bytes(whole[:end], "x.json")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, (dict, list)):
            yield from places(child, (*path, key))


PLACES = {name: sorted(set(places(raw)), key=repr) for name, raw in SMALL.items()}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 50),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], [[0, 0, 0]], [0, 0], [1.0, 0], {"a": 1}, ["int", 3], "null"]),
)


@settings(FUZZ, max_examples=300)
@given(data=st.data())
def test_wrong_keys_and_types_are_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(ALL_SMALL))
    raw = copy.deepcopy(SMALL[name])
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(PLACES[name]))
        parent: Any = raw
        try:
            for key in path:
                parent = parent[key]
            if data.draw(st.booleans()):
                del parent[last]
            else:
                parent[last] = data.draw(VALUES)
        except (KeyError, IndexError, TypeError):
            pass  # the first change has taken the place away
    try:
        text = json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8
    symbol = reads_or_refuses(text)
    if symbol is not None and symbol.nodes:
        symbol.with_marks({0}, None)


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes_are_told_or_refused(data: bytes) -> None:
    try:
        assert detect_format(data, "x") in ("mxnet-symbol", "onnx")
    except BadInput as error:
        assert error.message.startswith("x: ")
        assert all(line.isprintable() for line in error.lines())


def test_absurd_nesting_and_numbers_are_refused() -> None:
    head, tail = '{"nodes": [{"op": "f", "name": "", "inputs": [], "subgraphs": [', "]}]"
    tail += ', "arg_nodes": [], "heads": []}'
    inner = '{"nodes": [], "arg_nodes": [], "heads": []}'
    assert reads_or_refuses((head * 10 + inner + tail * 10).encode()) is not None
    for depth in (50, 300, 5000):
        assert reads_or_refuses((head * depth + inner + tail * depth).encode()) is None
    deep = b'{"nodes": ' + b"[" * 100_000
    far = b'{"nodes": [], "arg_nodes": [], "heads": [[' + b"9" * 10_000 + b", 0, 0]]}"
    for text in (deep, far, b'{"a":' * 50_000):
        assert reads_or_refuses(text) is None


# ------------------------------------------------------------------ what is accepted and what not


def changed(*path: Any, to: Any = ..., base: str = "resnet") -> dict[str, Any]:
    raw = copy.deepcopy(SMALL[base])
    parent: Any = raw
    for key in path[:-1]:
        parent = parent[key]
    if to is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = to
    return raw


RELU = {"op": "Activation", "name": "r", "attrs": {"act_type": "relu"}}
VARIABLE = {"op": "null", "name": "a", "inputs": []}
FORWARD = {
    "nodes": [{**RELU, "inputs": [[1, 0, 0]]}, VARIABLE],
    "arg_nodes": [1],
    "heads": [[0, 0, 0]],
}
UNREACHED_CYCLE = {
    "nodes": [VARIABLE, {**RELU, "inputs": [[2, 0]]}, {**RELU, "inputs": [[1, 0]]}],
    "arg_nodes": [0],
    "heads": [[0, 0]],
}
TEXT = json.dumps(SMALL["resnet"])
ACCEPTED: dict[str, str] = {
    name: raw if isinstance(raw, str) else json.dumps(raw)
    for name, raw in {
        "as it is": SMALL["resnet"],
        "lstm": SMALL["lstm"],
        "legacy": LEGACY,
        "no node_row_ptr": changed("node_row_ptr"),
        "wrong node_row_ptr": changed("node_row_ptr", to=[5, -1]),
        "no attrs": changed("attrs"),
        "newer version": changed("attrs", "mxnet_version", to=["int", 20000]),
        "other attrs": changed("attrs", "x", to=["list_str", ["a"]]),
        "no arguments listed": changed("arg_nodes", to=[]),
        "no heads": changed("heads", to=[]),
        "nothing": {"nodes": [], "arg_nodes": [], "heads": []},
        "same head twice": changed("heads", to=[[8, 0, 0], [8, 0, 0]]),
        "a variable as output": changed("heads", to=[[0, 0, 0]]),
        "two-element head": changed("heads", to=[[8, 0]]),
        "negative version": changed("heads", to=[[8, 0, -1]]),
        "name empty": changed("nodes", 3, "name", to=""),
        "name twice": changed("nodes", 3, "name", to="data"),
        "attr": changed("nodes", 9, "attr", to={"act_type": "leaky"}),
        "forward reference": FORWARD,
        "cycle that nothing needs": UNREACHED_CYCLE,
        "control dependency": changed("nodes", 8, "control_deps", to=[0]),
        "backward source": changed("nodes", 8, "backward_source_id", to=-1),
        "no subgraphs": changed("nodes", 8, "subgraphs", to=[]),
        "words after the end": TEXT + " and more",
        "blanks before": "\n\t \f" + TEXT,
        "UTF-8": TEXT.replace('"convolution0"', '"faltung_ä_日本"'),
        "raw control characters": TEXT.replace('"convolution0"', '"a\tb\x01c\x1f"'),
        "escapes": TEXT.replace('"convolution0"', r'"a\"b\\c\nd\te\\u00e9"'),
        "key twice": TEXT.replace('"op": "null"', '"op": "Nope", "op": "null"', 1),
    }.items()
}
REJECTED: dict[str, tuple[Any, str]] = {
    "no nodes": (changed("nodes"), "has no 'nodes'"),
    "no arg_nodes": (changed("arg_nodes"), "has no 'arg_nodes'"),
    "no heads": (changed("heads"), "has no 'heads'"),
    "no op": (changed("nodes", 3, "op"), r"nodes\[3\]: has no 'op'"),
    "no name": (changed("nodes", 3, "name"), r"nodes\[3\]: has no 'name'"),
    "no inputs": (changed("nodes", 0, "inputs"), r"nodes\[0\]: has no 'inputs'"),
    "node number": (changed("nodes", 3, to=7), r"nodes\[3\]: is 7, not an object"),
    "nodes null": (changed("nodes", to=None), "nodes: is null, not a list"),
    "far input": (
        changed("nodes", 8, "inputs", 0, to=[99, 0, 0]),
        r"nodes\[8\]\.inputs\[0\]: refers to node 99, but there are 28",
    ),
    "negative input": (changed("nodes", 8, "inputs", 0, to=[-1, 0, 0]), "refers to node -1"),
    "float input": (changed("nodes", 8, "inputs", 0, to=[3.0, 0, 0]), "3.0 is not a node"),
    "true input": (changed("nodes", 8, "inputs", 0, to=[True, 0, 0]), "true is not a node"),
    "text input": (changed("nodes", 8, "inputs", 0, to=["3", 0, 0]), "'3' is not a node"),
    "short input": (changed("nodes", 8, "inputs", 0, to=[3]), r"is \[3\], not \[node, output"),
    "long input": (changed("nodes", 8, "inputs", 0, to=[3, 0, 0, 0]), r"not \[node, output"),
    "far head": (changed("heads", to=[[28, 0, 0]]), r"heads\[0\]: refers to node 28"),
    "flat heads": (changed("heads", to=[27]), r"heads\[0\]: is 27"),
    "operator as argument": (changed("arg_nodes", to=[3]), r"arg_nodes\[0\]: names node 3, an op"),
    "far argument": (changed("arg_nodes", to=[28]), r"arg_nodes\[0\]: refers to node 28"),
    "unknown key": (changed("foo", to=1), "'foo': MXNet cannot load"),
    "unknown node key": (changed("nodes", 3, "foo", to=1), r"nodes\[3\]\.'foo': MXNet cannot"),
    "number attribute": (
        changed("nodes", 3, "attrs", "num_filter", to=64),
        r"nodes\[3\]\.attrs\['num_filter'\]: is 64, not a string",
    ),
    "attributes null": (changed("nodes", 3, "attrs", to=None), "is null, not an object"),
    "bare version": (changed("attrs", "mxnet_version", to=10901), "not a pair"),
    "version in words": (changed("attrs", "mxnet_version", to=["str", "1"]), "not an int"),
    "unknown type": (changed("attrs", "x", to=["float", 1.5]), "no type 'float'"),
    "far control dependency": (changed("nodes", 8, "control_deps", to=[50]), r"control_deps\[0\]"),
    "bad subgraph": (
        changed("nodes", 8, "subgraphs", to=[{"nodes": [1], "arg_nodes": [], "heads": []}]),
        r"nodes\[8\]\.subgraphs\[0\]\.nodes\[0\]: is 1",
    ),
    "op empty": (changed("nodes", 3, "op", to=""), r"nodes\[3\]\.op: is empty"),
    "NaN": (TEXT.replace("[[0, 0, 0]", "[[NaN, 0, 0]", 1), r"nodes\[3\]\.inputs\[0\]: nan"),
    "Unicode escape": (TEXT.replace("convolution0", "\\u00e9", 1), r"line 1, column \d+: MXNet"),
    "slash escape": (TEXT.replace("convolution0", "a\\/b", 1), "cannot load the escape"),
    "raw line break": (TEXT.replace("convolution0", "a\nb", 1), "invalid control character"),
    "byte order mark": ("\ufeff" + TEXT, "byte order mark"),
    "comma at the end": (TEXT[:-1] + ",}", "is not valid JSON"),
    "a list": ("[1]", "holds"),
}
# MXNet loads these, and then crashes or cannot use them.
REFUSED_ONLY_HERE: dict[str, tuple[Any, str]] = {
    "cut at the end": (TEXT[:-1], "the JSON breaks off"),
    "cycle": (changed("nodes", 3, "inputs", 0, to=[9, 0, 0]), "depends on itself"),
    "self": (changed("nodes", 8, "inputs", 0, to=[8, 0, 0]), "depends on itself"),
    "negative output": (changed("nodes", 8, "inputs", 0, to=[3, -1, 0]), "-1 is not an output"),
    "second output of a variable": (
        changed("nodes", 3, "inputs", 0, to=[0, 1, 0]),
        r"nodes\[3\]\.inputs\[0\]: wants output 1 of node 0, a variable",
    ),
    "ä in Latin-1": (TEXT.replace("convolution0", "ä").encode("latin-1"), r"byte \d+ \(0xe4\)"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_all_that_mxnet_loads_is_read(case: str) -> None:
    assert reads_or_refuses(ACCEPTED[case].encode()) is not None


@pytest.mark.parametrize("case", [*REJECTED, *REFUSED_ONLY_HERE])
def test_the_place_of_the_fault_is_named(case: str) -> None:
    raw, words = {**REJECTED, **REFUSED_ONLY_HERE}[case]
    text = raw if isinstance(raw, (str, bytes)) else json.dumps(raw)
    with pytest.raises(BadInput, match=rf"^x\.json: .*{words}"):
        SymbolFile.from_bytes(text if isinstance(text, bytes) else text.encode(), "x.json")


def test_attributes_are_what_mxnet_sees() -> None:
    node = {
        "op": "Activation",
        "name": "r",
        "attrs": {"act_type": "relu", "__a__": "1"},
        "attr": {"act_type": "tanh"},
        "param": {"act_type": "sigmoid", "__b__": "2"},
        "inputs": [[0, 0]],
    }
    symbol = parsed({"nodes": [VARIABLE, node], "arg_nodes": [0], "heads": [[1, 0]]})
    assert symbol.nodes[1].attrs == {"act_type": "tanh", "__b__": "2"}


def test_the_order_is_depth_first_from_the_outputs() -> None:
    assert parsed(FORWARD).execution_order() == [1, 0]
    assert parsed(UNREACHED_CYCLE).execution_order() == [0]
    for name in ("resnet", "densenet", "lstm"):
        symbol = parsed({**SMALL[name]})
        assert symbol.execution_order() == sorted(symbol.execution_order())


# ------------------------------------------------------------------ marks and plans


def mark_sets(name: str) -> st.SearchStrategy[set[int]]:
    return st.sets(st.integers(0, len(SMALL[name]["nodes"]) - 1))


@FUZZ
@given(data=st.data())
def test_marks_go_on_exactly_there_and_come_off_again(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(ALL_SMALL))
    before = copy.deepcopy(SMALL[name])
    symbol = parsed(before)
    mirrored = data.draw(mark_sets(name))
    plan = record(symbol)
    planned = SymbolFile.from_bytes(symbol.with_marks(mirrored, plan), "planned.json")
    assert symbol.raw == SMALL[name]
    assert {p for p, (key, _) in planned.existing_marks().items() if key == MARK_KEY} == mirrored
    assert set(planned.existing_marks().values()) <= {(MARK_KEY, "True")}
    assert planned.plan() == plan
    for old, new in zip(symbol.nodes, planned.nodes, strict=True):
        assert (old.op, old.name, old.inputs) == (new.op, new.name, new.inputs)
        kept = {k: v for k, v in old.attrs.items() if "force_mirroring" not in k}
        assert kept.items() <= new.attrs.items()
        assert all(k.startswith(("__memcli", MARK_KEY)) for k in set(new.attrs) - set(kept))
    stripped = planned.stripped()
    assert stripped.raw == symbol.raw
    assert list(stripped.raw) == list(symbol.raw)
    assert stripped.plan() is None
    # Planned again from the planned file, it is the same as planned from the original.
    others = data.draw(mark_sets(name))
    assert planned.with_marks(others, plan) == symbol.with_marks(others, plan)
    assert planned.with_marks(others, None) == symbol.with_marks(others, None)


@FUZZ
@given(data=st.data())
def test_attributes_in_place_of_others_come_off_again(data: st.DataObject) -> None:
    content = copy.deepcopy(SMALL[data.draw(st.sampled_from(ALL_SMALL))])
    places = st.sets(st.integers(0, len(content["nodes"]) - 1))
    for p in data.draw(places):
        node = content["nodes"][p]
        table = next((t for t in ("attrs", "attr", "param") if t in node), "attrs")
        node.setdefault(table, {})["__shape__"] = "(0,)"
    symbol = parsed(content)
    given = {p: {"__shape__": "(7,)"} for p in data.draw(places)}
    text = symbol.with_marks((), record(symbol), replaced=given)
    planned = SymbolFile.from_bytes(text, "planned.json")
    assert all(planned.nodes[p].attrs["__shape__"] == "(7,)" for p in given)
    others = set(range(len(symbol.nodes))) - set(given)
    shapes = [symbol.nodes[p].attrs.get("__shape__") for p in others]
    assert [planned.nodes[p].attrs.get("__shape__") for p in others] == shapes
    assert planned.stripped().raw == symbol.raw


def test_a_file_without_a_plan_is_not_touched() -> None:
    symbol = parsed(SMALL["resnet"])
    assert symbol.stripped() is symbol
    assert symbol.plan() is None
    assert symbol.existing_marks() == {8: (MARK_KEY, "True"), 19: (MARK_KEY, "False")}
    assert parsed(LEGACY).existing_marks() == {3: ("force_mirroring", "True")}


def test_only_positions_of_the_file_can_be_marked() -> None:
    with pytest.raises(ValueError, match="positions"):
        parsed(SMALL["resnet"]).with_marks({28}, None)


def test_the_plan_goes_where_mxnet_keeps_it() -> None:
    unused = {"op": "null", "name": "unused", "inputs": []}
    raw = {
        "nodes": [unused, VARIABLE, {**RELU, "inputs": [[1, 0]]}],
        "arg_nodes": [0, 1],
        "heads": [[2, 0]],
    }
    symbol = parsed(raw)
    planned = parsed(json.loads(symbol.with_marks(set(), record(symbol))))
    assert PLAN_KEY in planned.nodes[1].attrs
    source = {"op": "_zeros", "name": "z", "attrs": {"shape": "(1,)"}, "inputs": []}
    symbol = parsed({"nodes": [source], "arg_nodes": [], "heads": [[0, 0]]})
    assert parsed(json.loads(symbol.with_marks(set(), record(symbol)))).plan() is not None
    empty = parsed({"nodes": [], "arg_nodes": [], "heads": []})
    with pytest.raises(BadInput, match="no nodes"):
        empty.with_marks(set(), record(symbol))


@settings(max_examples=60)
@given(
    st.text(),
    st.dictionaries(st.just("NNVM_EXEC_MATCH_RANGE"), st.integers(1, 99).map(str)),
    st.dictionaries(st.text(), st.integers(0, 99)),
)
def test_a_record_survives_text(
    name: str, variables: dict[str, str], sizes: dict[str, int]
) -> None:
    symbol = parsed(SMALL["resnet"])
    plan = record(symbol, original_name=name, environment=variables, memory=sizes)
    assert PlanRecord.from_text(plan.to_text()) == plan
    assert plan.to_text().isascii()


@FUZZ
@given(data=st.data())
def test_a_damaged_record_is_refused(data: st.DataObject) -> None:
    symbol = parsed(SMALL["resnet"])
    values = json.loads(record(symbol).to_text())
    key = data.draw(st.sampled_from(sorted(values)))
    if data.draw(st.booleans()):
        del values[key]
    else:
        values[key] = data.draw(VALUES)
    planned = json.loads(symbol.with_marks(set(), None))
    planned["nodes"][0]["attrs"] = {PLAN_KEY: json.dumps(values)}
    try:
        plan = parsed(planned).plan()
    except BadInput as error:
        assert error.message.startswith(f"x.json: nodes[0]: {PLAN_KEY}: ")
    else:
        assert plan is not None
        assert PlanRecord.from_text(plan.to_text()) == plan


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 2}', "{" * 9999, "1"])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^plan record: "):
        PlanRecord.from_text(text)


# ------------------------------------------------------------------ telling files apart


ONNX = b"\x08\x08\x12\x07pytorch" + b"\x3a\x05\x0a\x03abc" + b"\x42\x04\x0a\x00\x10\x11"
LOOKS: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b"\0" * 5000, "zero bytes"),
    (b"  \n\n ", "blanks"),
    (b"\x12\x01\0\0\0\0\0\0" + b"\0" * 50, "parameter file"),
    (b"\x80\x04\x95\x10\0\0\0", "pickle"),
    (b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pkl", "PyTorch"),
    (b"PK\x03\x04" + b"\0" * 26 + b"a.txt", "zip archive"),
    (b"<!DOCTYPE html><html>", "web page"),
    (b"\n<html lang='en'>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    (b"/annex/objects/SHA256E-s1", "git-annex"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY\x01\0", "numpy"),
    (b'\x40\0\0\0\0\0\0\0{"a":{}}', "safetensors"),
    (b"\xff\xfe{\0", "UTF-16"),
    (b"[1, 2]", "JSON list"),
    (b"ir_version: 8\n", "text form"),
    (b"name: 'a recipe'\nsteps {", "is text"),
    (bytes(range(128, 256)) * 3, "binary data"),
    (b"\x08\x01\x12\x02ab", "binary data"),
]


@pytest.mark.parametrize(("data", "words"), LOOKS)
def test_other_files_are_called_by_their_name(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=rf"^x: .*{words}"):
        detect_format(data, "x")


def test_models_are_told_by_content() -> None:
    assert detect_format(b' \r\n{"nodes": []}') == "mxnet-symbol"
    assert detect_format(ONNX) == "onnx"
    assert detect_format(ONNX[:14]) == "onnx"  # cut within the graph
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph, producer_name="x")
    assert detect_format(model.SerializeToString()) == "onnx"


def test_gzip_is_taken_off_and_the_digest_is_of_the_file(tmp_path: Path) -> None:
    text = json.dumps(SMALL["lstm"]).encode()
    path = tmp_path / "x.json.whatever"
    path.write_bytes(gzip.compress(text))
    data, digest = read_model_bytes(path)
    assert data == text
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    symbol = SymbolFile.read(path)
    assert (symbol.sha256, symbol.raw) == (digest, SMALL["lstm"])
    assert SymbolFile.from_bytes(path.read_bytes(), path) == symbol


@FUZZ
@given(data=st.data())
def test_damaged_gzip_is_refused(data: st.DataObject) -> None:
    packed = bytearray(gzip.compress(json.dumps(SMALL["legacy"]).encode()))
    if data.draw(st.booleans()):
        packed = packed[: data.draw(st.integers(2, len(packed) - 1))]
    else:
        packed[data.draw(st.integers(2, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    reads_or_refuses(bytes(packed))


def test_unreadable_paths_are_refused_in_words(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"\0" * (80 << 20), 9))
    twice = tmp_path / "twice.gz"
    twice.write_bytes(gzip.compress(gzip.compress(b"{}")))
    for path, words in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path, "is a folder"),
        (bomb / "x", "cannot be read"),
        (Path("/dev/zero"), "read to its end"),
        (Path("a\0b"), "cannot be read"),
        (bomb, "unpacks to over"),
        (twice, "gzip within gzip"),
    ):
        with pytest.raises(BadInput, match=words):
            read_model_bytes(path)


# ------------------------------------------------------------------ the newest plan


def test_the_newest_plan_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    assert newest_plan(here) is None
    for name in ("a.json", "b.json"):
        (here / name).write_text("{}")
        remember_plan(name)
    assert newest_plan(here) == newest_plan() == here / "b.json"
    assert newest_plan(there) is None
    (here / "b.json").unlink()
    assert newest_plan(here) == here / "a.json"
    monkeypatch.chdir(there)
    remember_plan(here / "a.json")
    assert newest_plan(there) == here / "a.json"
    (here / "a.json").unlink()
    assert newest_plan(here) is None


@pytest.mark.parametrize(
    "state", ["", "[]", "{", '{"folders": 3}', '{"folders": {"/": 1}}', "\xff"]
)
def test_a_damaged_memory_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "memcli").mkdir()
    (tmp_path / "memcli" / "plans.json").write_bytes(state.encode("latin-1"))
    assert newest_plan(tmp_path) is None
    remember_plan(tmp_path / "memcli" / "plans.json")
    assert newest_plan(tmp_path) is not None


def test_without_a_state_folder_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember_plan("x")
    assert newest_plan(tmp_path) is None


# ------------------------------------------------------------------ real files and the real MXNet


def test_every_corpus_file_that_loads_is_read() -> None:
    if not CORPUS.is_dir():
        pytest.skip("the corpus of real graphs (../shared/corpus) is not here")
    with open(CORPUS / "index.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) >= 288
    for row in rows:
        # Files of operators that MXNet has no more are whole graphs, too.
        symbol = SymbolFile.read(CORPUS / row["path"])
        counted = (symbol.node_count, symbol.operator_count)
        assert counted == (int(row["n_nodes"]), int(row["n_ops"])), row["path"]


MXNET_SCRIPT = """
import json, sys
from memcli.engines.mxnet.shim import import_mxnet
mx = import_mxnet()
answers = {}
for name, text in json.load(sys.stdin).items():
    try:
        symbol = mx.sym.load_json(text)
        answers[name] = [symbol.tojson(), symbol.attr_dict()]
    except (mx.MXNetError, UnicodeDecodeError):
        answers[name] = None
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def mxnet_answers() -> dict[str, Any]:
    """{name: [JSON as MXNet saves it, attributes by node name], or None where it does not load}.

    One process for all tests: importing MXNet takes seconds.
    """
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("MXNet is not installed")
    texts: dict[str, str] = {}
    for name, text in ACCEPTED.items():
        texts[f"accepted {name}"] = text
        texts[f"rewritten {name}"] = SymbolFile.from_bytes(text.encode(), "x").to_bytes().decode()
    for name, (raw, _) in REJECTED.items():
        texts[f"rejected {name}"] = raw if isinstance(raw, str) else json.dumps(raw)
    for name, raw in SMALL.items():
        symbol = parsed(raw)
        texts[f"original {name}"] = symbol.to_bytes().decode()
        texts[f"planned {name}"] = symbol.with_marks(third(symbol), odd_record(symbol)).decode()
    done = subprocess.run(
        [sys.executable, "-c", MXNET_SCRIPT],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def third(symbol: SymbolFile) -> set[int]:
    return {p for p, node in enumerate(symbol.nodes) if not node.is_variable and p % 3 != 1}


def odd_record(symbol: SymbolFile) -> PlanRecord:
    return record(symbol, strategy='"é\\n\n')


def test_mxnet_agrees_about_what_loads(mxnet_answers: dict[str, Any]) -> None:
    loaded = {name for name, answer in mxnet_answers.items() if answer is not None}
    assert loaded == {name for name in mxnet_answers if not name.startswith("rejected")}


def test_what_is_written_is_the_same_graph_to_mxnet(mxnet_answers: dict[str, Any]) -> None:
    for name in ACCEPTED:
        assert mxnet_answers[f"rewritten {name}"] == mxnet_answers[f"accepted {name}"]


@pytest.mark.parametrize("name", ALL_SMALL)
def test_mxnet_loads_what_is_planned_and_keeps_the_plan(
    mxnet_answers: dict[str, Any], name: str
) -> None:
    symbol = parsed(SMALL[name])
    saved, attributes = mxnet_answers[f"planned {name}"]
    marked = {n for n, a in attributes.items() if a.get(MARK_KEY) == "True"}
    reached = third(symbol) & set(symbol.execution_order())
    assert marked == {symbol.nodes[p].name for p in reached}
    again = SymbolFile.from_bytes(saved.encode(), "again.json")
    assert again.plan() == odd_record(symbol)
    plain = SymbolFile.from_bytes(mxnet_answers[f"original {name}"][0].encode(), "again.json")
    assert again.stripped().raw == plain.raw
