"""A plan as tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from memcli.graph.cost import Cost
from memcli.reports.model_facts import time_share
from memcli.reports.step_total import step_total_json, step_total_table
from memcli.reports.tables import add_folded, facts, flops, mib, new_table, percent
from memcli.reports.workers_report import split_json, split_text
from memcli.results.planned import Planned, Step
from memcli.results.stage import Stage
from memcli.units import format_size


def plan_json(planned: Planned) -> dict[str, Any]:
    """The object of ``plan --json`` (see the command line's contract)."""
    result = _plan_json(planned)
    if planned.recompute_bound:
        result["recompute"]["lower_bound_flops"] = planned.recompute_bound
    if planned.inference:
        result["memory"] |= planned.inference.recorded()
    if planned.marked is not None:
        result |= {
            "engine": planned.engine,
            "device": planned.device,
            "marks": planned.marked,
            "as_training": planned.restored,
        }
        result["optimality"] |= {
            "within": planned.bound_within,
            "lower_bound_bytes": max(planned.lower_bound, planned.lower_bound_within),
        }
    if planned.step_total is not None:
        result["step_total"] = step_total_json(planned.step_total)
    if planned.split is not None:
        result["split"] = split_json(planned.split)
    return result


def _plan_json(planned: Planned) -> dict[str, Any]:
    analysis, cost = planned.analysis, planned.cost
    notes = planned.plan.notes
    return {
        "schema": 1,
        "model": {
            "path": planned.source.path,
            "format": planned.format,
            "sha256": planned.original[1],
            "nodes": planned.source.node_count,
            "operators": planned.operator_count,
        },
        "shapes": analysis.inputs,
        "assumed_shapes": analysis.assumed,
        "dtype": analysis.dtype,
        "frozen": list(analysis.frozen),
        "loss_added": analysis.loss_heads > 0,
        "strategy": planned.strategy,
        "found_by": planned.plan.strategy,
        "output": planned.output,
        "kernels": planned.kernels or None,
        "environment": planned.environment,
        "rewrites": [*planned.rewrites],
        "barriers": planned.barriers,
        "memory": {
            "baseline_bytes": planned.baseline.pool_bytes,
            "planned_bytes": cost.pool_bytes,
            "live_peak_bytes": cost.live_peak_bytes,
            "lower_bound_bytes": planned.lower_bound,
            "baseline_allocated_bytes": planned.baseline_allocated,
            "planned_allocated_bytes": planned.allocated,
            "baseline_live_peak_bytes": planned.baseline.live_peak_bytes,
            "parameter_bytes": analysis.parameter_bytes,
            "parameter_gradient_bytes": analysis.parameter_gradient_bytes,
            "state_bytes": analysis.state_bytes,
            "on_card": asdict(planned.on_card) if planned.on_card else None,
        },
        "recompute": {
            "flops": cost.recompute_flops,
            "forward_flops": cost.forward_flops,
            "fraction": cost.recompute_fraction,
        },
        "cost": {"kind": planned.cost_of, "fraction": cost.time_fraction},
        "stages": [stage_json(stage) for stage in planned.stages],
        "search": {
            "evaluated": planned.evaluated,
            "seconds": planned.seconds,
            "threshold_mb": notes.get("threshold_mb"),
        },
        "optimality": {"proven": planned.gap == 0.0, "gap": planned.gap},
        "notes": planned.notes,
    }


def stage_json(stage: Stage) -> dict[str, Any]:
    """One stage of ``plan --json``."""
    return {
        "index": stage.index,
        "first": stage.first,
        "last": stage.last,
        "operators": stage.operators,
        "kept_bytes": stage.kept_bytes,
        "forward_bytes": stage.forward_bytes,
        "peak_bytes": stage.peak_bytes,
        "recompute_flops": stage.recompute_flops,
        "live_forward_bytes": stage.live_forward_bytes,
        "live_backward_bytes": stage.live_backward_bytes,
    }


_POOL_STAGES = "Stages (MiB; live: most alive while it runs; pool: at its end; FLOPs: recomputed)"
LIVE_STAGES = "Stages (MiB; most alive in the stage's forward and backward; FLOPs: recomputed)"


def stage_table(console: Console, stages: list[Stage], title: str = _POOL_STAGES) -> None:
    """What each stage keeps, and what memory comes to in its passes.

    Beside a pool, which only grows, are the tensors alive in it.
    """
    pooled = any(s.live_backward_bytes is not None for s in stages)
    passes = ["live fwd", "live bwd", "pool"] if pooled else ["forward", "backward"]
    table = new_table(
        title,
        [
            ("#", "right"),
            ("from", "left"),
            ("to", "left"),
            ("ops", "right"),
            ("kept", "right"),
            *((heading, "right") for heading in passes),
            ("FLOPs", "right"),
        ],
    )
    rows = []
    for s in stages:
        sizes = [s.forward_bytes, s.peak_bytes]
        if pooled:
            sizes = [s.live_forward_bytes or 0, s.live_backward_bytes or 0, s.peak_bytes]
        rows.append(
            [
                str(s.index),
                s.first,
                s.last,
                str(s.operators),
                mib(s.kept_bytes),
                *map(mib, sizes),
                flops(s.recompute_flops),
            ]
        )
    if rows:
        add_folded(table, rows, names=(1, 2), width=console.width)
        console.print(table)


def _live(cost: Cost) -> str:
    """The live peak beside a pool; nothing where memory is counted by live bytes."""
    if cost.live_peak_bytes == cost.pool_bytes:
        return ""
    return f" (live peak {format_size(cost.live_peak_bytes)})"


def _bound(planned: Planned) -> str:
    """What no plan gets under, and where it is more none within the limit on recomputation."""
    if not planned.lower_bound:
        return "none was proven within the time limit"
    every = format_size(planned.lower_bound)
    if planned.lower_bound_within <= planned.lower_bound:
        return f"{every} (of every plan of this kind)"
    return (
        f"{format_size(planned.lower_bound_within)} (of every plan that recomputes at most "
        f"{percent(planned.bound_within or 0.0)}; {every} of every plan of this kind)"
    )


ONEDNN_NEEDED = (
    "the plan recomputes convolutions whose output nobody reads: oneDNN (MXNet's default on CPUs) "
    "and cuDNN run it, MXNet's own kernels refuse it. oneDNN's layouts and buffers are not in the "
    "figures. --kernels plain plans without"
)


def _onednn_said(planned: Planned) -> str:
    """What the variable is for that switches oneDNN off."""
    if "MXNET_MKLDNN_ENABLED" not in planned.environment:
        return ""
    return (
        "; oneDNN, MXNet's default on CPUs, takes layouts and buffers of its own beside the "
        "figures: memcli verify measures both"
    )


def _gradients(analysis: Step) -> str:
    """What the gradients of parameters take, in words."""
    if not analysis.frozen:
        return "as much again for their gradients"
    return f"{format_size(analysis.parameter_gradient_bytes)} for gradients of those trained"


def print_plan(console: Console, planned: Planned) -> None:
    """The whole report of ``memcli plan`` but its last line."""
    analysis, cost, base = planned.analysis, planned.cost, planned.baseline
    titled = {} if planned.pooled else {"title": LIVE_STAGES}
    stage_table(console, planned.stages, **titled)
    part = cost.pool_bytes / base.pool_bytes if base.pool_bytes else 1.0
    shapes = list(analysis.inputs.items())
    shown = "; ".join(f"{n} {','.join(map(str, s))}" for n, s in shapes[:3])
    more = f"; and {len(shapes) - 3} more" if len(shapes) > 3 else ""
    threshold = planned.plan.notes.get("threshold_mb")
    strategy = planned.strategy
    if planned.plan.strategy != strategy:
        strategy += f": {planned.plan.strategy}"
    if threshold is not None:
        strategy += f", threshold {threshold} MB"
    pairs = [
        ("inputs", f"{shown}{more} ({analysis.dtype})"),
        ("strategy", f"{strategy} ({planned.evaluated} plans tried in {planned.seconds:.1f} s)"),
        ("baseline", f"{format_size(base.pool_bytes)}{_live(base)}"),
        ("planned", f"{format_size(cost.pool_bytes)} = {percent(part)} of it{_live(cost)}"),
        (
            "recomputed",
            f"{flops(cost.recompute_flops)}FLOP = "
            f"{percent(cost.recompute_fraction)} of one forward pass"
            f"{time_share(cost, planned.cost_of)}",
        ),
        ("lower bound", _bound(planned)),
        (
            "parameters",
            f"{format_size(analysis.parameter_bytes)}, {_gradients(analysis)}, states "
            f"{format_size(analysis.state_bytes)}: not in the above",
        ),
    ]
    rewrites = [*planned.rewrites]
    if planned.barriers:
        rewrites.append(f"{planned.barriers} save barriers")
    if rewrites:
        pairs.insert(5, ("rewritten", ", ".join(rewrites)))
    if planned.recompute_bound:
        least = planned.recompute_bound / cost.forward_flops
        pairs.insert(
            5,
            (
                "at least",
                f"{percent(least)} of one forward pass, proven, under every plan within the budget",
            ),
        )
    if planned.allocated < 0.99 * cost.pool_bytes:
        pairs.insert(
            4,
            (
                "taken",
                f"{format_size(planned.allocated)} of the planned, "
                f"{format_size(planned.baseline_allocated)} of the baseline: MXNet adds gradients "
                "in place and never touches the blocks that this leaves unused",
            ),
        )
    if planned.on_card is not None:
        card = planned.on_card
        pairs.insert(
            4,
            (
                "reserved",
                f"{format_size(card.reserved)} of the card under the plan, "
                f"{format_size(card.baseline_reserved)} by the baseline, with parameters, "
                f"gradients, inputs and cuBLAS's {format_size(card.workspaces)}; no optimizer, no "
                "context",
            ),
        )
    if planned.marked is not None:
        counts = planned.marked
        pairs.insert(2, ("device", f"{planned.device} (PyTorch)"))
        if planned.split is not None:
            pairs.append(
                (
                    "workers",
                    f"{split_text(planned.split)}; all figures are of each. "
                    "DistributedDataParallel's buckets take as much as the gradients",
                )
            )
        pairs.insert(
            6,
            (
                "tensors",
                f"{counts['kept']} kept, {counts['again']} dropped and recomputed once, "
                f"{counts['each']} at each need",
            ),
        )
    if planned.kernels == "any":
        pairs.append(("kernels", ONEDNN_NEEDED))
    if planned.inference and planned.inference.costs:
        least, most = planned.inference.baseline_bytes, planned.inference.planned_bytes
        pairs.append(
            (
                "inference",
                f"{format_size(most)} with this file, {format_size(least)} without its "
                "plan: for inference take the plan off (memcli strip); to train a part "
                "of the parameters plan with --frozen",
            )
        )
    if not planned.device:
        pairs.append(
            (
                "devices",
                "one; on several that share the batch each runs this graph: plan it for one's part",
            )
        )
    if analysis.frozen:
        also = "; the inputs have no gradient either" if planned.pooled else ""
        pairs.append(("frozen", f"{', '.join(analysis.frozen)}{also}"))
    if planned.environment:
        text = " ".join(f"{k}={v}" for k, v in planned.environment.items())
        pairs.append(("environment", f"{text} (train with it{_onednn_said(planned)})"))
    facts(console, pairs)
    if planned.step_total is not None:
        step_total_table(console, planned.step_total)
