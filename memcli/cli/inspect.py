"""``memcli inspect``."""

from __future__ import annotations

import json

import click

from memcli.choices import ALL, MEMORY_MODELS
from memcli.cli.json_errors import error_entry
from memcli.cli.options import (
    frozen_option,
    import_option,
    json_option,
    parse_shapes,
    shape_options,
)
from memcli.cli.verify import newest_or_error
from memcli.errors import BadInput, EngineFailed
from memcli.units import parse_size_or_zero


@click.command("inspect")
@click.argument("model", required=False, type=click.Path())
@shape_options
@frozen_option
@import_option
@click.option(
    "--top",
    type=click.IntRange(0, 10000),
    metavar="N",
    help="Show the N largest tensors. [default: 5; with --full and --json 10]",
)
@click.option(
    "--full",
    is_flag=True,
    help="Show everything: operators by kind, stages, tensors. [default: what fits one screen]",
)
@click.option("--nodes", is_flag=True, help="List every operator node with its output and mark.")
@click.option(
    "--memory-model",
    "models",
    type=click.Choice([ALL, *MEMORY_MODELS]),
    multiple=True,
    help="Show what the network, without any plan, takes under another framework's buffers: "
    + "; ".join(f"{name}: {text}" for name, text in MEMORY_MODELS.items())
    + f"; {ALL}. Repeatable.",
)
@click.option(
    "--overhead",
    metavar="SIZE",
    help="With --memory-model: add SIZE to each, for what no model knows (CUDA's context, "
    "libraries, work space of convolutions). [default: nothing]",
)
@json_option
def command(
    model: str | None,
    shapes: tuple[str, ...],
    batch: int | None,
    dtype: str | None,
    frozen: tuple[str, ...],
    imports: tuple[str, ...],
    top: int | None,
    full: bool,
    nodes: bool,
    models: tuple[str, ...],
    overhead: str | None,
    as_json: bool,
) -> int:
    """Show what MODEL, saved or planned, holds and where its training memory goes.

    Nothing is changed and nothing is computed. A planned graph is shown under its plan, beside
    the same graph without it. MODEL may be -, standard input.
    Without it: the newest plan made from this folder.

    An ONNX file that cannot be planned is shown as far as it can be read, and why it cannot goes
    to standard error; the exit status is 0, and 3 where PyTorch is what is missing.
    """
    from memcli.commands.inspect import inspect
    from memcli.frameworks.figures import ModelRequest
    from memcli.reports.console import notes_console, output_console, progress_bar
    from memcli.reports.inspect_json import inspect_json
    from memcli.reports.inspect_report import next_step, print_inspected

    if overhead is not None and not models:
        raise BadInput("--overhead goes with --memory-model")
    asked = ModelRequest(models, 0 if overhead is None else parse_size_or_zero(overhead))
    request = None
    if shapes or batch is not None or dtype is not None or frozen or imports:
        request = parse_shapes(shapes, batch, dtype, frozen, imports)
    path = model or newest_or_error("inspect")
    with progress_bar("inspecting") as report:
        inspected = inspect(
            path,
            request,
            dtype=dtype,
            top=10 if top is None else top,
            models=asked,
            on_progress=report,
        )
    notes = notes_console()
    under = inspected.under_models
    for note in [*inspected.notes, *(under.notes if under else ())]:
        notes.print(f"note: {note}", markup=False, soft_wrap=True)
    problem = inspected.onnx.problem if inspected.onnx else None
    if problem is not None:
        text = "\n  ".join(problem.lines())
        notes.print(f"cannot be planned: {text}", markup=False, soft_wrap=True)
    failed = problem if isinstance(problem, EngineFailed) else None
    if as_json:
        result = inspect_json(inspected, nodes=nodes)
        if failed is not None:
            result["error"] = error_entry(failed.exit_status, failed.message, failed.hint)
        print(json.dumps(result))
    else:
        console = output_console()
        print_inspected(console, inspected, nodes=nodes, full=full, top=top)
        console.print(next_step(inspected), markup=False, soft_wrap=True)
    return failed.exit_status if failed is not None else 0
