"""What ``memcli inspect`` says of a file and of its plan, as lines."""

from __future__ import annotations

from collections.abc import Sequence

from memcli.formats.onnx_plan_record import OnnxPlan
from memcli.reports.tables import flops, percent
from memcli.units import format_size
from memcli.workflow.inspected import Held, Inspected, OnnxFacts


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


def _symbol_file(inspected: Inspected) -> list[tuple[str, str]]:
    parameters = format_size(inspected.parameter_bytes)
    return [
        ("model", f"{inspected.path}: MXNet symbol, {inspected.nodes} nodes, of which "
                  f"{inspected.operators} operators"),
        ("SHA-256", inspected.sha256),
        ("dtype", inspected.dtype),
        ("parameters", f"{parameters}; their gradients {parameters}; states "
                       f"{format_size(inspected.state_bytes)}: not in the memory below"),
        ("forward", f"{flops(inspected.forward_flops)}FLOP"),
    ]  # fmt: skip


def _onnx_file(inspected: Inspected, onnx: OnnxFacts) -> list[tuple[str, str]]:
    known = inspected.unplanned is not None
    sets = [f"{domain} {version}" for domain, version in onnx.opsets.items() if domain]
    more = f" (and {', '.join(sets)})" if sets else ""
    source = f", by {onnx.producer}" if onnx.producer else ""
    run = f", of which {inspected.operators} run" if known else ""
    what = f"ONNX, operator set {onnx.opsets['']}{more}{source}, {inspected.nodes} nodes"
    if inspected.format == "caffe-prototxt":
        what = f"Caffe net, phase TRAIN, {inspected.nodes} operators as ONNX has them"
    pairs = [
        ("model", f"{inspected.path}: {what}{run}"),
        ("SHA-256", inspected.sha256),
        ("dtype", inspected.dtype),
        ("parameters", f"{_held(onnx.parameters)}, their gradients as much again; not in the "
                       "memory below"),
        ("states", _held(onnx.states)),
    ]  # fmt: skip
    if known:
        pairs += [
            ("forward", f"{flops(inspected.forward_flops)}FLOP"),
            ("memory of", f"PyTorch on {'CUDA' if onnx.device == 'cuda' else 'the CPU'}"),
        ]
    pairs += [("lost" if i == 0 else "", loss.text) for i, loss in enumerate(onnx.losses)]
    return pairs


def _held(held: Held) -> str:
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
    ran = f"{plan.marked} nodes marked, {plan.recomputed} operators run again"
    if inspected.unplanned is None:
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
    if isinstance(record, OnnxPlan):
        engine = f"PyTorch on {'CUDA' if record.device == 'cuda' else 'the CPU'}"
        if record.workers > 1:
            engine += f", {record.workers} workers: shapes and figures are of each"
        pairs.append(("for", engine))
        pairs += [("restored", text) for text in record.as_training]
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
        "baseline_bytes": "as saved",
        "planned_bytes": "planned",
        "live_peak_bytes": "live peak",
        "lower_bound_bytes": "lower bound",
    }
    shown = [f"{word} {format_size(memory[k])}" for k, word in words.items() if k in memory]
    if "fraction" in recompute:
        shown.append(f"recomputed {percent(float(recompute['fraction']))}")
    return ", ".join(shown) or "none"
