"""What ``memcli inspect`` found, as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from memcli.reports.models_report import models_json
from memcli.reports.plan_report import stage_json
from memcli.results.inspected import (
    Figures,
    Inspected,
    LargeTensor,
    OnnxFacts,
    OperatorKind,
    PlanFacts,
    TensorCount,
)
from memcli.results.live_peak import PeakParts


def recomputed_part(inspected: Inspected) -> float:
    """FLOPs that the plan recomputes, as a part of a forward pass's."""
    if inspected.planned is None or not inspected.forward_flops:
        return 0.0
    return inspected.planned.recompute_flops / inspected.forward_flops


def inspect_json(inspected: Inspected, *, nodes: bool = False) -> dict[str, Any]:
    """The object of ``inspect --json``. Sizes in bytes; ``nodes``: with all operator nodes.

    Of a file that cannot be planned, figures are null, and ``problem`` says why.
    """
    known = inspected.baseline is not None
    result: dict[str, Any] = {
        "schema": 1,
        "engine": inspected.engine,
        "model": {
            "path": inspected.path,
            "format": inspected.format,
            "sha256": inspected.sha256,
            "nodes": inspected.nodes,
            "operators": inspected.operators,
        },
        "shapes": {t.name: t.shape for t in inspected.inputs} if known else {},
        "assumed_shapes": [t.name for t in inspected.inputs if t.assumed],
        "dtype": inspected.dtype,
        "loss_added": inspected.loss_added,
        "inputs": [dataclasses.asdict(t) for t in inspected.inputs],
        "outputs": [
            {"name": t.name, "shape": t.shape, "dtype": t.dtype} for t in inspected.outputs
        ],
        "plan": _plan_json(inspected.plan),
        "memory": _memory_json(inspected),
        "recompute": {
            "flops": inspected.planned.recompute_flops if inspected.planned else 0.0,
            "forward_flops": inspected.forward_flops,
            "fraction": recomputed_part(inspected),
        }
        if known
        else None,
        "live_peak": {
            "baseline": _figures_json(inspected.baseline),
            "planned": _figures_json(inspected.planned),
        },
        "operators": [_kind_json(kind, known) for kind in inspected.kinds],
        "stages": [stage_json(stage) for stage in inspected.stages],
        "largest_tensors": [_tensor_json(tensor) for tensor in inspected.largest],
        "stage_marks": inspected.stage_marks,
        "notes": inspected.notes,
    }
    if inspected.onnx is not None:
        result |= _onnx_json(inspected.onnx)
    if inspected.under_models is not None:
        result["memory_models"] = models_json(inspected.under_models)
    if nodes:
        result["nodes"] = [dataclasses.asdict(row) for row in inspected.listed]
    return result


def _memory_json(inspected: Inspected) -> dict[str, int | None]:
    baseline, planned, shown = inspected.baseline, inspected.planned, inspected.shown
    result = {
        "baseline_bytes": baseline.pool_bytes if baseline else None,
        "planned_bytes": planned.pool_bytes if planned else None,
        "live_peak_bytes": shown.live_peak_bytes if shown else None,
        "lower_bound_bytes": inspected.lower_bound if shown else None,
        "baseline_live_peak_bytes": baseline.live_peak_bytes if baseline else None,
        "baseline_kept_bytes": baseline.kept_bytes if baseline else None,
        "kept_bytes": shown.kept_bytes if shown else None,
        "parameter_bytes": inspected.parameter_bytes,
        "parameter_gradient_bytes": inspected.parameter_gradient_bytes,
        "state_bytes": inspected.state_bytes,
    }
    if inspected.engine == "torch":
        result |= {
            "baseline_with_gradients_bytes": baseline.with_parameter_gradients
            if baseline
            else None,
            "with_gradients_bytes": shown.with_parameter_gradients if shown else None,
        }
    return result


def _kind_json(kind: OperatorKind, known: bool) -> dict[str, Any]:
    result = dataclasses.asdict(kind)
    return result if known else {**dict.fromkeys(result), "op": kind.op, "count": kind.count}


def _onnx_json(facts: OnnxFacts) -> dict[str, Any]:
    problem = facts.problem
    return {
        "device": facts.device,
        "opset": facts.opsets.get("", next(iter(facts.opsets.values()), 0)),
        "opsets": facts.opsets,
        "producer": facts.producer,
        "parameters": _held_json(facts.parameters),
        "states": _held_json(facts.states),
        "losses": [
            {"kind": loss.kind, "nodes": loss.nodes, "text": loss.text} for loss in facts.losses
        ],
        "problem": {"message": problem.message, "hint": problem.hint} if problem else None,
    }


def _held_json(held: TensorCount) -> dict[str, int]:
    return {
        "tensors": held.count,
        "elements": held.elements,
        "bytes": held.size,
        "tied": held.tied,
    }


def _plan_json(plan: PlanFacts | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    result: dict[str, Any] = {
        "strategy": plan.strategy,
        "environment": plan.environment,
        "marked": plan.marked,
        "recomputed": plan.recomputed,
        "by_memcli": plan.record is not None,
        "reserved_blocks": plan.reserved_blocks,
        "reserved_bytes": plan.reserved_bytes,
    }
    if plan.record is not None:
        record = plan.record
        result |= {
            "memcli_version": record.memcli_version,
            "original": {"name": record.original_name, "sha256": record.original_sha256},
            "shapes": record.shapes,
            "dtype": record.dtype,
            "memory": record.memory,
            "recompute": record.recompute,
        }
        if record.device:
            result |= {
                "device": record.device,
                "workers": record.workers,
                "as_training": record.as_training,
            }
    return result


def _split_json(split: PeakParts) -> dict[str, int]:
    return {
        "feature_map_bytes": split.feature_maps,
        "gradient_bytes": split.gradients,
        "recomputed_bytes": split.recomputed,
        "bytes": split.total,
    }


def _figures_json(figures: Figures | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    return {
        **_split_json(figures.split),
        "at": figures.peak_at,
        "during": figures.peak_in,
        "operators": [{"op": op, **_split_json(s)} for op, s in figures.by_operator.items()],
        "stages": [{"index": i, **_split_json(s)} for i, s in enumerate(figures.by_stage)],
    }


def _tensor_json(tensor: LargeTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "op": tensor.op,
        "shape": None if tensor.shape is None else list(tensor.shape),
        "itemsize": tensor.itemsize,
        "bytes": tensor.size,
        "state": tensor.state,
    }
