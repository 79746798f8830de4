"""Asks MXNet for the joint training graph of a symbol: one bind, in a process of its own.

Run through :func:`memcli.engines.process.run_job`. What comes back (``joint.npz`` in the work
folder, and a small JSON result) is described at :func:`memcli.graph.training.load`.

MXNet shows its graph in two ways that number the nodes alike (depth-first order): the log of the
memory plan (entries, shapes, bytes) and ``debug_str`` (names, attributes, control dependencies).
Joined, they are the whole graph. Nothing is computed and no array is ever allocated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.capture import capture_stderr
from memcli.engines.mxnet_shapes import resolve_shapes
from memcli.engines.process import worker_main
from memcli.errors import BadInput, EngineFailed

UNSUPPORTED = {
    "_cond": "MXNet 1.9.1 cannot bind contrib.cond in a saved symbol",
    "_while_loop": "MXNet 1.9.1 cannot bind contrib.while_loop in a saved symbol",
}
_QUANTIZED = re.compile(r"_contrib_(quantize|quantized|dequantize|requantize)|_sg_mkldnn_")
_NODE = re.compile(rb"\] ?[^\]]*: node (\d+) (\S+)")
_ITEM = re.compile(rb"\t\t(in|out)put (\d+): (\[[^\]]*\]|\S+) \((\d+) KB\)")
_STORAGE = re.compile(rb"\t\t(?:in|out)put (\d+): (default|row_sparse|csr)\b")
_DTYPE_BYTES = (4, 2, 8, 1)


def list_operators(mx: Any) -> set[str]:
    """Every operator name, aliases included, that the loaded MXNet knows."""
    import ctypes

    count = ctypes.c_uint()
    names = ctypes.POINTER(ctypes.c_char_p)()
    mx.base.check_call(mx.base._LIB.MXListAllOpNames(ctypes.byref(count), ctypes.byref(names)))
    known = {names[i].decode() for i in range(count.value)}
    return known | {"null"}


def check_operators(nodes: list[dict[str, Any]], names: list[str], known: set[str]) -> None:
    """Refuse operators that MXNet lacks or cannot train; names all of them, not the first alone.

    Raises:
        BadInput: with the operators and a node of each.
    """
    missing: dict[str, str] = {}
    quantized: dict[str, str] = {}
    for node, name in zip(nodes, names, strict=False):
        op = node["op"]
        if op in UNSUPPORTED:
            raise BadInput(f"control flow: node '{name}' is a {op}: {UNSUPPORTED[op]}")
        if _QUANTIZED.match(op):
            quantized.setdefault(op, name)
        elif op not in known:
            missing.setdefault(op, name)
    for found, message, hint in (
        (
            missing,
            "MXNet 1.9.1 has no operator",
            "the graph was saved by another MXNet or with custom operators; "
            "export it again with the operators of 1.9.1",
        ),
        (
            quantized,
            "the graph is quantized to integers and cannot be trained: operator",
            "plan the float graph that it was quantized from",
        ),
    ):
        if found:
            shown = ", ".join(f"{op} (node '{at}')" for op, at in list(found.items())[:8])
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise BadInput(f"{message} {shown}{more}", hint)


def clean_message(error: Exception) -> str:
    """The one line of an MXNet error that says what is wrong, without the stack."""
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    useful = [
        line
        for line in lines
        if not line.startswith(("Stack trace", "  [bt]", "Traceback", "  File"))
    ]
    line = next((x for x in useful if "Error in operator" in x or "Check failed" in x), None)
    line = line or (useful[0] if useful else text)
    line = re.sub(r"\[\d\d:\d\d:\d\d\] ", "", line)
    line = re.sub(r"(\.\./|3rdparty/)?[\w./-]+\.(cc|h|cu):\d+: ", "", line)
    return line.replace("MXNetError: ", "").strip()[:300]


def lazy_array(mx: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """An NDArray whose memory is never allocated unless something touches it."""
    module = mx.ndarray.ndarray
    return module.NDArray(module._new_alloc_handle(shape, mx.cpu(), True, np.dtype(dtype)))


def bind_without_memory(
    mx: Any, symbol: Any, shapes: dict[str, Any], types: dict[str, str], aux: dict[str, Any]
) -> Any:
    """Bind for training with gradients for every argument, allocating nothing."""
    arguments = [lazy_array(mx, shapes[a], types[a]) for a in symbol.list_arguments()]
    gradients = [lazy_array(mx, shapes[a], types[a]) for a in symbol.list_arguments()]
    states = [lazy_array(mx, s, t) for s, t in aux.values()]
    return symbol.bind(
        mx.cpu(), args=arguments, args_grad=gradients, grad_req="write", aux_states=states
    )


def parse_plan_log(log: bytes) -> dict[str, list[Any]]:
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
    return {
        "ops": ops,
        "inputs": inputs,
        "outputs": outputs,
        "elements": elements,  # type: ignore[dict-item]
        "kilobytes": kilobytes,  # type: ignore[dict-item]
        "shapes": shapes,  # type: ignore[dict-item]
    }


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

    def __init__(self, log: dict[str, Any], debug: list[dict[str, Any]]) -> None:
        if len(log["ops"]) != len(debug):
            raise EngineFailed(
                f"MXNet's two views of its graph disagree: {len(log['ops'])} and {len(debug)} nodes"
            )
        self.log = log
        self.debug = debug
        self.first_entry: list[int] = []
        entry = 0
        for number, op in enumerate(log["ops"]):
            self.first_entry.append(entry)
            entry += 1 if op is None else len(log["outputs"][number])
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
        for number, op in enumerate(self.log["ops"]):
            if op == "_grad_add":
                left, right = self.log["inputs"][number]
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
            for node in self.by_name.get(name, []):
                entry = self.first_entry[node] + index
                if entry in taken:
                    continue
                have = self.log["elements"].get(entry)
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
        elements, kilobytes = self.log["elements"], self.log["kilobytes"]
        default = 4
        result = [0] * self.n_entries
        for number in range(len(self.debug)):
            first = self.first_entry[number]
            last = self.first_entry[number + 1] if number + 1 < len(self.debug) else self.n_entries
            sources = [result[e] for e in self.log["inputs"][number] if result[e]]
            inherited = sources[0] if sources else default
            like: list[int] = []
            if owner[number] >= 0:
                like = self.log["inputs"][owner[number]]
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


def handle(job: dict[str, Any], workdir: Path, progress: Callable[..., None]) -> dict[str, Any]:
    """Resolve shapes, bind, and write the joint graph.

    ``job``: ``symbol`` (path of a prepared symbol JSON), ``names`` (original node names by
    position), ``shapes``, ``unnamed_shape``, ``batch``, ``dtype``, ``bind`` (False: shapes only).
    """
    os.environ["MXNET_MEM_PLAN_VERBOSE_LOGGING"] = "1"
    os.environ.update(job.get("environment", {}))

    from memcli.engines.mxnet_shim import import_mxnet

    text = Path(job["symbol"]).read_text()
    sparse = '"sparse_grad"' in text or "__storage_type__" in text or "cast_storage" in text
    if sparse:
        os.environ["MXNET_INFER_STORAGE_TYPE_VERBOSE_LOGGING"] = "1"
    progress("loading MXNet")
    mx = import_mxnet()
    names: list[str] = job["names"]
    raw = json.loads(text)
    check_operators(raw["nodes"], names, list_operators(mx))
    progress("reading the symbol")
    try:
        with capture_stderr():
            symbol = mx.sym.load_json(text)
    except (mx.base.MXNetError, ValueError) as error:
        raise BadInput(
            f"MXNet does not load the symbol: {_rename(clean_message(error), names)}"
        ) from None
    progress("inferring shapes")
    resolved = resolve_shapes(
        mx, symbol, raw, names, job, lambda e: _rename(clean_message(e), names)
    )
    result: dict[str, Any] = {
        "inputs": resolved.inputs,
        "assumed": resolved.assumed,
        "arguments": resolved.arguments,
        "auxiliary": resolved.auxiliary,
        "parameter_bytes": resolved.parameter_bytes,
        "state_bytes": resolved.state_bytes,
        "outputs": resolved.outputs,
    }
    if not job.get("bind", True):
        return result
    progress("binding for training")
    try:
        with capture_stderr() as captured:
            if sparse:
                executor = symbol.simple_bind(
                    mx.cpu(), grad_req="write", type_dict=resolved.types, **resolved.known
                )
            else:
                executor = bind_without_memory(
                    mx, symbol, resolved.shapes, resolved.types, resolved.aux
                )
            debug_text = executor.debug_str()
    except (mx.base.MXNetError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"MXNet cannot bind the graph for training: {_rename(clean_message(error), names)}"
        ) from None
    progress("reading MXNet's graph")
    log = parse_plan_log(captured.data())
    nodes, heads, total_mb = parse_debug(debug_text)
    joint = JointBuilder(log, nodes)
    joint.deps = joint.control_dependencies()

    n_outputs = len(symbol.list_outputs())
    argument_sizes = [
        int(np.prod(resolved.shapes[a], dtype=np.int64)) for a in symbol.list_arguments()
    ]
    outputs = joint.output_entries(heads, [None] * n_outputs + argument_sizes)
    n_forward = max(joint.entry_node[e] for e in outputs[:n_outputs]) + 1
    position_of = {f"n{i}": i for i in range(len(raw["nodes"]))}
    forward_numbers = {nodes[i]["name"]: i for i in range(n_forward)}
    owner = joint.owners(n_forward, forward_numbers)
    known_types: dict[int, int] = {}
    for name, kind in resolved.entry_types.items():
        node, _, index = name.partition(":")
        number = forward_numbers.get(node)
        if number is not None:
            known_types[joint.first_entry[number] + int(index)] = np.dtype(kind).itemsize
    dtype_bytes = joint.dtype_bytes(known_types, owner, n_forward)

    dynamic = parse_storage_log(captured.data()) if sparse else []
    kinds: dict[str, int] = {}
    node_kind = []
    for number, node in enumerate(nodes):
        if node["op"] is None:
            node_kind.append(-1)
            continue
        attrs = {k: v for k, v in node["attrs"].items() if not k.startswith("__")}
        n_out = len(log["outputs"][number])
        key = json.dumps([node["op"], attrs, len(log["inputs"][number]), n_out], sort_keys=True)
        node_kind.append(kinds.setdefault(key, len(kinds)))

    def flat(rows: list[list[int]]) -> tuple[Any, Any]:
        pointer = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(r) for r in rows], out=pointer[1:])
        return pointer, np.array([x for r in rows for x in r], np.int64)

    in_ptr, in_entry = flat(log["inputs"])
    dep_ptr, dep_node = flat(joint.deps)
    shape_ptr, shape_dim = flat([log["shapes"].get(e, []) for e in range(joint.n_entries)])
    elements = np.array([log["elements"].get(e, 0) for e in range(joint.n_entries)], np.int64)
    # variables that nobody reads in the log (an input of a dead branch) still have a shape
    np.savez(
        workdir / "joint.npz",
        node_kind=np.array(node_kind, np.int64),
        first_entry=np.array([*joint.first_entry, joint.n_entries], np.int64),
        elements=elements,
        shape_ptr=shape_ptr,
        shape_dim=shape_dim,
        dtype_bytes=np.array(dtype_bytes, np.int64),
        in_ptr=in_ptr,
        in_entry=in_entry,
        dep_ptr=dep_ptr,
        dep_node=dep_node,
        owner=np.array(owner, np.int64),
        position=np.array(
            [
                position_of.get(nodes[i]["name"], -1) if i < n_forward else -1
                for i in range(len(nodes))
            ],
            np.int64,
        ),
        outputs=np.array(outputs, np.int64),
        dynamic=np.array(dynamic, np.int64),
        internals=np.array(resolved.internals, np.int64).reshape(-1, 3),
    )
    result.update(
        n_forward=n_forward,
        n_forward_outputs=n_outputs,
        kinds=[json.loads(k) for k in kinds],
        node_names=[n["name"] for n in nodes],
        total_mb=total_mb,
        attributes=resolved.attributes,
    )
    return result


def parse_storage_log(log: bytes) -> list[int]:
    """Entries that MXNet does not store densely: allocated at run time, outside the pool."""
    found = set()
    for line in log.split(b"\n"):
        item = _STORAGE.search(line)
        if item and item[2] != b"default":
            found.add(int(item[1]))
    return sorted(found)


def _rename(message: str, names: list[str]) -> str:
    """Put the graph's own node names back into an engine's message."""

    def original(match: re.Match[str]) -> str:
        position = int(match[1])
        return names[position] if position < len(names) else match[0]

    return re.sub(r"\bn(\d+)\b", original, message)


if __name__ == "__main__":
    worker_main(handle)
