"""Trains a step of the original and of the planned graph for real, and compares everything."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from memcli.choices import AS_PLANNED, DEFAULT, PLAIN
from memcli.engines.gpus import check_gpu
from memcli.engines.live_memory import available_bytes
from memcli.engines.mxnet.memory.stages import stages
from memcli.engines.mxnet.planning import read_symbol, shape_notes
from memcli.engines.mxnet.record import Analysis, analyze, graph_environment
from memcli.engines.mxnet.rewrites.gradients import without_gradient
from memcli.engines.mxnet.rewrites.reserved_blocks import reservation, scaled_reservation
from memcli.engines.mxnet.rewrites.save_barriers import BARRIER_SUFFIX
from memcli.engines.mxnet.runs import (
    USABLE,
    GraphRun,
    RunConditions,
    compare_sides,
    kernel_runs,
    on_default_kernels,
    train_sides,
)
from memcli.engines.mxnet.step_size import batch_of, needed_bytes
from memcli.engines.timed_steps import LEAST
from memcli.engines.verification import (
    PLAN_TAKEN_OFF,
    fit_batch,
    original_beside,
    scaled_notes,
    shapes_to_verify,
)
from memcli.errors import BadInput
from memcli.formats.detect import Model
from memcli.formats.symbol.edits import INSERTED_KEY
from memcli.formats.symbol.file import SymbolFile
from memcli.formats.symbol.record import PlanRecord
from memcli.graph.cost import DEFAULT_MATCH_RANGE
from memcli.graph.training import Flags, Ints, Plan
from memcli.quoting import shown_path
from memcli.request import Progress, ShapeRequest
from memcli.results.verified import (
    BASELINE,
    MOST_OVER,
    PLANNED,
    KernelRuns,
    Run,
    StageMeasured,
    Verified,
    result_notes,
)
from memcli.units import format_size

# What measured bytes may have beside the pool: the C library's own books on the CPU, and pages of
# CUDA, which rounds every block up to them.
_CPU_GRANULARITY = 64 << 10
_CUDA_PAGE = 2 << 20
_NODE_NAME = re.compile(r"n(\d+)(?:_|$)")


def find_original(
    planned: SymbolFile, record: PlanRecord | None, given: Model | None
) -> tuple[SymbolFile, str]:
    """The graph without the plan, and where it comes from, in words.

    Args:
        planned: the file with the plan.
        record: the plan's record, if it has one.
        given: the original, where the user names it.

    Raises:
        BadInput: nothing says what the original is.
    """
    if given is not None:
        original = read_symbol(given)
        return _unmarked(original.stripped(), original.path)
    if record is None:
        if planned.existing_marks():
            return _unmarked(planned, "the file")
        raise BadInput(
            f"{shown_path(planned.path)}: carries no plan, so there is nothing to compare it with",
            "make one with memcli plan, or name the original with --original",
        )
    beside = original_beside(
        planned.path, record.original_name, record.original_sha256, read_symbol
    )
    return _unmarked(*(beside or (planned.stripped(), PLAN_TAKEN_OFF)))


def _unmarked(file: SymbolFile, where: str) -> tuple[SymbolFile, str]:
    """The graph without marks that something else put there: the baseline recomputes nothing.

    A plan takes their place, and MXNet's plain kernels may refuse to run them.
    """
    if not file.existing_marks():
        return file, where
    bare = SymbolFile.from_bytes(file.with_marks((), None), file.path, file.sha256)
    return bare, f"{where} without its marks"


def file_flags(analysis: Analysis, source: SymbolFile) -> Flags:
    """The file's own marks as flags over the forward nodes."""
    graph = analysis.graph
    flags = np.zeros(graph.n_forward, np.uint8)
    node_of = graph.node_of_position()
    for position in source.marked():
        node = node_of.get(graph.alias.get(position, position))
        if node is not None:
            flags[node] = 1
    return flags


def plan_of_file(analysis: Analysis, source: SymbolFile) -> Plan:
    """The plan that a file carries: its marks, cuts and match range."""
    record = source.plan()
    flags = file_flags(analysis, source)
    match_range = DEFAULT_MATCH_RANGE
    cuts: list[list[int]] = []
    strategy = "marks of the file"
    if record is not None:
        strategy = record.strategy
        match_range = int(record.environment.get("NNVM_EXEC_MATCH_RANGE", str(DEFAULT_MATCH_RANGE)))
        node_of = analysis.graph.node_of_position()
        if record.n_nodes == source.node_count:
            # Positions hold for the file as memcli wrote it; each is a cut's end of its own.
            cuts = [[node_of[p]] for p in record.cuts if p in node_of and not flags[node_of[p]]]
    return Plan(strategy, flags, cuts, match_range)


def save_barriers(analysis: Analysis, source: SymbolFile) -> set[int]:
    """Nodes of the graph that the file's plan put there to keep what is recomputed otherwise."""
    found = set()
    node_of = analysis.graph.node_of_position()
    for position, node in enumerate(source.nodes):
        if INSERTED_KEY not in node.attrs or node.op != "_copy" or position not in node_of:
            continue
        if node.name.startswith(f"{source.nodes[int(node.inputs[0][0])].name}{BARRIER_SUFFIX}"):
            found.add(node_of[position])
    return found


def verify(
    planned_model: Model,
    *,
    original: Model | None = None,
    gpu: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    kernels: str | None = AS_PLANNED,
    request: ShapeRequest | None = None,
    on_progress: Progress | None = None,
) -> Verified:
    """Train one step of both graphs, each in a process of its own, and compare.

    Args:
        planned_model: its path, or what was read.
        original: the baseline's path; None: it is taken from the planned file.
        gpu: number of the card, None the CPU.
        seed: of random numbers.
        steps: how many are timed after a warm-up step; None: 5 on a card, on the CPU as many as a
            few seconds allow.
        kernels: on the CPU. PLAIN; AS_PLANNED, the same but for plans that need others; DEFAULT, as
            MXNet starts, with oneDNN and no variable of the plan's; ``both``: as planned, and
            beside it as MXNet starts; None: both where the latter takes no more than some seconds.
        request: shapes in place of those of the plan.
        on_progress: told what is going on.

    Raises:
        BadInput: no plan, no original, shapes unknown, kernels that do not run the plan.
        EngineFailed: MXNet or the device is missing, or a step crashed.
    """
    if gpu is not None:
        check_gpu(gpu)

    def report(text: str, fraction: float | None = None) -> None:
        if on_progress:
            on_progress(text, fraction)

    planned = read_symbol(planned_model)
    record = planned.plan()
    source, where = find_original(planned, record, original)
    shape_request = shapes_to_verify(record, request)

    environment = dict(record.environment) if record else {}

    def analysis_of(file: SymbolFile, shape_request: ShapeRequest) -> Analysis:
        none = without_gradient(file.raw)
        needed = graph_environment(environment) if file is planned else {}
        return analyze(
            file.raw, shape_request, no_gradient=none, environment=needed, on_progress=on_progress
        )

    analysis = analysis_of(planned, shape_request)
    notes = shape_notes(analysis)
    scaled = None
    if gpu is None:
        free = int(available_bytes() * USABLE)
        analysis, scaled = fit_batch(
            analysis,
            batch_of(analysis),
            free,
            needed_bytes,
            lambda shapes: analysis_of(planned, shapes),
        )
    notes += scaled_notes(scaled)
    if record is not None and reservation(planned.raw):
        shapes = record.shapes.values()
        made_for, now_at = next((s[0] for s in shapes if s), 1), batch_of(analysis)
        if now_at != made_for:
            # blocks are reserved for the batch of the plan
            planned = planned.with_content(scaled_reservation(planned.raw, now_at, made_for))
            analysis = analysis_of(planned, analysis.request())
    now = analysis.request()
    same = _same_graph(planned, source) and not analysis.environment
    base_analysis = analysis if same else analysis_of(source, now)
    check_comparable(base_analysis, analysis, where)
    plan = plan_of_file(analysis, planned)
    base_plan = plan_of_file(base_analysis, source)
    base_plan.cuts = []
    as_started = kernels == DEFAULT and gpu is None
    onednn = as_started or (gpu is None and _needs_onednn(analysis, plan, record))
    if onednn and not as_started:
        if kernels == PLAIN:
            raise BadInput(
                f"{shown_path(planned.path)}: the plan needs oneDNN: MXNet's plain kernels refuse "
                "to run convolutions whose output nobody reads",
                "plan again, or verify with --kernels default",
            )
        notes.append("the plan needs oneDNN, which is on: MXNet's plain kernels refuse to run it")
    sides = [
        GraphRun(BASELINE, source, base_analysis),
        GraphRun(PLANNED, planned, analysis, {} if as_started else environment),
    ]
    device = "cpu" if gpu is None else f"gpu:{gpu}"
    if steps is None and kernels == "both":
        steps = LEAST  # who asks for both wants to see both times, however long they take
    under = RunConditions(device, seed, steps, onednn)
    kinds: dict[str, KernelRuns] = {}
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        workdir = Path(folder)
        results = train_sides(sides, under, workdir, report)
        report("comparing", None)
        compared = compare_sides(
            workdir, under, lambda kind, index: _name(base_analysis, kind, index)
        )
        if gpu is None:
            kinds[DEFAULT if onednn else PLAIN] = kernel_runs(results, compared)
            if not onednn and kernels in (None, "both"):
                kinds[DEFAULT] = on_default_kernels(
                    sides,
                    results,
                    needed_bytes(base_analysis),
                    under,
                    workdir,
                    however_long=kernels == "both",
                    on_progress=report,
                )
    first, second = results
    notes += result_notes(first, second, compared)
    if scaled or (request is not None and request.asks_shapes):
        notes.append("estimates are for the shapes that were run, not for those of the plan")
    elif record is not None:
        notes += _outdated(record, analysis.model.plan_cost(plan).pool_bytes)
    return Verified(
        planned_path=planned.path,
        original=where,
        device=first["device"],
        shapes=analysis.inputs,
        baseline=_run(base_analysis, base_plan, first),
        planned=_run(analysis, plan, second),
        outputs=compared["outputs"],
        gradients=compared["gradients"],
        states=compared["states"],
        stages=measured_stages(analysis, plan, second["trace"], save_barriers(analysis, planned)),
        method=first["method"],
        scaled=scaled,
        notes=notes,
        seed=seed,
        kernels=kinds,
        beside_estimate=_beside_estimate(planned, onednn),
    )


def _beside_estimate(file: SymbolFile, onednn: bool) -> list[str]:
    """What a measurement may hold that is not of MXNet's pool, which is what is estimated."""
    found = []
    if onednn:
        found.append(
            "oneDNN is on, and its layouts and buffers are in the measurement; estimates are of "
            "MXNet's plain kernels (MXNET_MKLDNN_ENABLED=0)"
        )
    if any(node.op == "RNN" for node in file.nodes):
        found.append("RNN holds what it keeps for its backward pass itself, outside the pool")
    if any(node.attrs.get("__storage_type__", "0") not in ("0", "default") for node in file.nodes):
        found.append("sparse tensors take what their rows need, outside the pool")
    return found


def _outdated(record: PlanRecord, pool: int) -> list[str]:
    """Where the plan's own figure is not what the file as it is comes to, in words."""
    said = record.memory.get("planned_bytes", pool)
    if abs(said - pool) <= MOST_OVER * pool:
        return []
    return [
        f"the plan says {format_size(said)}, and the file as it is now is estimated at "
        f"{format_size(pool)}: it was changed since, or planned by another version of memcli"
    ]


def _needs_onednn(analysis: Analysis, plan: Plan, record: PlanRecord | None) -> bool:
    """Whether the plan is made for oneDNN, or MXNet's plain kernels refuse to run it."""
    if getattr(record, "kernels", PLAIN) == "any":
        return True
    unread = analysis.model.unread_copies(plan.recompute)
    return any(analysis.graph.op(v) == "Convolution" for v in unread)


def _same_graph(planned: SymbolFile, source: SymbolFile) -> bool:
    """Whether both files hold the same nodes in the same places."""
    if planned.node_count != source.node_count or planned.heads != source.heads:
        return False
    if source.marked():
        return False
    return all(
        a.op == b.op and a.name == b.name and a.inputs == b.inputs
        for a, b in zip(planned.nodes, source.nodes, strict=True)
    )


def check_comparable(original: Analysis, planned: Analysis, where: str) -> None:
    """Refuse to compare graphs with other parameters.

    Args:
        original: the analysis of the baseline.
        planned: the analysis of the planned graph.
        where: the original came from, in words.

    Raises:
        BadInput: names or shapes of arguments or states differ.
    """
    for kind in ("arguments", "auxiliary"):
        first, second = getattr(original, kind), getattr(planned, kind)
        if [a["name"] for a in first] != [a["name"] for a in second]:
            names = {a["name"] for a in first} ^ {a["name"] for a in second}
            odd = sorted(names)[0] if names else "their order"
            raise BadInput(
                f"the planned graph is not a plan of {where}: their {kind} differ ({odd})"
            )
        for a, b in zip(first, second, strict=True):
            if a["shape"] != b["shape"]:
                raise BadInput(
                    f"the planned graph is not a plan of {where}: '{a['name']}' has shape "
                    f"{a['shape']} there and {b['shape']} in the plan"
                )


def _run(analysis: Analysis, plan: Plan, result: dict[str, Any]) -> Run:
    timeline = analysis.model.timeline(plan.recompute, plan.match_range)
    return Run(
        # what is touched by the end of the step: MXNet allocates blocks at their first use
        estimated_bytes=int(timeline.touched_bytes[-1]),
        measured_bytes=int(result["peak_bytes"]),
        step_seconds=result["step_seconds"],
        workspace_bytes=int(result["workspace_bytes"]),
        granularity_bytes=_granularity(str(result["method"]), timeline.block_bytes),
    )


def _granularity(method: str, blocks: Ints) -> int:
    """What the way of measuring may add to the pool's blocks, in bytes."""
    if method == "cudaMemGetInfo":
        large = blocks[blocks >= _CUDA_PAGE // 2]
        return int((-large % _CUDA_PAGE).sum()) + _CUDA_PAGE
    return _CPU_GRANULARITY


def measured_stages(
    analysis: Analysis,
    plan: Plan,
    trace: dict[str, list[list[Any]]] | None,
    barriers: Collection[int] = (),
) -> list[StageMeasured]:
    """Each stage's estimate beside what the engine had really allocated by its end.

    Args:
        analysis: of the graph.
        plan: the plan.
        trace: growth of memory after each operator, as :func:`memcli.engines.mxnet.step.handle`
            gives it.
        barriers: as for :func:`memcli.engines.mxnet.memory.stages.stages`.
    """
    listed, _, stage_of = stages(analysis.model, plan, barriers=barriers)
    node_of = analysis.graph.node_of_position()
    forward: dict[int, int] = {}
    most: dict[int, int] = {}
    current = 0
    for part in ("forward", "backward"):
        for name, size in (trace or {}).get(part, ()):
            match = _NODE_NAME.match(name)
            node = node_of.get(int(match[1])) if match else None
            if node is not None:
                current = int(stage_of[node])
            most[current] = max(most.get(current, 0), size)
            if part == "forward":
                forward[current] = max(forward.get(current, 0), size)
    return [
        StageMeasured(
            index=s.index,
            first=s.first,
            last=s.last,
            operators=s.operators,
            estimated_forward=s.forward_bytes,
            measured_forward=forward.get(s.index),
            estimated_bytes=s.peak_bytes,
            measured_bytes=most.get(s.index),
        )
        for s in listed
    ]


def _name(analysis: Analysis, kind: str, index: int) -> str:
    if kind == "out":
        entry = int(analysis.graph.outputs[index])
        return str(analysis.graph.names[analysis.graph.entry_node[entry]])
    rows = {
        "grad": analysis.arguments,
        "aux": analysis.auxiliary,
    }[kind]
    return str(rows[index]["name"]) if index < len(rows) else f"{kind} {index}"
