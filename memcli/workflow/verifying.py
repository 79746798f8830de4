"""Trains a step of the original and of the planned graph for real, and compares everything."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from memcli.engines.analysis import Analysis, ShapeRequest, analyze, graph_environment
from memcli.engines.gpus import check_gpu
from memcli.engines.live_memory import available_bytes
from memcli.engines.mxnet_step import train_step
from memcli.errors import BadInput, EngineFailed, MemcliError
from memcli.formats.mxnet_symbol import SymbolFile
from memcli.formats.onnx_plan_record import OnnxPlan
from memcli.formats.plan_record import PlanRecord
from memcli.formats.symbol_edits import reservation, scaled_reservation
from memcli.graph.training import Flags, Plan
from memcli.memory.mxnet_model import DEFAULT_MATCH_RANGE
from memcli.memory.stages import stages
from memcli.rewrites.gradients import without_gradient
from memcli.rewrites.prepare import prepare
from memcli.units import format_size
from memcli.workflow.planning import read_symbol, shape_notes

if TYPE_CHECKING:
    from memcli.workflow.onnx_workers import Split
    from memcli.workflow.torch_workers import WorkerRun

Progress = Callable[[str, float | None], None]

# Part of the free memory that a step may take; the rest is for buffers and the other programs.
_USABLE = 0.8
_NODE_NAME = re.compile(r"n(\d+)(?:_|$)")
PLAN_TAKEN_OFF = "the planned file with its plan taken off"


class _Hashed(Protocol):
    sha256: str


class _Shaped(Protocol):
    inputs: dict[str, list[int]]
    dtype: str


HashedFile = TypeVar("HashedFile", bound=_Hashed)
Bound = TypeVar("Bound", bound=_Shaped)


@dataclass
class Compared:
    """Arrays of one kind in both runs."""

    compared: int = 0
    bit_equal: int = 0
    max_abs_diff: float = 0.0
    max_rel_diff: float = 0.0
    different: list[str] = field(default_factory=list)
    nonfinite: int = 0


@dataclass
class Run:
    """One graph's step. Sizes in bytes, times in seconds."""

    estimated_bytes: int
    measured_bytes: int
    step_seconds: float
    workspace_bytes: int
    reserved_bytes: int = 0  # what CUDA's caching allocator took from the card, where it was asked


@dataclass
class StageMeasured:
    """Estimate and measurement at the end of a stage's forward, and at the most it sees."""

    index: int
    first: str
    last: str
    operators: int
    estimated_forward: int
    measured_forward: int | None
    estimated_bytes: int
    measured_bytes: int | None


@dataclass
class Verified:
    """The outcome of a verification."""

    planned_path: str
    original: str  # which original, in words
    device: str
    shapes: dict[str, list[int]]
    baseline: Run
    planned: Run
    outputs: Compared
    gradients: Compared
    states: Compared
    stages: list[StageMeasured]
    method: str
    scaled: dict[str, Any] | None  # batch that was asked for, used, and why
    notes: list[str]
    seed: int
    engine: str = "mxnet"
    # Where several workers trained together: runs above are the most that any of them took,
    # compared are all their arrays.
    split: Split | None = None
    workers: list[WorkerRun] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every array is equal to the bit."""
        parts = (self.outputs, self.gradients, self.states)
        return all(part.compared == part.bit_equal for part in parts)


def find_original(
    planned: SymbolFile, record: PlanRecord | None, given: str | None
) -> tuple[SymbolFile, str]:
    """The graph without the plan, and where it comes from, in words.

    Raises:
        BadInput: nothing says what the original is.
    """
    if given is not None:
        original = read_symbol(given)
        return original.stripped(), given
    if record is None:
        if planned.existing_marks():
            stripped = SymbolFile.from_bytes(
                planned.with_marks((), None), planned.path, planned.sha256
            )
            return stripped, "the file without its marks"
        raise BadInput(
            f"{planned.path} carries no plan, so there is nothing to compare it with",
            "make one with memcli plan, or name the original with --original",
        )
    beside = original_beside(
        planned.path, record.original_name, record.original_sha256, read_symbol
    )
    return beside or (planned.stripped(), PLAN_TAKEN_OFF)


def original_beside(
    planned_path: str, name: str, sha256: str, read: Callable[[str], HashedFile]
) -> tuple[HashedFile, str] | None:
    """The file that a plan was made from, in the plan's folder or the current one, and where it is.

    ``read`` may raise MemcliError: a file that cannot be read is not the one.
    """
    for folder in {os.path.dirname(os.path.abspath(planned_path)), os.getcwd()}:
        path = os.path.join(folder, os.path.basename(name))
        if not os.path.isfile(path):
            continue
        try:
            original = read(path)
        except MemcliError:
            continue
        if original.sha256 == sha256:
            return original, f"{os.path.relpath(path)} (its SHA-256 matches)"
    return None


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
        text = record.environment.get("NNVM_EXEC_MATCH_RANGE", str(DEFAULT_MATCH_RANGE))
        if not text.isdigit() or int(text) > 1 << 30:
            raise BadInput(f"{source.path}: its plan has NNVM_EXEC_MATCH_RANGE={text!r}")
        match_range = int(text)
        node_of = analysis.graph.node_of_position()
        if record.n_nodes == source.node_count:
            # Positions hold for the file as memcli wrote it; each is a cut's end of its own.
            cuts = [[node_of[p]] for p in record.cuts if p in node_of and not flags[node_of[p]]]
    return Plan(strategy, flags, cuts, match_range)


def needed_bytes(analysis: Analysis) -> int:
    """What a verifying process takes at most: pool, parameters twice, and a copy to compare."""
    pool = analysis.model.evaluate(analysis.model.none()).pool_bytes
    arguments = sum(a["bytes"] for a in analysis.arguments)
    largest = max((a["bytes"] for a in analysis.arguments), default=0)
    return pool + 2 * arguments + analysis.state_bytes + 2 * largest + (400 << 20)


def _scaled_request(request: ShapeRequest, old: int, new: int) -> ShapeRequest:
    """The shapes with a leading dimension of ``old``, or a multiple, scaled to ``new``."""
    shapes = {
        n: [s[0] // old * new, *s[1:]] if s and s[0] % old == 0 else s
        for n, s in request.shapes.items()
    }
    return dataclasses.replace(request, shapes=shapes, batch=None, unnamed=None)


def batch_of(analysis: Analysis) -> int:
    """The leading dimension of the first input."""
    roles = {a["name"]: a["role"] for a in analysis.arguments}
    leading = [s[0] for n, s in analysis.inputs.items() if roles.get(n) == "input" and s]
    return leading[0] if leading else 1


def fit_batch(
    analysis: Bound,
    asked: int,
    free: int,
    needed_by: Callable[[Bound], int],
    analysis_of: Callable[[ShapeRequest], Bound],
) -> tuple[Bound, dict[str, Any] | None]:
    """The analysis at a batch whose unplanned step fits ``free`` bytes, and what was changed.

    ``asked``: the batch of ``analysis``. ``needed_by``: bytes that verifying takes at most.

    Raises:
        EngineFailed: not even a batch of one fits.
    """
    batch = asked
    scaled = None
    while True:
        needed = needed_by(analysis)
        if needed <= free:
            return analysis, scaled
        if batch <= 1:
            raise EngineFailed(
                f"a step of this graph takes {format_size(needed)} even at batch {batch}, and "
                f"{format_size(free)} are free here",
                "verify on a machine with more memory, or at a smaller --shape",
            )
        smaller = max(1, int(batch * free / needed * 0.95))
        smaller = 1 << (min(smaller, batch - 1).bit_length() - 1)
        scaled = {
            "from_batch": asked,
            "to_batch": smaller,
            "why": f"a step takes {format_size(needed)}, and {format_size(free)} are free",
        }
        request = ShapeRequest(shapes=dict(analysis.inputs), dtype=analysis.dtype)
        analysis = analysis_of(_scaled_request(request, batch, smaller))
        batch = smaller


def scaled_notes(scaled: dict[str, Any] | None) -> list[str]:
    """What :func:`fit_batch` changed, in words."""
    if scaled is None:
        return []
    return [f"batch {scaled['from_batch']} scaled down to {scaled['to_batch']}: {scaled['why']}"]


def result_notes(
    first: dict[str, Any], second: dict[str, Any], compared: dict[str, Compared]
) -> list[str]:
    """What is odd about two steps' results, in words; counts what is not finite in ``compared``."""
    notes = []
    for kind in ("outputs", "gradients", "states"):
        bad = int(first["nonfinite"][kind])
        compared[kind].nonfinite = bad
        if bad:
            notes.append(f"{bad} {kind} of the original hold NaN or infinity at this seed")
    if not (first["repeatable"] and second["repeatable"]):
        notes.append("a second step from the same seed gave other bits: this graph is not "
                     "deterministic on this device")  # fmt: skip
    return notes


def verify(
    planned_path: str,
    *,
    original: str | None = None,
    gpu: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    request: ShapeRequest | None = None,
    on_progress: Progress | None = None,
) -> Verified:
    """Train one step of both graphs, each in a process of its own, and compare.

    ``request``: shapes in place of those of the plan. ``gpu``: number of the card, None the CPU.
    ``steps``: how many are timed after the first; None: 5 on a card, none on the CPU.

    Raises:
        BadInput: no plan, no original, shapes unknown.
        EngineFailed: MXNet or the device is missing, or a step crashed.
    """
    if gpu is not None:
        check_gpu(gpu)

    def report(text: str, fraction: float | None = None) -> None:
        if on_progress:
            on_progress(text, fraction)

    planned = read_symbol(planned_path)
    record = planned.plan()
    source, where = find_original(planned, record, original)
    asked = shapes_to_verify(record, request)

    environment = dict(record.environment) if record else {}

    def analysis_of(file: SymbolFile, shapes: ShapeRequest) -> Analysis:
        none = without_gradient(file.raw)
        needed = graph_environment(environment) if file is planned else {}
        return analyze(
            file.raw, shapes, no_gradient=none, environment=needed, on_progress=on_progress
        )

    analysis = analysis_of(planned, asked)
    notes = shape_notes(analysis)
    scaled = None
    if gpu is None:
        free = int(available_bytes() * _USABLE)
        analysis, scaled = fit_batch(
            analysis, batch_of(analysis), free, needed_bytes,
            lambda shapes: analysis_of(planned, shapes),
        )  # fmt: skip
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
    # MXNet's plain convolution refuses to run for nothing, oneDNN's does not.
    unread = analysis.model.unread_copies(plan.recompute)
    onednn = any(analysis.graph.op(v) == "Convolution" for v in unread)
    if onednn and gpu is None:
        notes.append(
            "oneDNN is on: the plan runs convolutions whose copy nobody reads, which MXNet's plain "
            "code refuses; oneDNN's own buffers are in the measurement"
        )
    device = "cpu" if gpu is None else f"gpu:{gpu}"
    with tempfile.TemporaryDirectory(prefix="memcli-") as folder:
        results = []
        for name, file, facts, env in (
            ("original", source, base_analysis, {}),
            ("planned", planned, analysis, environment),
        ):
            text, _ = prepare(file.raw, marked=None)
            none = {f"n{position}" for position in without_gradient(file.raw)}
            path = Path(folder) / f"{name}.json"
            path.write_text(text)
            job = {
                "symbol": str(path),
                **facts.binding(),
                "env": env,
                "device": device,
                "seed": seed,
                "save": str(Path(folder) / f"{name}.npz"),
                "onednn": onednn,
                "grad_req": {
                    a["prepared"]: "null" if a["prepared"] in none else "write"
                    for a in facts.arguments
                },
                "repeat": (0 if gpu is None else 5) if steps is None else steps,
                "trace": True,
            }

            def tell(text: str, fraction: float | None = None, name: str = name) -> None:
                report(f"{name}: {text}", fraction)

            results.append(
                train_step(
                    job, workdir=Path(folder), on_progress=tell,
                    doing=f"training one step of the {name} graph",
                )
            )  # fmt: skip
        report("comparing", None)
        compared = compare_files(
            Path(folder) / "original.npz", Path(folder) / "planned.npz",
            lambda kind, index: _name(base_analysis, kind, index),
        )  # fmt: skip
    first, second = results
    notes += result_notes(first, second, compared)
    if scaled or request is not None:
        notes.append("estimates are for the shapes that were run, not for those of the plan")
    return Verified(
        planned_path=planned_path,
        original=where,
        device=first["device"],
        shapes=analysis.inputs,
        baseline=_run(base_analysis, base_plan, first),
        planned=_run(analysis, plan, second),
        outputs=compared["outputs"],
        gradients=compared["gradients"],
        states=compared["states"],
        stages=measured_stages(analysis, plan, second["trace"]),
        method=first["method"],
        scaled=scaled,
        notes=notes,
        seed=seed,
    )


def shapes_to_verify(
    record: PlanRecord | OnnxPlan | None, request: ShapeRequest | None
) -> ShapeRequest:
    """The plan's shapes, with what the user says in their place.

    Shapes that the user gives replace the plan's altogether: those of labels follow from them.
    """
    if record is None:
        return request or ShapeRequest()
    shapes = {name: list(shape) for name, shape in record.shapes.items()}
    result = ShapeRequest(shapes=shapes, dtype=record.dtype)
    if request is None:
        return result
    if request.dtype is not None:
        result.dtype = request.dtype
    if request.shapes or request.unnamed is not None:
        return dataclasses.replace(request, dtype=result.dtype)
    leading = [shape[0] for shape in shapes.values() if shape]
    if request.batch is not None and leading:
        result = _scaled_request(result, leading[0], request.batch)
    return result


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
    seconds = result["step_seconds"] or result["first_step_seconds"]
    timeline = analysis.model.timeline(plan.recompute, plan.match_range)
    return Run(
        # what is touched by the end of the step: MXNet allocates blocks at their first use
        estimated_bytes=int(timeline.touched_bytes[-1]),
        measured_bytes=int(result["peak_bytes"]),
        step_seconds=float(seconds),
        workspace_bytes=int(result["workspace_bytes"]),
    )


def measured_stages(
    analysis: Analysis, plan: Plan, trace: dict[str, list[list[Any]]] | None
) -> list[StageMeasured]:
    """Each stage's estimate beside what the engine had really allocated by its end."""
    listed, _, stage_of = stages(analysis.model, plan)
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


def compare_files(
    first: Path, second: Path, name_of: Callable[[str, int], str]
) -> dict[str, Compared]:
    """Compare all arrays of two steps, bit by bit; ``name_of(kind, index)`` of an array."""
    kinds = {"out": "outputs", "grad": "gradients", "aux": "states"}
    result = {kind: Compared() for kind in kinds.values()}
    with np.load(first) as a, np.load(second) as b:
        keys = [k for k in a.files if k.partition("_")[0] in kinds]
        missing = {k for k in b.files if k.partition("_")[0] in kinds} ^ set(keys)
        if missing:
            raise EngineFailed(f"the two steps gave different sets of arrays: {sorted(missing)[0]}")
        for key in keys:
            kind, _, index = key.partition("_")
            _compare(result[kinds[kind]], a[key], b[key], name_of(kind, int(index)))
    return result


def _name(analysis: Analysis, kind: str, index: int) -> str:
    if kind == "out":
        entry = int(analysis.graph.outputs[index])
        return str(analysis.graph.names[analysis.graph.entry_node[entry]])
    rows = {
        "grad": analysis.arguments,
        "aux": analysis.auxiliary,
    }[kind]
    return str(rows[index]["name"]) if index < len(rows) else f"{kind} {index}"


def _compare(into: Compared, a: Any, b: Any, name: str) -> None:
    into.compared += 1
    if a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes():
        into.bit_equal += 1
        return
    into.different.append(name)
    if a.shape != b.shape:
        into.max_abs_diff = into.max_rel_diff = float("inf")
        return
    with np.errstate(all="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        difference = np.abs(x - y)
        # equal infinities and NaN in the same place are no difference
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        difference = np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
        largest = float(difference.max(initial=0.0))
        scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
    into.max_abs_diff = max(into.max_abs_diff, largest)
    into.max_rel_diff = max(into.max_rel_diff, largest / scale if scale else largest)
