"""Asks MXNet for the joint training graph of a symbol: one bind, in a process of its own.

Run through :func:`memcli.engines.processes.jobs.run_job`. What comes back (``joint.npz`` in the
work folder, and a small JSON result) is described at :func:`memcli.graph.training.load`.

MXNet shows its graph in two ways that number the nodes alike (depth-first order): the log of the
memory plan (entries, shapes, bytes) and ``debug_str`` (names, attributes, control dependencies).
Joined, they are the whole graph. Nothing is computed and no array is ever allocated.
"""

from __future__ import annotations

import fnmatch
import gc
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.mxnet.capture import capture_stderr
from memcli.engines.mxnet.joint import (
    JointBuilder,
    parse_debug,
    parse_plan_log,
    parse_storage_log,
)
from memcli.engines.mxnet.shapes import ResolvedShapes, resolve_shapes
from memcli.engines.processes.worker import describe_error, worker_main
from memcli.engines.user_code import refuse_unregistered, run_files
from memcli.errors import BadInput, EngineFailed, MemcliError

# Executors that nobody needs any more: freeing a large one takes long, and the process ends soon.
_alive: list[Any] = []

UNSUPPORTED = {
    "_cond": "MXNet 1.9.1 cannot bind contrib.cond in a saved symbol",
    "_while_loop": "MXNet 1.9.1 cannot bind contrib.while_loop in a saved symbol",
}
_REFUSALS = (
    RuntimeError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    AssertionError,
)
_QUANTIZED = re.compile(r"_contrib_(quantize|quantized|dequantize|requantize)|_sg_mkldnn_")


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

    Args:
        nodes: of the file.
        names: of the nodes, by position.
        known: the operators that MXNet has.

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


def check_outputs(symbol: Any, raw: dict[str, Any], names: list[str]) -> None:
    """Refuse what reads an output that its node has not: MXNet looks beyond the ones that it has.

    Args:
        symbol: of ``mxnet``, loaded.
        raw: the symbol file's content.
        names: of the nodes in the file, by position.

    Raises:
        BadInput: with the node and how many outputs it has.
    """
    used: dict[int, int] = {}
    for source, output, *_ in [*(i for n in raw["nodes"] for i in n["inputs"]), *raw["heads"]]:
        if output > used.get(source, 0):
            used[source] = output
    if not used:
        return
    saved = json.loads(symbol.tojson(), strict=False)
    rows = saved["node_row_ptr"]
    counts = {n["name"]: rows[k + 1] - rows[k] for k, n in enumerate(saved["nodes"])}
    for position, output in used.items():
        node = raw["nodes"][position]
        count = counts.get(node["name"], output + 1)  # a node that no output needs is dropped
        if output >= count:
            raise BadInput(
                f"output {output} of node '{names[position]}' is read, a {node['op']} that has "
                f"{count}"
            )


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
    mx: Any, symbol: Any, resolved: ResolvedShapes, requests: dict[str, str]
) -> Any:
    """Bind for training, allocating nothing; ``requests`` as MXNet's ``grad_req``."""
    shapes, types = resolved.shapes, resolved.types
    names = symbol.list_arguments()
    arguments = [lazy_array(mx, shapes[a], types[a]) for a in names]
    gradients = {a: lazy_array(mx, shapes[a], types[a]) for a in names if requests[a] == "write"}
    states = [lazy_array(mx, s, t) for s, t in resolved.aux.values()]
    return symbol.bind(
        mx.cpu(), args=arguments, args_grad=gradients, grad_req=requests, aux_states=states
    )


def bind(
    mx: Any, symbol: Any, resolved: ResolvedShapes, requests: dict[str, str], *, simple: bool
) -> tuple[Any, bytes]:
    """An executor and the log of its memory plan.

    Args:
        mx: the module ``mxnet``.
        symbol: of ``mxnet``, loaded.
        resolved: shapes and types of arguments and states.
        requests: MXNet's ``grad_req`` of each argument.
        simple: let MXNet make the arrays (it then knows which gradients are sparse). Also where the
            other way fails: a few graphs infer shapes only in ``simple_bind``.
    """
    if not simple:
        try:
            with capture_stderr() as captured:
                executor = bind_without_memory(mx, symbol, resolved, requests)
            return executor, captured.data()
        except mx.base.MXNetError:
            pass
    with capture_stderr() as captured:
        shapes = {name: resolved.shapes[name] for name in resolved.known}
        executor = symbol.simple_bind(
            mx.cpu(), grad_req=requests, type_dict=resolved.types, **shapes
        )
    return executor, captured.data()


def gradient_requests(
    arguments: list[dict[str, Any]], without: Collection[str], frozen: Sequence[str]
) -> dict[str, str]:
    """MXNet's ``grad_req`` of each argument, by name in the prepared copy.

    Args:
        arguments: names in the prepared copy and in the file, and roles.
        without: arguments, by that name, that have no gradient.
        frozen: globs of parameters, by their names in the file, that are not trained; with any the
            inputs have no gradient either, as when ``Module`` trains with ``fixed_param_names``.

    Raises:
        BadInput: a glob fits no parameter, or nothing is left to train.
    """
    parameters = [a for a in arguments if a["role"] == "parameter"]
    names = [a["name"] for a in parameters]
    fixed: set[str] = set()
    for glob in frozen:
        found = {a["prepared"] for a in parameters if fnmatch.fnmatchcase(a["name"], glob)}
        if not found:
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise BadInput(f"--frozen {glob}: no parameter is named so", f"there are: {shown}")
        fixed |= found
    if frozen and len(fixed) == len(parameters):
        raise BadInput(
            "--frozen fits every parameter, so that nothing is trained",
            "memcli plans what training takes; inference needs no plan",
        )
    if frozen:
        fixed |= {a["prepared"] for a in arguments if a["role"] != "parameter"}
    fixed |= set(without)
    return {a["prepared"]: "null" if a["prepared"] in fixed else "write" for a in arguments}


def handle(job: dict[str, Any], workdir: Path, progress: Callable[..., None]) -> dict[str, Any]:
    """Resolve shapes, bind, and write the joint graph.

    Args:
        job: ``symbol`` (path of a prepared symbol JSON), ``names`` (original node names by
            position), ``shapes``, ``unnamed_shape``, ``batch``, ``dtype``, ``dtypes``, ``bind``
            (False: shapes only), ``imports`` (the user's files to run first), ``no_gradient``
            (arguments to bind without one), ``frozen`` (globs of parameters that are not trained).
        workdir: folder for large files.
        progress: told what is going on.
    """
    gc.disable()  # of millions of lists none is in a cycle, and the process ends with the job
    os.environ["MXNET_MEM_PLAN_VERBOSE_LOGGING"] = "1"
    os.environ.update(job.get("environment", {}))

    from memcli.engines.mxnet.shim import import_mxnet

    text = Path(job["symbol"]).read_text()
    sparse = '"sparse_grad"' in text or "__storage_type__" in text or "cast_storage" in text
    if sparse:
        os.environ["MXNET_INFER_STORAGE_TYPE_VERBOSE_LOGGING"] = "1"
    progress("loading MXNet")
    mx = import_mxnet()
    if job.get("imports"):
        progress("running the files of --import")
        run_files(job["imports"])
    try:
        return _analyzed(mx, text, sparse, job, workdir, progress)
    except MemcliError:
        raise
    except _REFUSALS as error:
        if describe_error(error)["kind"] == "engine" and not isinstance(error, mx.base.MXNetError):
            raise  # want of memory
        # nothing is computed here: what fails, fails on what the file says
        traceback.print_exc()
        raise BadInput(
            "MXNet's graph of it cannot be read: "
            f"{_rename(clean_message(error), job['names']) or type(error).__name__}"
        ) from error


def _analyzed(
    mx: Any,
    text: str,
    sparse: bool,
    job: dict[str, Any],
    workdir: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    names: list[str] = job["names"]
    raw = json.loads(text, strict=False)  # names of operators may hold what JSON escapes
    check_operators(raw["nodes"], names, list_operators(mx))
    progress("reading the symbol")
    try:
        with capture_stderr():
            symbol = mx.sym.load_json(text)
    except (mx.base.MXNetError, ValueError) as error:
        unknown = re.search(r"Cannot find custom operator (\S+)", str(error))
        if unknown:
            raise refuse_unregistered(unknown[1], raw, names) from None
        raise BadInput(
            f"MXNet does not load the symbol: {_rename(clean_message(error), names)}"
        ) from None
    check_outputs(symbol, raw, names)
    progress("inferring shapes")
    resolved = resolve_shapes(
        mx, symbol, raw, names, job, lambda e: _rename(clean_message(e), names)
    )
    requests = gradient_requests(
        resolved.arguments, job.get("no_gradient", ()), job.get("frozen", ())
    )
    for argument in resolved.arguments:
        argument["gradient"] = requests[argument["prepared"]] == "write"
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
    started = time.perf_counter()
    try:
        executor, log_bytes = bind(mx, symbol, resolved, requests, simple=sparse)
        result["bind_seconds"] = time.perf_counter() - started
    except (mx.base.MXNetError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"MXNet cannot bind the graph for training: {_rename(clean_message(error), names)}",
            _guess_hint(resolved.assumed, resolved.inputs),
        ) from None
    _alive.append(executor)
    progress("reading MXNet's graph")
    try:
        log = parse_plan_log(log_bytes)
    except EngineFailed:
        if not job.get("here"):
            raise
        # MXNet reads the variable once, at a process's first bind, and this one is a fork
        raise BadInput(
            "a symbol with user operators (Custom) can be analyzed only before the process binds "
            "its first executor",
            "call memonger before the first bind, Module.bind or fit",
        ) from None
    nodes, heads, total_mb = parse_debug(executor.debug_str())
    joint = JointBuilder(log, nodes)
    joint.deps = joint.control_dependencies()

    n_outputs = len(symbol.list_outputs())
    argument_sizes = [
        int(np.prod(resolved.shapes[a], dtype=np.int64))
        for a in symbol.list_arguments()
        if requests[a] == "write"
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

    dynamic = parse_storage_log(log_bytes) if sparse else []
    kinds: dict[tuple[Any, ...], int] = {}
    node_kind = []
    for number, shown in enumerate(nodes):
        if shown["op"] is None:
            node_kind.append(-1)
            continue
        attrs = tuple(sorted(a for a in shown["attrs"].items() if not a[0].startswith("__")))
        key = shown["op"], attrs, len(log.inputs[number]), len(log.outputs[number])
        node_kind.append(kinds.setdefault(key, len(kinds)))

    def flat(rows: list[list[int]]) -> tuple[Any, Any]:
        pointer = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(r) for r in rows], out=pointer[1:])
        return pointer, np.array([x for r in rows for x in r], np.int64)

    in_ptr, in_entry = flat(log.inputs)
    dep_ptr, dep_node = flat(joint.deps)
    shape_ptr, shape_dim = flat([log.shapes.get(e, []) for e in range(joint.n_entries)])
    elements = np.array([log.elements.get(e, 0) for e in range(joint.n_entries)], np.int64)
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
        kinds=[[op, dict(attrs), n_in, n_out] for op, attrs, n_in, n_out in kinds],
        node_names=[n["name"] for n in nodes],
        total_mb=total_mb,
        attributes=resolved.attributes,
    )
    return result


def _guess_hint(assumed: list[str], inputs: dict[str, list[int]]) -> str:
    """What may mend that a graph does not run, where shapes were guessed; else nothing."""
    if not assumed:
        return ""
    name = assumed[0]
    return (
        f"the shape of '{name}' is a guess, {','.join(map(str, inputs[name]))}, which may be the "
        f"cause; give its own: --shape {name}=D,D,..."
    )


def _rename(message: str, names: list[str]) -> str:
    """Put the graph's own node names back into an engine's message."""

    def original(match: re.Match[str]) -> str:
        position = int(match[1])
        return names[position] if position < len(names) else match[0]

    return re.sub(r"\bn(\d+)\b", original, message)


def load() -> None:
    """Import MXNet."""
    from memcli.engines.mxnet.shim import import_mxnet

    import_mxnet()


if __name__ == "__main__":
    worker_main(handle)
