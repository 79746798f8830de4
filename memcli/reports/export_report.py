"""What ``memcli export`` found, as facts, a table and JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from memcli.quoting import shown_path
from memcli.reports.model_facts import model_json, shown_inputs
from memcli.reports.tables import add_folded, clip, facts, mib, new_table, percent
from memcli.results.exported import ExportCost, Exported
from memcli.units import format_size


def export_json(exported: Exported, script: str) -> dict[str, Any]:
    """The object of ``export --json``. Sizes in bytes; fractions of one forward pass."""
    e = exported
    return {
        "schema": 1,
        "model": model_json(e.source, e.source.sha256, e.operator_count),
        "target": e.target,
        "scopes_from": e.origin,
        "shapes": e.analysis.inputs,
        "dtype": e.analysis.dtype,
        "device": e.plan.device,
        "groups": [
            {
                "scopes": g.scopes,
                "operators": g.operators,
                "dropped_bytes": g.dropped_bytes,
                "saved": g.saved,
            }
            for g in e.groups
        ],
        "repeated": e.repeated,
        "unplanned": _cost(e, e.baseline),
        "plan": _cost(e, e.planned),
        "exported": _cost(e, e.cost),
        "evaluated": e.evaluated,
        "output": e.output,
        "script": script,
        "notes": e.notes,
    }


def _cost(exported: Exported, cost: ExportCost) -> dict[str, Any]:
    return {
        "live_peak_bytes": cost.live_peak_bytes,
        "recompute": {
            "flops": cost.recompute_flops,
            "fraction": exported.fraction(cost),
            "time_fraction": exported.time_fraction(cost),
        },
    }


def print_exported(console: Console, exported: Exported) -> None:
    """The report beside a script that was written to a file."""
    e = exported
    table = new_table(
        "Wrapped together (MiB that are not kept)",
        [
            ("#", "right"),
            ("from", "left"),
            ("to", "left"),
            ("operators", "right"),
            ("not kept", "right"),
        ],
    )
    width = max(12, (console.width - 34) // 2)
    add_folded(
        table,
        [
            [
                str(k),
                clip(g.scopes[0], width),
                clip(g.scopes[-1], width),
                f"{g.operators:,}",
                mib(g.dropped_bytes),
            ]
            for k, g in enumerate(e.groups)
        ],
    )
    console.print(table)
    facts(
        console,
        [
            ("inputs", shown_inputs(e.analysis)),
            ("as it is", format_size(e.baseline.live_peak_bytes)),
            ("exported", _shown(e, e.cost)),
            ("the plan", _shown(e, e.planned)),
            *(
                [("repeated", f"{len(e.repeated)} concatenations, by every group that reads them")]
                if e.repeated
                else []
            ),
        ],
    )


def _shown(exported: Exported, cost: ExportCost) -> str:
    part = cost.live_peak_bytes / max(exported.baseline.live_peak_bytes, 1)
    return (
        f"{format_size(cost.live_peak_bytes)} = {percent(part)} of it; recomputed "
        f"{percent(exported.fraction(cost))} of one forward pass "
        f"({percent(exported.time_fraction(cost))} of its time by the roofline)"
    )


def next_step(exported: Exported) -> str:
    """The last line."""
    module = shown_path(exported.output or "").rpartition("/")[2].removesuffix(".py")
    return f"wrote {exported.output}; next: from {module} import recompute (its head says how)"
