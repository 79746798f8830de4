"""From a file to a planned graph: read, analyze, search, write."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from memcli.engines.mxnet.bit_check import may_change_layouts, problem_on_onednn
from memcli.engines.mxnet.forms import (
    Form,
    marked_positions,
    with_barriers,
)
from memcli.engines.mxnet.inference import inference
from memcli.engines.mxnet.memory.bounds import BUDGET_SECONDS, recompute_bound, reported_bound
from memcli.engines.mxnet.memory.in_place_sums import plan_keeps_sums
from memcli.engines.mxnet.memory.model import MXNetModel
from memcli.engines.mxnet.memory.pool import BARRIER
from memcli.engines.mxnet.memory.stages import stages
from memcli.engines.mxnet.plain_kernels import on_plain_kernels
from memcli.engines.mxnet.record import Analysis, analyze
from memcli.engines.mxnet.reserving import allow_reservation, with_reserved_blocks
from memcli.engines.mxnet.rewrites.reserved_blocks import waiting_arguments
from memcli.engines.mxnet.step_size import batch_of
from memcli.engines.mxnet.time_shares import UNLIMITED, TimeShares
from memcli.engines.mxnet.variables import onednn_off
from memcli.errors import BadInput
from memcli.formats.detect import Model, read_source
from memcli.formats.newest import remember_plan
from memcli.formats.output import write_output
from memcli.formats.symbol.edits import INSERTED_KEY
from memcli.formats.symbol.file import SymbolFile
from memcli.formats.symbol.record import PlanRecord
from memcli.graph.cost import DEFAULT_MATCH_RANGE, Cost, Found
from memcli.graph.training import Plan, TrainingGraph
from memcli.quoting import first_of, shown, shown_path
from memcli.request import Progress, ShapeRequest
from memcli.results.planned import (
    Inference,
    Planned,
    assumed_notes,
    recorded_memory,
    recorded_recomputation,
)
from memcli.search import none
from memcli.search.base import Settings
from memcli.search.over_forms import search_spaces
from memcli.search.registry import AS_PUBLISHED
from memcli.time_limit import finished_by, seconds_left
from memcli.units import parse_size


def read_symbol(model: Model) -> SymbolFile:
    """A symbol file, told by its content.

    Raises:
        BadInput: unreadable, or not a symbol (an ONNX file is named as such).
    """
    source = read_source(model)
    if source.format != SymbolFile.format:
        raise BadInput(
            f"{shown_path(source.path)}: is {source.kind.noun}, and an MXNet symbol is asked for "
            "here",
            "export the network as an MXNet symbol JSON",
        )
    return SymbolFile.from_bytes(source.data, source.path, source.sha256)


# How files of all versions spell the attribute that names the device group of a node.
_GROUP_KEYS = ("__ctx_group__", "ctx_group")


def group_notes(source: SymbolFile) -> list[str]:
    """That a graph divided into device groups is planned for one device, in words."""
    groups = {node.attrs[key] for node in source.nodes for key in _GROUP_KEYS if key in node.attrs}
    if len(groups) < 2:
        return []
    return [
        f"the graph names {len(groups)} device groups (ctx_group: "
        f"{first_of(map(shown, sorted(groups)))}): it is planned for one device, as MXNet trains "
        "it without group2ctx. With group2ctx every device has a pool of its own, which is not "
        "modelled: the figures do not hold there"
    ]


def without_earlier_plan(source: SymbolFile, notes: list[str]) -> SymbolFile:
    """The graph to plan, without an earlier plan of memcli's.

    Args:
        source: the symbol's file.
        notes: what the user is told; an earlier plan and others' marks are added.
    """
    notes += group_notes(source)
    if source.plan() is not None:
        notes.append("the file carries a plan already; the graph is planned anew without it")
        source = source.stripped()
    foreign = len(source.marked())
    if foreign:
        notes.append(
            f"the file marks {foreign} nodes for recomputation; the plan takes their place"
        )
    return source


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


def kernels_of(plan: Plan, analysis: Analysis) -> str:
    """What runs a plan: ``plain``, MXNet's own kernels, or ``any``, oneDNN's or cuDNN's alone."""
    return "plain" if analysis.model.on_plain_kernels(plan.recompute) else "any"


def environment_of(
    plan: Plan, analysis: Analysis, environment: str, kernels: str
) -> dict[str, str]:
    """Variables that training must run with to get a plan's memory and its bits.

    Args:
        plan: the plan.
        analysis: of the graph that it is for.
        environment: whether variables may be named, ``best``, or not, ``default``.
        kernels: see :func:`kernels_of`. oneDNN, MXNet's default on CPUs, keeps layouts and
            buffers of its own beside the pool: a plan for plain kernels switches it off where the
            graph has operators that it would run. A plan that recomputes nothing names no variable
            for it.
    """
    needed = dict(analysis.environment)
    if plan.match_range != DEFAULT_MATCH_RANGE:
        needed["NNVM_EXEC_MATCH_RANGE"] = str(plan.match_range)
    if environment == "best" and kernels == "plain" and plan.recompute.any():
        needed |= onednn_off({kind.op for kind in analysis.graph.kinds})
    return needed


def original_of(given: SymbolFile) -> tuple[str, str]:
    """Name and SHA-256 of the file without any plan."""
    earlier = given.plan()
    if earlier is not None:
        return earlier.original_name, earlier.original_sha256
    return given.name, given.sha256


def as_planned(form: Form, lower_bound: int, environment: str, **known: Any) -> Planned:
    """A plan with its stages, and what is MXNet's alone.

    Args:
        form: of the network, that the plan is for.
        lower_bound: of every plan's pool, bytes.
        environment: ``best`` or ``default``, see ``Settings``.
        known: the other fields of ``Planned``.
    """
    plan: Plan = known["plan"]
    original: MXNetModel = known["analysis"].model
    listed, timeline, _ = stages(form.analysis.model, plan)
    baseline_run = original.timeline(original.none())
    kernels = kernels_of(plan, form.analysis)
    return Planned(
        form=form,
        pooled=True,
        lower_bound=lower_bound,
        baseline_allocated=int(baseline_run.touched_bytes[-1]),
        allocated=int(timeline.touched_bytes[-1]),
        stages=listed,
        kernels=kernels,
        environment=environment_of(plan, form.analysis, environment, kernels),
        rewrites=form.rewrites,
        barriers=int(np.count_nonzero(plan.recompute == BARRIER)),
        **known,
    )


def analyze_first(
    source: SymbolFile,
    request: ShapeRequest,
    budget: str | None,
    settings: Settings,
    on_progress: Progress | None,
) -> tuple[Analysis | None, TimeShares]:
    """The analysis of the symbol itself, where it decides whether there is more to do.

    It may fit the budget, or the time may be over.

    Args:
        source: the symbol's file.
        request: shapes and types.
        budget: as the user gives it.
        settings: of the search.
        on_progress: told what is going on.

    Returns:
        The analysis, None where it decides nothing, and how the time is to be shared.

    Raises:
        BadInput: MXNet refuses the graph or its shapes.
        EngineFailed: MXNet is missing or crashed.
    """
    if settings.deadline is None and not is_whole_budget(budget):
        return None, UNLIMITED
    began = time.monotonic()
    original = analyze(source.raw, request, on_progress=on_progress)
    took = time.monotonic() - began
    return original, TimeShares(settings.deadline, settings.time_limit or 0.0, took)


def is_whole_budget(budget: str | None) -> bool:
    """Whether a budget may be no less than what the baseline takes."""
    if budget is None:
        return False
    return not budget.strip().endswith("%") or parse_size(budget, whole=100) >= 100


def baseline_fits(original: Analysis, budget: str | None, settings: Settings) -> bool:
    """Whether the baseline fits the budget, so that no other form needs to be analyzed.

    Args:
        original: the analysis of the graph as given.
        budget: as the user gives it; None: there is none, and nothing fits.
        settings: of the search.
    """
    if budget is None:
        return False
    baseline = original.model.evaluate(original.model.none())
    size = parse_size(budget, whole=baseline.pool_bytes)
    return replace(settings, budget=size).met_by(baseline)


def proven_bound(forms: Sequence[Form], form: Form, cost: Cost, ends: float | None) -> int:
    """What the pool of no plan of any of the forms gets under.

    Args:
        forms: of the network.
        form: the one that the plan is for.
        cost: the plan's.
        ends: when the time is over, by ``time.monotonic()``; None: never.

    Returns:
        Bytes; 0 where no time is left to prove it.
    """
    pairs = searched_graphs(forms, form)
    return finished_by(ends, lambda: reported_bound(pairs, cost.pool_bytes), 0)


def proven_recomputation(
    forms: Sequence[Form], form: Form, budget: int, ends: float | None
) -> float:
    """FLOPs that every plan within a budget recomputes at least.

    Args:
        forms: of the network.
        form: the one that the plan is for.
        budget: bytes of the pool.
        ends: when the time is over, by ``time.monotonic()``; None: never.
    """
    seconds = min(BUDGET_SECONDS, max(0.0, seconds_left(ends)))
    # solved two at a time: seconds each on large graphs
    with ThreadPoolExecutor(2) as pool:
        bounds = [
            pool.submit(recompute_bound, g, m, budget, time_limit=seconds)
            for g, m in searched_graphs(forms, form)
        ]
        return min(bound.result() for bound in bounds)


def search_forms(
    forms: Sequence[Form],
    strategy: str,
    settings: Settings,
    shares: TimeShares = UNLIMITED,
) -> tuple[Form, Found, int]:
    """The best plan of some forms of a network, and the form that it is for.

    That may be one of them with more put into it: identities behind convolutions, and the blocks
    that the plan reserves.

    Args:
        forms: of the network, the graph as given first.
        strategy: its name, of ``STRATEGIES``.
        settings: what the user asks for.
        shares: how the time is shared.

    Returns:
        The form, the plan, and the number of plans evaluated.

    Raises:
        EngineFailed: MXNet is missing or crashed.
    """
    published = strategy in AS_PUBLISHED
    if published and settings.rewrite and settings.kernels == "plain":
        return search_published(forms[0], strategy, settings)
    rewrite = settings.rewrite and not published
    reserving = rewrite and strategy != none.NAME and shares.for_reserving()
    if reserving:
        for graph in forms:
            for analysis in filter(None, (graph.analysis, graph.without_variables)):
                allow_reservation(analysis)
    ends = shares.search_ends(reserving=reserving)
    if ends is not None:
        settings = dataclasses.replace(settings, deadline=ends)
    found, chosen, evaluated = search_spaces(
        [v.analysis.search_space() for v in forms], strategy, settings
    )
    form, found = without_needless_variables(forms[chosen], found, settings.budget)
    if settings.rewrite and not published:
        form, found = with_reserved_blocks(form, found)
    return form, found, evaluated


# A plan that takes no variable is preferred up to so much more memory.
_WITHOUT_VARIABLES = 1.001


def without_needless_variables(form: Form, found: Found, budget: int | None) -> tuple[Form, Found]:
    """The same plan without a variable that buys next to nothing.

    Args:
        form: the form that the plan is for.
        found: the plan.
        budget: bytes that the plan is to stay within, if it does.
    """
    most = _WITHOUT_VARIABLES * found.cost.pool_bytes
    if budget is not None and found.cost.pool_bytes <= budget:
        most = min(most, float(budget))
    plan = replace(found.plan, match_range=DEFAULT_MATCH_RANGE)
    choices = [(form, plan)]
    if form.without_variables is not None:
        without = Form(form.source, form.without_variables, form.rewrites)
        choices = [(without, plan), (without, found.plan), *choices]
    for other, choice in choices:
        analysis = other.analysis
        cost = analysis.model.plan_cost(choice)
        exact = plan_keeps_sums(analysis.graph, analysis.model, choice)
        if cost.pool_bytes <= most and exact:
            return other, Found(choice, cost)
    return form, found


def search_published(form: Form, strategy: str, settings: Settings) -> tuple[Form, Found, int]:
    """A published technique's plan, made for plain kernels by identities behind convolutions.

    It is searched for as it was published, for cuDNN. Where identities cannot do it, the search
    leaves out what plain kernels refuse.
    """
    model = form.analysis.model
    space = [form.analysis.search_space()]
    model.portable = False
    found, _, evaluated = search_spaces(space, strategy, settings)
    rewritten, plain = on_plain_kernels(form, found)
    if kernels_of(plain.plan, rewritten.analysis) == "plain":
        return rewritten, plain, evaluated
    model.portable = True
    found, _, more = search_spaces(space, strategy, settings)
    return form, found, evaluated + more


def exact_on_onednn(
    forms: Sequence[Form],
    form: Form,
    found: Found,
    strategy: str,
    settings: Settings,
    notes: list[str],
) -> tuple[Form, Found, int]:
    """The plan, changed as far as it takes to keep every bit on oneDNN's kernels.

    Nothing is changed where it keeps them, or cannot run on them. Otherwise it is searched without
    the rewrites, and then without recomputation; what was given up is put into ``notes``.

    Args:
        forms: all forms, the graph as given first.
        form: the form that the plan is for.
        found: the plan.
        strategy: its strategy, for another search.
        settings: of the search.
        notes: what the user is told; added to.

    Returns:
        The form, the plan, and the number of further plans evaluated.
    """
    original = forms[0]
    evaluated = 0
    for rewrite in (settings.rewrite, False):
        kernels = kernels_of(found.plan, form.analysis)
        if not found.plan.recompute.any() or not may_change_layouts(
            form.analysis, settings.environment, kernels
        ):
            return form, found, evaluated
        problem = onednn_problem(
            original.source, original.analysis, form, found.plan, settings.on_progress
        )
        if not problem:
            return form, found, evaluated
        if strategy in AS_PUBLISHED:
            notes.append(f"with oneDNN, MXNet's default on CPUs, bits change: {problem}")
            return form, found, evaluated
        if rewrite:
            notes.append(f"planned without rewrites: with oneDNN, {problem}")
            bare = dataclasses.replace(settings, rewrite=False)
            form, found, evaluated = search_forms(forms[:1], strategy, bare)
    notes.append(f"nothing is recomputed: with oneDNN, {problem}; --environment best may do better")
    model = original.analysis.model
    plan = Plan("none", model.none())
    return original, Found(plan, model.plan_cost(plan)), evaluated


def onednn_problem(
    source: SymbolFile,
    analysis: Analysis,
    form: Form,
    plan: Plan,
    on_progress: Progress | None,
) -> str:
    """What is wrong with a plan on oneDNN's kernels; '' where every bit is equal.

    Args:
        source: the graph without the plan.
        analysis: of that graph.
        form: the form that the plan is for.
        plan: the plan.
        on_progress: told what is being done.
    """
    if not plan.recompute.any():
        return ""
    planned = source.with_content(json.loads(marked_file(form, plan)))
    return problem_on_onednn(source, planned, analysis.request(), batch_of(analysis), on_progress)


def searched_graphs(forms: Sequence[Form], form: Form) -> list[tuple[TrainingGraph, MXNetModel]]:
    """All forms of a network that a plan may be for, to prove bounds on.

    Without what a plan reserves, which is no tensor of theirs.
    """
    pairs = [(v.analysis.graph, v.analysis.model) for v in forms]
    if all(form is not graph for graph in forms):
        bare = form.analysis.graph.without_reserved_blocks()
        pairs.append((bare, MXNetModel(bare, form.analysis.model.seconds)))
    return pairs


def plan_record(planned: Planned, file: SymbolFile, moved: Mapping[int, int]) -> PlanRecord:
    """What the written file says of its plan; ``file`` has the plan's barriers already.

    Args:
        planned: what was found.
        file: with the plan's barriers already.
        moved: positions in ``file`` of the form's nodes.
    """
    analysis, graph = planned.form.analysis, planned.form.analysis.graph
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
        kernels=planned.kernels,
        original_name=planned.original[0],
        original_sha256=planned.original[1],
        n_nodes=file.node_count,
        original_marks={p: list(m) for p, m in file.existing_marks().items()},
        cuts=cuts,
        memory=recorded_memory(planned.baseline, planned.cost, planned.lower_bound)
        | (planned.inference.recorded() if planned.inference else {}),
        recompute=recorded_recomputation(planned.cost),
        frozen=list(analysis.frozen),
    )


def _read(file: SymbolFile, position: int) -> list[tuple[int, int]]:
    """What a node reads, where it is one that memcli put in; [] for others."""
    node = file.nodes[position]
    return [tuple(i) for i in node.inputs] if INSERTED_KEY in node.attrs else []  # type: ignore[misc]


def given_shapes(form: Form, file: SymbolFile) -> dict[int, dict[str, str]]:
    """Shapes of the parameters that MXNet infers none for behind what reserves blocks.

    Files may say of them that they are not known, "(0,)".
    """
    analysis = form.analysis
    shapes = {a["name"]: tuple(a["shape"]) for a in analysis.arguments}
    return {
        p: {"__shape__": str(shapes[file.nodes[p].name])}
        for p in waiting_arguments(file.raw)
        if file.nodes[p].name not in analysis.inputs
    }


def guards(source: SymbolFile, positions: set[int]) -> dict[int, dict[str, str]]:
    """Attributes that keep recomputed nodes exact on every device.

    cuDNN's BatchNorm updates the moving statistics in its forward pass, so that a recomputed one
    would update them twice; MXNet's own kernel, which ``cudnn_off`` selects, does it in the
    backward pass, once. On the CPU the attribute is without effect.

    Args:
        source: the file.
        positions: of the nodes that the plan recomputes.

    Returns:
        By position.
    """
    nodes = source.nodes
    return {
        p: {"cudnn_off": "True"}
        for p in positions
        if nodes[p].op == "BatchNorm"
        and nodes[p].attrs.get("use_global_stats", "False") not in ("True", "1")
    }


def marked_file(
    form: Form,
    plan: Plan,
    record_of: Callable[[SymbolFile, Mapping[int, int]], PlanRecord] | None = None,
) -> bytes:
    """A plan's graph as the bytes of a file; without ``record_of`` no record travels in it."""
    file, moved = with_barriers(form, plan.recompute)
    positions = {moved[p] for p in marked_positions(form.analysis, plan.recompute)}
    record = None if record_of is None else record_of(file, moved)
    return file.with_marks(
        positions, record, guards(file, positions), replaced=given_shapes(form, file)
    )


def planned_file(planned: Planned) -> bytes:
    """The planned graph as the bytes of a file."""
    return marked_file(planned.form, planned.plan, partial(plan_record, planned))


def _inference(planned: Planned) -> Inference | None:
    """What the planned graph takes where nothing is trained; None where it has the same nodes."""
    form: Form = planned.form
    source: Any = planned.source
    original: Any = planned.analysis
    file = form.source.with_content(json.loads(marked_file(form, planned.plan)))
    if file.node_count == source.node_count:
        return None
    return inference(source, original, file, form.analysis, planned.plan.match_range)


def write_plan(planned: Planned, out: str, force: bool) -> None:
    """Write the planned graph, whole or not at all, and remember it as the newest."""
    planned.inference = _inference(planned)
    write_output(out, planned_file(planned), overwrite=force)
    planned.output = out
    remember_plan(out)
