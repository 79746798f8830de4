"""What ``memcli inspect`` says of a file and of its plan, as lines."""

from __future__ import annotations

from collections.abc import Sequence

from memcli.quoting import shown as quoted
from memcli.quoting import shown_path
from memcli.reports.tables import flops, percent
from memcli.results.inspected import Inspected, OnnxFacts, TensorCount
from memcli.units import format_size


def shape_text(shape: Sequence[int | str | None] | None) -> str:
    """Dimensions as ``--shape`` takes them; a scalar has none, an open one is its name or ``?``."""
    if shape is None:
        return "-"
    return ",".join("?" if d is None else str(d) for d in shape) or "scalar"


def model_facts(inspected: Inspected) -> list[tuple[str, str]]:
    """What the file is, what it holds, and its plan."""
    pairs = _onnx_file(inspected, inspected.onnx) if inspected.onnx else _symbol_file(inspected)
    if inspected.loss_added:
        pairs.append(("loss", "none in the graph; seen under the sum of its outputs"))
    if inspected.stage_marks:
        total = sum(inspected.stage_marks.values())
        values = len(inspected.stage_marks)
        what = "value" if values == 1 else "values"
        pairs.append(("stage marks", f"{total} nodes carry mirror_stage, {values} {what}"))
    return pairs + _plan_facts(inspected)


# Of the full report's lines, those that say nothing of where the memory goes.
_ASIDE = {
    "SHA-256",
    "dtype",
    "stage marks",
    "original",
    "its figures",
    "forward",
    "states",
}


def short_facts(inspected: Inspected) -> list[tuple[str, str]]:
    """Those of :func:`model_facts` that the memory of a step is to be read with."""
    inputs = "; ".join(f"{t.name} {shape_text(t.shape)}" for t in inspected.inputs[:3])
    more = len(inspected.inputs) - 3
    shapes = f"{inputs}{f'; and {more} more' if more > 0 else ''} ({inspected.dtype})"
    pairs = [pair for pair in model_facts(inspected) if pair[0] not in _ASIDE]
    first = [pair for pair in pairs if pair[0] == "model"]
    rest = [pair for pair in pairs if pair[0] not in ("model", "made for")]
    return [*first, ("inputs", shapes), *rest]


def _symbol_file(inspected: Inspected) -> list[tuple[str, str]]:
    parameters = format_size(inspected.parameter_bytes)
    gradients = format_size(inspected.parameter_gradient_bytes or 0)
    return [
        (
            "model",
            f"{shown_path(inspected.path)}: MXNet symbol, {inspected.nodes} nodes, of which "
            f"{inspected.operators} operators",
        ),
        ("SHA-256", inspected.sha256),
        ("dtype", inspected.dtype),
        (
            "parameters",
            f"{parameters}; their gradients {gradients}; states "
            f"{format_size(inspected.state_bytes)}: not in the memory below",
        ),
        ("forward", f"{flops(inspected.forward_flops)}FLOP"),
    ]


def _onnx_file(inspected: Inspected, onnx: OnnxFacts) -> list[tuple[str, str]]:
    known = inspected.baseline is not None
    run = f", of which {inspected.operators} run" if known else ""
    gradients = "as much again"
    if inspected.plan is not None and inspected.plan.record and inspected.plan.record.frozen:
        gradients = format_size(inspected.parameter_gradient_bytes or 0)
    pairs = [
        ("model", f"{shown_path(inspected.path)}: {onnx.described}{run}"),
        ("SHA-256", inspected.sha256),
        ("dtype", inspected.dtype),
        (
            "parameters",
            f"{_held(onnx.parameters)}, their gradients {gradients}; not in the memory below",
        ),
        ("states", _held(onnx.states)),
    ]
    if known:
        pairs += [
            ("forward", f"{flops(inspected.forward_flops)}FLOP"),
            ("memory of", f"PyTorch on {'CUDA' if onnx.device == 'cuda' else 'the CPU'}"),
        ]
    pairs += [("lost" if i == 0 else "", loss.text) for i, loss in enumerate(onnx.losses)]
    return pairs


def _held(held: TensorCount) -> str:
    if not held.count:
        return "none"
    tied = f", {held.tied} more names for some of them (tied)" if held.tied else ""
    tensors = "1 tensor" if held.count == 1 else f"{held.count} tensors"
    return f"{format_size(held.size)} in {tensors} of {held.elements:,} elements{tied}"


def _plan_facts(inspected: Inspected) -> list[tuple[str, str]]:
    plan = inspected.plan
    if plan is None:
        return [("plan", "none: nothing is recomputed")]
    pairs: list[tuple[str, str]] = []
    ran = f"{plan.marked} nodes marked, {plan.recomputed} operators recomputed"
    if inspected.baseline is None:
        ran = f"{plan.marked} nodes marked"
    if plan.record is None:
        pairs.append(("plan", f"marks of the file, not made by memcli: {ran}"))
        return pairs
    record = plan.record
    pairs += [
        ("plan", f"{plan.strategy}, by memcli {record.memcli_version}: {ran}"),
        ("original", f"{record.original_name}, SHA-256 {record.original_sha256[:16]}..."),
        ("made for", f"{_shapes(record.shapes)} ({record.dtype})"),
        ("its figures", _record_figures(record.memory, record.recompute)),
    ]
    if record.device:
        engine = f"PyTorch on {'CUDA' if record.device == 'cuda' else 'the CPU'}"
        if record.workers > 1:
            engine += f", {record.workers} workers: shapes and figures are of each"
        pairs.append(("for", engine))
        pairs += [("restored", text) for text in record.as_training]
    if plan.reserved_blocks:
        pairs.append(
            (
                "reserved",
                f"{plan.reserved_blocks} blocks of the pool, "
                f"{format_size(plan.reserved_bytes)}: the tensors below live in them",
            )
        )
    if record.frozen:
        pairs.append(("frozen", ", ".join(map(quoted, record.frozen))))
    if plan.environment:
        text = " ".join(f"{k}={v}" for k, v in plan.environment.items())
        pairs.append(("environment", f"{text} (run with it to get the planned memory)"))
    return pairs


def _shapes(shapes: dict[str, list[int]]) -> str:
    shown = [f"{name} {shape_text(shape)}" for name, shape in shapes.items()]
    more = [f"and {len(shown) - 3} more"] if len(shown) > 3 else []
    return "; ".join(shown[:3] + more)


def _record_figures(memory: dict[str, int], recompute: dict[str, int | float]) -> str:
    words = {
        "baseline_bytes": "baseline",
        "planned_bytes": "planned",
        "live_peak_bytes": "live peak",
        "lower_bound_bytes": "lower bound",
        "inference_bytes": "in inference",
        "baseline_inference_bytes": "in inference without the plan",
    }
    shown = [f"{word} {format_size(memory[k])}" for k, word in words.items() if k in memory]
    if "fraction" in recompute:
        shown.append(f"recomputed {percent(float(recompute['fraction']))}")
    return ", ".join(shown) or "none"
