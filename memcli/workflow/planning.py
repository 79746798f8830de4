"""From a file to a planned graph: read, analyze, search, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from memcli.engines.analysis import Analysis, ShapeRequest
from memcli.errors import AnswerIsNo, BadInput
from memcli.formats.atomic import check_target, write_atomically
from memcli.formats.detect import detect_format, read_model_bytes
from memcli.formats.mxnet_symbol import SymbolFile
from memcli.formats.newest import remember_plan
from memcli.formats.plan_record import PlanRecord
from memcli.formats.symbol_edits import INSERTED_KEY, waiting_arguments
from memcli.graph.training import Plan, TrainingGraph
from memcli.memory.bounds import gap, plan_bound, recompute_bound
from memcli.memory.mxnet_model import DEFAULT_MATCH_RANGE, Cost, MXNetModel
from memcli.memory.pool import BARRIER
from memcli.memory.stages import Stage, stages
from memcli.planners.base import Found, Settings
from memcli.planners.registry import AS_PUBLISHED, search_variants
from memcli.units import format_size, parse_size
from memcli.workflow.costs import set_costs
from memcli.workflow.plain_kernels import on_plain_kernels
from memcli.workflow.reserving import allow_reservation, with_reserved_blocks
from memcli.workflow.variants import (
    Variant,
    analyze_variants,
    marked_positions,
    with_barriers,
)

Progress = Callable[[str, float | None], None]


@dataclass
class Planned:
    """Everything known about a plan that was made."""

    source: SymbolFile
    original: tuple[str, str]  # name and SHA-256 of the file without any plan
    analysis: Analysis  # of the graph as saved
    variant: Variant  # what the plan is for: the graph as saved, or rewritten
    strategy: str  # as asked for; the plan names the one that found it
    cost_of: str  # what stands for the cost of an operator: see Settings.cost
    plan: Plan
    baseline: Cost
    cost: Cost
    lower_bound: int
    baseline_allocated: int  # bytes that MXNet really takes: see Timeline
    allocated: int
    stages: list[Stage]
    environment: dict[str, str]
    notes: list[str]
    evaluated: int
    seconds: float
    recompute_bound: float = 0.0  # FLOPs that every plan within the budget runs again
    output: str | None = None

    format = "mxnet-symbol"

    @property
    def operator_count(self) -> int:
        """Nodes that are no variables."""
        return self.source.operator_count

    @property
    def rewrites(self) -> list[str]:
        """What was done to the graph before the search, save barriers apart."""
        return self.variant.rewrites

    @property
    def barriers(self) -> int:
        """How many save barriers the plan has."""
        return int(np.count_nonzero(self.plan.recompute == BARRIER))

    @property
    def gap(self) -> float:
        """How far from the best possible the plan may be, 0 to 1."""
        return gap(self.lower_bound, self.cost.pool_bytes)


def read_symbol(path: str) -> SymbolFile:
    """A symbol file, told by its content.

    Raises:
        BadInput: unreadable, or not a symbol (an ONNX file is named as such).
    """
    data, sha256 = read_model_bytes(path)
    kind = detect_format(data, path)
    if kind != "mxnet-symbol":
        what = "an ONNX file" if kind == "onnx" else "a Caffe net"
        raise BadInput(
            f"{path} is {what}, and this version of memcli plans MXNet symbols only",
            "export the network as an MXNet symbol JSON",
        )
    return SymbolFile.from_bytes(data, path, sha256)


def check_output(model: str, out: str | None, force: bool) -> None:
    """Refuse an output that could not, or must not, be written, before any work is done.

    Raises:
        BadInput: OUT is MODEL, exists without ``force``, or its folder cannot be written to.
    """
    if out is None:
        return
    if os.path.exists(out) and os.path.exists(model) and os.path.samefile(model, out):
        raise BadInput(f"{out}: the output is the model itself, which is never overwritten")
    check_target(out, overwrite=force)


def unplanned(source: SymbolFile, notes: list[str]) -> SymbolFile:
    """The graph to plan: without an earlier plan of memcli's; marks by others are reported."""
    if source.plan() is not None:
        notes.append("the file carries a plan already; the graph is planned anew without it")
        source = source.stripped()
    foreign = len(source.marked())
    if foreign:
        notes.append(
            f"the file marks {foreign} nodes for recomputation; the plan takes their place"
        )
    return source


def assumed_notes(assumed: Iterable[str], inputs: Mapping[str, Sequence[int]]) -> list[str]:
    """Which shapes were assumed, in words."""
    return [
        f"shape of '{name}' is assumed: {','.join(map(str, inputs[name]))} "
        "(change it with --shape or --batch)"
        for name in assumed
    ]


def shape_notes(analysis: Analysis) -> list[str]:
    """What was assumed or put on, in words."""
    notes = assumed_notes(analysis.assumed, analysis.inputs)
    if analysis.loss_heads:
        what = "output" if analysis.loss_heads == 1 else f"{analysis.loss_heads} outputs"
        notes.append(
            f"the graph has no loss: planned under MakeLoss(sum(output)) on its {what}; "
            "the written file has none of it"
        )
    return notes


def environment_of(plan: Plan, analysis: Analysis) -> dict[str, str]:
    """Variables that the engine must run with; none where the plan uses the defaults."""
    needed = dict(analysis.environment)
    if plan.match_range != DEFAULT_MATCH_RANGE:
        needed["NNVM_EXEC_MATCH_RANGE"] = str(plan.match_range)
    return needed


def make_plan(
    model: str,
    request: ShapeRequest,
    strategy: str,
    settings: Settings,
    *,
    budget: str | None = None,
    device: str = "cpu",
    out: str | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Planned:
    """Plan ``model`` and, with ``out``, write the planned graph.

    ``device``: ``cpu`` or ``gpu:N``, where operators are timed if ``settings.cost`` says so.

    Raises:
        BadInput: bad file, shapes, options or output.
        AnswerIsNo: no plan fits the budget, or the limit on recomputation.
        EngineFailed: MXNet is missing or crashed.
    """
    check_output(model, out, force)
    if budget is not None and not budget.strip().endswith("%"):
        parse_size(budget)
    notes: list[str] = []
    given = read_symbol(model)
    earlier = given.plan()
    original = (
        (earlier.original_name, earlier.original_sha256) if earlier else (given.name, given.sha256)
    )
    source = unplanned(given, notes)
    started = time.monotonic()
    graphs = analyze_variants(
        source,
        request,
        rewrite=settings.rewrite and strategy not in AS_PUBLISHED,
        environment=settings.environment,
        on_progress=on_progress,
    )
    analysis = graphs[0].analysis
    notes += shape_notes(analysis)
    if on_progress:
        on_progress("compiling the memory model (first run only)", None)
    notes += set_costs(graphs, settings.cost, device, on_progress)
    baseline = analysis.model.evaluate(analysis.model.none())
    if budget is not None:
        settings.budget = parse_size(budget, whole=baseline.pool_bytes)
    settings.on_progress = on_progress
    variant, found, evaluated = search_forms(graphs, strategy, settings)
    seconds = time.monotonic() - started
    listed, timeline, _ = stages(variant.analysis.model, found.plan)
    unplanned_run = analysis.model.timeline(analysis.model.none())
    planned = Planned(
        source=source,
        original=original,
        analysis=analysis,
        variant=variant,
        strategy=strategy,
        cost_of=settings.cost,
        plan=found.plan,
        baseline=baseline,
        cost=found.cost,
        lower_bound=min(plan_bound(g, m, found.cost) for g, m in searched_graphs(graphs, variant)),
        baseline_allocated=int(unplanned_run.touched_bytes[-1]),
        allocated=int(timeline.touched_bytes[-1]),
        stages=listed,
        environment=environment_of(found.plan, variant.analysis),
        notes=notes,
        evaluated=evaluated,
        seconds=seconds,
    )
    refuse_misses(planned.cost, planned.lower_bound, settings)
    if settings.budget is not None and planned.cost.recompute_flops:
        within = settings.budget
        pairs = searched_graphs(graphs, variant)
        # solved two at a time: seconds each on large graphs
        with ThreadPoolExecutor(2) as pool:
            bounds = [pool.submit(recompute_bound, g, m, within) for g, m in pairs]
            planned.recompute_bound = min(bound.result() for bound in bounds)
    if out is not None:
        write_plan(planned, out, force)
    return planned


def search_forms(
    graphs: Sequence[Variant], strategy: str, settings: Settings
) -> tuple[Variant, Found, int]:
    """The best plan of some forms of a network, and the form that it is for.

    That may be one of them with more put into it: identities behind convolutions, and the blocks
    that the plan reserves.

    Returns:
        The form, the plan, and the number of plans evaluated.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    rewrite = settings.rewrite and strategy not in AS_PUBLISHED
    if rewrite:
        for graph in graphs:
            allow_reservation(graph.analysis)
    found, chosen, evaluated = search_variants(
        [(v.analysis.graph, v.analysis.model) for v in graphs], strategy, settings
    )
    variant = graphs[chosen]
    if rewrite:
        variant, found = on_plain_kernels(variant, found, settings.budget)
        variant, found = with_reserved_blocks(variant, found)
    return variant, found, evaluated


def searched_graphs(
    graphs: Sequence[Variant], variant: Variant
) -> list[tuple[TrainingGraph, MXNetModel]]:
    """All forms of a network that a plan may be for, to prove bounds on: without what a plan
    reserves, which is no tensor of theirs."""
    pairs = [(v.analysis.graph, v.analysis.model) for v in graphs]
    if all(variant is not graph for graph in graphs):
        bare = variant.analysis.graph.without_reserved_blocks()
        pairs.append((bare, MXNetModel(bare, variant.analysis.model.seconds)))
    return pairs


def refuse_misses(cost: Cost, lower_bound: int, settings: Settings) -> None:
    """Raises AnswerIsNo where the best plan breaks a limit that the user set."""
    if settings.budget is not None and cost.pool_bytes > settings.budget:
        raise AnswerIsNo(
            f"no plan found fits {format_size(settings.budget)}: the least is "
            f"{format_size(cost.pool_bytes)} with {cost.recompute_fraction:.0%} "
            "of the forward pass recomputed",
            f"nothing can get under {format_size(lower_bound)} at these shapes; "
            "a smaller --batch needs less",
        )
    limit = settings.max_recompute
    if limit is not None and cost.recompute_fraction > limit + 1e-12:
        raise AnswerIsNo(
            f"no plan found recomputes at most {limit:.1%} of the forward pass: the least is "
            f"{cost.recompute_fraction:.1%}"
        )


def recorded_memory(baseline: Cost, cost: Cost, lower_bound: int) -> dict[str, int]:
    """What a written file says of its plan's memory, bytes."""
    return {
        "baseline_bytes": baseline.pool_bytes,
        "planned_bytes": cost.pool_bytes,
        "live_peak_bytes": cost.live_peak_bytes,
        "lower_bound_bytes": lower_bound,
    }


def recorded_recomputation(cost: Cost) -> dict[str, int | float]:
    """What a written file says of what its plan runs again."""
    return {
        "flops": cost.recompute_flops,
        "forward_flops": cost.forward_flops,
        "fraction": cost.recompute_fraction,
    }


def plan_record(planned: Planned, file: SymbolFile, moved: Mapping[int, int]) -> PlanRecord:
    """What the written file says of its plan; ``file`` has the plan's barriers already.

    ``moved``: positions in ``file`` of the variant's nodes.
    """
    analysis, graph = planned.variant.analysis, planned.variant.analysis.graph
    n_file = len(graph.file_names)
    # the last node of each cut: where a stage ends; what is kept is told by the marks
    ends = {int(graph.position[max(cut)]) for cut in planned.plan.cuts if cut}
    behind = {p: q for p, q in moved.items() if file.nodes[q].op != "null"}
    cuts = []
    for p in sorted(p for p in ends if 0 <= p < n_file and p in behind):
        q = behind[p] + 1
        # a barrier, which is what is kept, belongs to the stage that it ends
        while q < file.node_count and any(source == behind[p] for source, _ in _read(file, q)):
            q += 1
        cuts.append(q - 1)
    return PlanRecord(
        strategy=planned.strategy,
        shapes=analysis.inputs,
        dtype=analysis.dtype,
        environment=planned.environment,
        original_name=planned.original[0],
        original_sha256=planned.original[1],
        n_nodes=file.node_count,
        original_marks={p: list(m) for p, m in file.existing_marks().items()},
        cuts=cuts,
        memory=recorded_memory(planned.baseline, planned.cost, planned.lower_bound),
        recompute=recorded_recomputation(planned.cost),
    )


def _read(file: SymbolFile, position: int) -> list[tuple[int, int]]:
    """What a node reads, where it is one that memcli put in; [] for others."""
    node = file.nodes[position]
    return [tuple(i) for i in node.inputs] if INSERTED_KEY in node.attrs else []  # type: ignore[misc]


def given_shapes(variant: Variant, file: SymbolFile) -> dict[int, dict[str, str]]:
    """Shapes of the parameters that MXNet infers none for behind what reserves blocks; files may
    say of them that they are not known, "(0,)"."""
    analysis = variant.analysis
    shapes = {a["name"]: tuple(a["shape"]) for a in analysis.arguments}
    return {
        p: {"__shape__": str(shapes[file.nodes[p].name])}
        for p in waiting_arguments(file.raw)
        if file.nodes[p].name not in analysis.inputs
    }


def guards(source: SymbolFile, positions: set[int]) -> dict[int, dict[str, str]]:
    """Attributes that keep a recomputed node exact on every device.

    cuDNN's BatchNorm updates the moving statistics in its forward pass, so that a recomputed one
    would update them twice; MXNet's own kernel, which ``cudnn_off`` selects, does it in the
    backward pass, once. On the CPU the attribute is without effect.
    """
    nodes = source.nodes
    return {
        p: {"cudnn_off": "True"}
        for p in positions
        if nodes[p].op == "BatchNorm"
        and nodes[p].attrs.get("use_global_stats", "False") not in ("True", "1")
    }


def marked_file(
    variant: Variant,
    plan: Plan,
    record_of: Callable[[SymbolFile, Mapping[int, int]], PlanRecord] | None = None,
) -> bytes:
    """A plan's graph as the bytes of a file; without ``record_of`` no record travels in it."""
    file, moved = with_barriers(variant, plan.recompute)
    positions = {moved[p] for p in marked_positions(variant.analysis, plan.recompute)}
    record = None if record_of is None else record_of(file, moved)
    return file.with_marks(
        positions, record, guards(file, positions), replaced=given_shapes(variant, file)
    )


def planned_file(planned: Planned) -> bytes:
    """The planned graph as the bytes of a file."""
    return marked_file(planned.variant, planned.plan, partial(plan_record, planned))


def write_plan(planned: Planned, out: str, force: bool) -> None:
    """Write the planned graph, whole or not at all, and remember it as the newest."""
    write_atomically(Path(out), planned_file(planned), overwrite=force)
    planned.output = out
    remember_plan(out)
