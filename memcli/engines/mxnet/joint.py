"""Joins the two ways in which MXNet shows its joint training graph.

The log of the memory plan tells entries, shapes and bytes; ``debug_str`` tells names, attributes
and control dependencies. Both number the nodes in depth-first order. Pure text in, arrays out:
nothing here needs MXNet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from memcli.errors import EngineFailed

_NODE = re.compile(rb"\] ?[^\]]*: node (\d+) (\S+)")
_ITEM = re.compile(rb"\t\t(in|out)put (\d+): (\[[^\]]*\]|\S+) \((\d+) KB\)")
_STORAGE = re.compile(rb"\t\t(?:in|out)put (\d+): (default|row_sparse|csr)\b")
_DTYPE_BYTES = (4, 2, 8, 1)


@dataclass
class PlanLog:
    """The log of a memory plan: nodes in execution order, entries by number."""

    ops: list[str | None]  # None for variables
    inputs: list[list[int]]
    outputs: list[list[int]]
    elements: dict[int, int]  # -1 where the shape is unknown until run time
    kilobytes: dict[int, int]  # rounded down, by the true element size
    shapes: dict[int, list[int]]


def parse_plan_log(log: bytes) -> PlanLog:
    """Nodes, input entries, output entries, elements and KB from a memory plan's log.

    Raises:
        EngineFailed: the log is not one that MXNet 1.9.1 writes.
    """
    ops: list[str | None] = []
    inputs: list[list[int]] = []
    outputs: list[list[int]] = []
    elements: dict[int, int] = {}
    kilobytes: dict[int, int] = {}
    shapes: dict[int, list[int]] = {}
    for line in log.split(b"\n"):
        item = _ITEM.search(line)
        if item:
            entry = int(item[2])
            (inputs if item[1] == b"in" else outputs)[-1].append(entry)
            if entry not in elements:
                size = 1
                body = item[3][1:-1]
                if item[3][:1] != b"[":
                    size, dims = -1, []
                else:
                    dims = [int(d) for d in body.split(b",") if d.strip()]
                    for d in dims:
                        size = -1 if d < 0 or size < 0 else size * d
                elements[entry] = size
                kilobytes[entry] = int(item[4])
                shapes[entry] = dims
            continue
        node = _NODE.search(line)
        if node:
            if int(node[1]) == 0:
                # the log of storage types comes first where it is on; the memory plan is last
                ops, inputs, outputs = [], [], []
            elif int(node[1]) != len(ops):
                raise EngineFailed("MXNet's memory plan log is out of order")
            ops.append(None if node[2] == b"var" else node[2].decode())
            inputs.append([])
            outputs.append([])
    if not ops:
        raise EngineFailed("MXNet wrote no memory plan", "is this MXNet 1.9.1?")
    return PlanLog(ops, inputs, outputs, elements, kilobytes, shapes)


def parse_debug(text: str) -> tuple[list[dict[str, Any]], list[tuple[str, int]], int]:
    """Nodes (name, attrs, control dependencies) in order, the outputs, and the total in MB."""
    nodes: list[dict[str, Any]] = []
    heads: list[tuple[str, int]] = []
    total = -1
    current: dict[str, Any] = {}
    section = ""
    for line in text.split("\n"):
        if line.startswith("\t"):
            body = line[1:]
            if body.startswith("output[") and not nodes:
                name, _, index = body.split("=", 1)[1].rpartition("(")
                heads.append((name, int(index[:-1])))
            elif section == "attrs":
                key, _, value = body.partition("=")
                current["attrs"][key] = value
            elif section == "deps":
                current["deps"].append(body.split("=", 1)[1])
        elif line.startswith("Variable:"):
            nodes.append({"name": line[9:], "op": None, "attrs": {}, "deps": []})
            section = ""
        elif line.startswith("Op:"):
            op, _, name = line[3:].partition(", Name=")
            current = {"name": name, "op": op, "attrs": {}, "deps": []}
            nodes.append(current)
            section = ""
        elif line.startswith("Inputs:"):
            section = "inputs"
        elif line.startswith("Attrs:"):
            section = "attrs"
        elif line.startswith("Control deps:"):
            section = "deps"
        elif line.startswith("Total ") and "MB allocated" in line:
            total = int(line.split()[1])
    return nodes, heads, total


class JointBuilder:
    """Joins the two views of one bind into arrays."""

    def __init__(self, log: PlanLog, debug: list[dict[str, Any]]) -> None:
        if len(log.ops) != len(debug):
            raise EngineFailed(
                f"MXNet's two views of its graph disagree: {len(log.ops)} and {len(debug)} nodes"
            )
        self.log = log
        self.debug = debug
        self.first_entry: list[int] = []
        entry = 0
        for number, op in enumerate(log.ops):
            self.first_entry.append(entry)
            entry += 1 if op is None else len(log.outputs[number])
        self.n_entries = entry
        self.entry_node = [0] * entry
        for number, first in enumerate(self.first_entry):
            last = self.first_entry[number + 1] if number + 1 < len(debug) else entry
            for e in range(first, last):
                self.entry_node[e] = number
        self.by_name: dict[str, list[int]] = {}
        for number, node in enumerate(debug):
            self.by_name.setdefault(node["name"], []).append(number)

    def control_dependencies(self) -> list[list[int]]:
        """Node numbers that each node waits for beside its inputs."""
        # Names made by gradient sums repeat; the sum that a gradient waits for is the left
        # input of the _grad_add that adds it (AggregateGradient in graph_executor.cc).
        added_after: dict[int, list[int]] = {}
        for number, op in enumerate(self.log.ops):
            if op == "_grad_add":
                left, right = self.log.inputs[number]
                added_after.setdefault(self.entry_node[right], []).append(self.entry_node[left])
        result = []
        for number, node in enumerate(self.debug):
            deps: list[int] = []
            # A node whose several outputs are all summed up waits for one sum of each chain;
            # the one that runs first was visited first.
            sums = sorted(added_after.get(number, []))
            for name in node["deps"]:
                candidates = self.by_name.get(name, [])
                if len(candidates) > 1:
                    mine = [c for c in sums if c in candidates]
                    candidates = mine or [c for c in candidates if c < number][-1:] or candidates
                if not candidates:
                    raise EngineFailed(f"MXNet's graph names an unknown node '{name}'")
                deps.append(candidates[0])
                if candidates[0] in sums:
                    sums.remove(candidates[0])
            result.append(deps)
        return result

    def output_entries(self, heads: list[tuple[str, int]], sizes: list[int | None]) -> list[int]:
        """Entry of each graph output; ``sizes`` are the elements each must have, None unknown."""
        taken: set[int] = set()
        result = []
        for (name, index), size in zip(heads, sizes, strict=True):
            found = None
            entries = [self.first_entry[node] + index for node in self.by_name.get(name, [])]
            # nodes may share a name, and a graph may give out one output twice
            for entry in [e for e in entries if e not in taken] or entries:
                have = self.log.elements.get(entry)
                if size is not None and have is not None and have >= 0 and have != size:
                    continue
                found = entry
                break
            if found is None:
                raise EngineFailed(f"MXNet's graph has no output '{name}'({index})")
            taken.add(found)
            result.append(found)
        return result

    def owners(self, n_forward: int, names: dict[str, int]) -> list[int]:
        """For each backward node the forward node whose gradient it is, -1 where none is."""
        result = [-1] * len(self.debug)
        for number in range(n_forward, len(self.debug)):
            node = self.debug[number]
            if node["op"] is None:
                continue
            match = re.match(r"(n\d+|[^_]*?)(?:_mirror)?_", node["name"])
            owner = names.get(match[1], -1) if match else -1
            if owner < 0:
                deps = [d for d in self.deps[number] if d < n_forward]
                if len(deps) == 1 and not node["name"].startswith("_head_grad_"):
                    owner = deps[0]
            result[number] = owner
        return result

    deps: list[list[int]]

    def dtype_bytes(self, known: dict[int, int], owner: list[int], n_forward: int) -> list[int]:
        """Bytes of one element of each entry, from MXNet's own KB where they tell."""
        elements, kilobytes = self.log.elements, self.log.kilobytes
        default = 4
        result = [0] * self.n_entries
        for number in range(len(self.debug)):
            first = self.first_entry[number]
            last = self.first_entry[number + 1] if number + 1 < len(self.debug) else self.n_entries
            sources = [result[e] for e in self.log.inputs[number] if result[e]]
            inherited = sources[0] if sources else default
            like: list[int] = []
            if owner[number] >= 0:
                like = self.log.inputs[owner[number]]
            for index, entry in enumerate(range(first, last)):
                if entry in known:
                    result[entry] = known[entry]
                    continue
                size = elements.get(entry, 0)
                guesses = [inherited]
                if index < len(like) and elements.get(like[index]) == size:
                    guesses.insert(0, result[like[index]] or inherited)
                guesses += _DTYPE_BYTES
                fits = [
                    g for g in guesses if size < 0 or size * g // 1024 == kilobytes.get(entry, 0)
                ]
                result[entry] = (fits or guesses)[0]
        return result


def parse_storage_log(log: bytes) -> list[int]:
    """Entries that MXNet does not store densely: allocated at run time, outside the pool."""
    found = set()
    for line in log.split(b"\n"):
        item = _STORAGE.search(line)
        if item and item[2] != b"default":
            found.add(int(item[1]))
    return sorted(found)
