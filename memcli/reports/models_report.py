"""What a network takes under other frameworks' buffers, as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from memcli.frameworks.figures import UnderModels
from memcli.reports.tables import add_folded, facts, mib, new_table
from memcli.units import format_size


def models_table(console: Console, under: UnderModels) -> None:
    """A row for each model; the last column is the part of the first row's total."""
    table = new_table(
        "Without a plan under other frameworks' buffers, MiB",
        [
            ("model", "left"),
            ("outputs", "right"),
            ("gradients", "right"),
            ("copies", "right"),
            ("beside", "right"),
            ("total", "right"),
            ("part", "right"),
        ],
    )
    whole = under.figures[0].total + under.beside
    rows = [
        [
            f.name,
            mib(f.outputs),
            mib(f.gradients),
            mib(f.copies),
            mib(under.beside),
            mib(f.total + under.beside),
            f"{(f.total + under.beside) / whole:.3f}",
        ]
        for f in under.figures
    ]
    add_folded(table, rows)
    console.print(table)
    parameters = format_size(under.parameter_bytes)
    parts = [
        f"parameters {parameters}",
        f"their gradients {parameters}",
        f"states {format_size(under.state_bytes)}",
        f"inputs {format_size(under.input_bytes)}",
    ]
    if under.overhead:
        parts.append(f"overhead {format_size(under.overhead)}")
    facts(
        console,
        [("beside", "; ".join(parts)), *((f.name, f.description) for f in under.figures)],
    )


def models_json(under: UnderModels) -> list[dict[str, Any]]:
    """Rows of ``memory_models``; sizes in bytes."""
    whole = under.figures[0].total + under.beside
    return [
        {
            "name": f.name,
            "description": f.description,
            "output_bytes": f.outputs,
            "gradient_bytes": f.gradients,
            "copy_bytes": f.copies,
            "parameter_bytes": under.parameter_bytes,
            "parameter_gradient_bytes": under.parameter_bytes,
            "state_bytes": under.state_bytes,
            "input_bytes": under.input_bytes,
            "overhead_bytes": under.overhead,
            "bytes": f.total + under.beside,
            "part": (f.total + under.beside) / whole,
            "moved_buffers": f.moved,
        }
        for f in under.figures
    ]
