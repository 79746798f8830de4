"""``memcli compare``."""

from __future__ import annotations

import json

import click

from memcli.choices import DEFAULT_BUDGETS
from memcli.cli.options import (
    SECONDS,
    SEED,
    cost_option,
    frozen_option,
    import_option,
    json_option,
    kernels_option,
    one_gpu,
    parse_shapes,
    shape_options,
    training_option,
)
from memcli.request import CPU, Devices
from memcli.search.registry import STRATEGIES


@click.command("compare")
@click.argument("model", type=click.Path())
@shape_options
@frozen_option
@import_option
@click.option(
    "--strategy",
    "strategies",
    type=click.Choice(list(STRATEGIES)),
    multiple=True,
    help="Compare this strategy, instead of all that are for any graph. Repeatable.",
)
@click.option(
    "--budget",
    "budgets",
    metavar="SIZE",
    multiple=True,
    help="A row for the least recomputation that fits SIZE (6GiB, 800MB, or 50% of the baseline),  "
    "found by auto, or by the first --strategy where auto is not among them. Repeatable. "
    f"[default: {', '.join(DEFAULT_BUDGETS)}]",
)
@click.option(
    "--time-limit",
    type=SECONDS,
    metavar="SECONDS",
    help="Maximum search time of each row, in seconds.",
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Random seed of the searches."
)
@kernels_option
@click.option(
    "--environment",
    type=click.Choice(["best", "default"]),
    default="best",
    show_default=True,
    help="Whether plans may need an environment variable at run time to reach their memory.",
)
@cost_option
@click.option(
    "--gpu",
    metavar="N",
    help="ONNX: compare plans for CUDA; no card is needed. "
    "With --cost measured: time operators on this one.",
)
@training_option
@click.option(
    "--plot",
    metavar="FILE",
    help="Draw memory against the cost of recomputation to FILE: .svg, .png, or .html (a page with "
    "the table).",
)
@click.option("--force", is_flag=True, help="Replace the plot's file where it exists.")
@json_option
def command(
    model: str,
    shapes: tuple[str, ...],
    batch: int | None,
    dtype: str | None,
    frozen: tuple[str, ...],
    imports: tuple[str, ...],
    strategies: tuple[str, ...],
    budgets: tuple[str, ...],
    time_limit: float | None,
    seed: int,
    environment: str,
    kernels: str,
    cost: str,
    gpu: str | None,
    as_training: bool,
    plot: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Plan MODEL with every strategy and within several budgets, and show all side by side.

    MODEL is an MXNet symbol JSON, an ONNX file or a Caffe prototxt. A row marked * is on the
    frontier: no other one is better in both memory and the cost of what is recomputed (--cost).
    The graph is analyzed once; nothing is written but the plot that is asked for.
    """
    from memcli.commands.compare import compare
    from memcli.formats.output import check_output, write_output
    from memcli.reports.compare_page import comparison_page
    from memcli.reports.compare_report import compare_json, print_comparison
    from memcli.reports.console import notes_console, output_console, progress_bar
    from memcli.reports.model_facts import ending
    from memcli.reports.plot import draw, plot_kind, require_matplotlib
    from memcli.search.base import Settings

    kind = None
    if plot is not None:
        kind = plot_kind(plot)
        check_output(model, plot, force)
        require_matplotlib()
    card = one_gpu(gpu)
    request = parse_shapes(shapes, batch, dtype, frozen, imports)
    settings = Settings(
        time_limit=time_limit, environment=environment, kernels=kernels, cost=cost, seed=seed
    )
    with progress_bar("comparing") as report:
        compared = compare(
            model,
            request,
            settings,
            strategies=strategies,
            budgets=budgets,
            devices=CPU if card is None else Devices((card,)),
            training=as_training,
            on_progress=report,
        )
    if plot is not None:
        data = draw(compared, "png" if kind == "png" else "svg")
        if kind == "html":
            data = comparison_page(compared, data)
        write_output(plot, data, overwrite=force)
    notes = notes_console()
    for note in compared.notes:
        notes.print(f"note: {note}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(compare_json(compared, plot)))
        return 0
    console = output_console()
    print_comparison(console, compared)
    out = f"planned.{ending(compared.source.format)}"
    last = f"wrote {plot}" if plot else f"next: memcli plan MODEL --budget SIZE -o {out}"
    console.print(last, markup=False, soft_wrap=True)
    return 0
