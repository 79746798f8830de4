"""From a planned file to groups of layers that a framework's own checkpoints can wrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memcli.engines.torch.planning import analyze_file, flags_of
from memcli.engines.torch.record import TorchAnalysis
from memcli.engines.torch.tensors import places
from memcli.engines.verification import shapes_to_verify
from memcli.errors import AnswerIsNo, BadInput
from memcli.export.layer_units import Path, prefix_of, units_of
from memcli.export.module_groups import ModuleSearch
from memcli.export.run_groups import RunSearch
from memcli.export.scopes import Group, Grouping, ScopeCosts
from memcli.formats.detect import Model
from memcli.formats.model_file import read_model
from memcli.formats.registry import FORMATS
from memcli.formats.scopes import Scopes
from memcli.formats.trained_file import TrainedFile
from memcli.marks import AUXILIARY, RESULTS
from memcli.quoting import shown_path
from memcli.request import Progress, ShapeRequest
from memcli.results.exported import Exported, WrappedGroup

# What a policy of PyTorch's selective checkpointing can count, by the operators of the file.
_KINDS = {
    "Conv": "convolution",
    "ConvTranspose": "convolution",
    "Gemm": "product",
    "MatMul": "product",
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), "convolution"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "convolution"),
    **dict.fromkeys(("linear", "addmm", "mm", "bmm", "matmul"), "product"),
}
# PyTorch may run a product within one of these, or make several of it.
_HIDE_PRODUCTS = {
    *("Softmax", "Einsum", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention"),
    *("einsum", "lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"),
}


def export_plan(model: Model, target: str, on_progress: Progress | None = None) -> Exported:
    """``memcli export PLANNED --to TARGET``: groups for one of :data:`TARGETS`.

    Raises:
        BadInput: the file cannot be read, or carries no plan.
        AnswerIsNo: nothing that the framework can wrap takes less memory than no plan.
        EngineFailed: PyTorch, whose memory is counted, is missing or crashed.
    """
    file: TrainedFile = read_model(model, ShapeRequest(), as_planned=True)
    path = file.path
    if file.format == "pt2" and target != "torch":
        raise BadInput(
            f"{shown_path(path)}: is a program of PyTorch, which {target} has no layers of",
            "--to torch writes the modules to wrap",
        )
    plan = file.plan()
    if plan is None:
        out = f"planned.{FORMATS[file.format].ending}"
        raise BadInput(
            f"{shown_path(path)}: carries no plan to export",
            f"make one first: memcli plan {shown_path(path)} -o {out}",
        )
    analysis = analyze_file(file, shapes_to_verify(plan, None), plan.device, on_progress)
    if on_progress:
        on_progress("grouping layers", None)
    flags = flags_of(file, analysis, plan.marks)
    scopes = file.scopes()
    names = [step["name"] for step in analysis.steps]
    at = places(analysis)
    costs = ScopeCosts(analysis.model, flags)
    notes: list[str] = []
    if target == "torch":
        scopes = _dotted(scopes, file)
        paths = [scopes.paths[p] if p >= 0 else () for p in at]
        heavy = _heavy(analysis)
        found = ModuleSearch(
            costs, paths, scopes.sequences, scopes.called.__contains__, heavy
        ).search()
        root: Path = ()
    else:
        paths = [scopes.paths[p] if p >= 0 else () for p in at]
        made = _made(analysis)
        found = RunSearch(costs, units_of(paths, names, made, costs.flow)).search()
        root = prefix_of(p for p, size in zip(paths, made.tolist(), strict=True) if size)
    if not any(scopes.paths):
        notes.append("the file names no modules or layers: what is wrapped are its nodes, by name")
    baseline = costs.model.exact.evaluate(costs.model.none())
    if not found.groups or found.cost.live_peak_bytes >= baseline.live_peak_bytes:
        raise AnswerIsNo(
            f"{shown_path(path)}: no {'modules' if target == 'torch' else 'layers'} can be wrapped "
            "so that less memory is taken",
            "memcli.torch.apply follows the plan operator by operator" if target == "torch" else "",
        )
    separator = "." if target == "torch" else "/"
    return Exported(
        source=file,
        plan=plan,
        target=target,
        origin=scopes.origin,
        analysis=analysis,
        operator_count=len(analysis.steps),
        groups=[
            _wrapped(group, costs, found, analysis, root, separator)
            for group in sorted(found.groups, key=lambda g: min(g.steps))
        ],
        repeated=[_name(unit.path, root, separator) for unit in found.repeated],
        baseline=baseline,
        planned=costs.plan_cost,
        cost=found.cost,
        evaluated=costs.evaluated,
        notes=notes,
    )


def _wrapped(
    group: Group,
    costs: ScopeCosts,
    found: Grouping,
    analysis: TorchAnalysis,
    root: Path,
    separator: str,
) -> WrappedGroup:
    flow = costs.flow
    dropped = [
        int(flow.size[s])
        for s in range(flow.n_storages)
        if int(flow.makers[s]) in group.steps
        and flow.saved[s]
        and found.marks[flow.makers[s]] & (RESULTS if flow.results[s] else AUXILIARY)
    ]
    return WrappedGroup(
        [_name(path, root, separator) for path in group.scopes],
        len({analysis.steps[s]["name"] for s in group.steps}),
        sum(dropped),
        _saved(group, analysis),
    )


def _saved(group: Group, analysis: TorchAnalysis) -> dict[str, list[int]]:
    """The saved steps as numbers among the group's calls of their kind."""
    counts: dict[str, int] = {}
    saved: dict[str, list[int]] = {}
    for step in sorted(group.steps):
        kind = _KINDS.get(analysis.steps[step]["op"])
        if kind is not None:
            number = counts[kind] = counts.get(kind, -1) + 1
            if step in group.saves:
                saved.setdefault(kind, []).append(number)
    return saved


def _heavy(analysis: TorchAnalysis) -> NDArray[np.bool_]:
    operators = [step["op"] for step in analysis.steps]
    counted = set(_KINDS)
    if _HIDE_PRODUCTS.intersection(operators):
        counted -= {operator for operator, kind in _KINDS.items() if kind == "product"}
    return np.array([operator in counted for operator in operators], bool)


def _made(analysis: TorchAnalysis) -> NDArray[np.int64]:
    trace = analysis.trace
    total = np.concatenate([[0], np.cumsum(trace.storage_bytes)])
    return (total[trace.first[1:]] - total[trace.first[:-1]]).astype(np.int64)


def _dotted(scopes: Scopes, file: TrainedFile) -> Scopes:
    """Modules for PyTorch: names with dots that stand in no scope are paths of modules."""
    if scopes.origin == "torch":
        return scopes
    root = prefix_of(scopes.paths)
    paths = [
        path[len(root) :] or tuple(name.rpartition("/")[2].split("."))
        for path, name in zip(scopes.paths, file.node_names, strict=True)
    ]
    called = {path[:k] for path in paths for k in range(1, len(path) + 1)}
    return Scopes(scopes.origin, paths, frozenset(called), frozenset())


def _name(path: Path, root: Path, separator: str) -> str:
    return separator.join(path[len(root) :] if path[: len(root)] == root else path)
