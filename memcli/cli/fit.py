"""``memcli fit``."""

from __future__ import annotations

import json
import shlex

import click

from memcli.choices import OPTIMIZERS
from memcli.cli.options import (
    PERCENT,
    SECONDS,
    SEED,
    cost_option,
    frozen_option,
    import_option,
    json_option,
    kernels_option,
    one_gpu,
    parse_shapes,
    refuse_json_beside,
    sample_options,
    training_option,
    written_to,
)
from memcli.errors import BadInput
from memcli.quoting import STANDARD
from memcli.search.registry import STRATEGIES
from memcli.units import format_size, parse_size, parse_size_or_zero


@click.command("fit")
@click.argument("model", type=click.Path())
@click.option("--memory", required=True, metavar="SIZE", help="What there is, as 16GiB or 800MB.")
@click.option(
    "--reserve",
    metavar="SIZE",
    help="Leave this much of it free: for the engine itself, CUDA's context, cuDNN's workspaces "
    "and the like, none of which is counted. [default: what is assumed for these, which the answer "
    "tells: on a card 512 MiB and 256 MiB (MXNet: 5% of the card), on the CPU the process]",
)
@click.option("-o", "--output", "out", metavar="OUT", help="Write the planned graph to OUT.")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@sample_options
@frozen_option
@import_option
@click.option(
    "--optimizer",
    type=click.Choice(list(OPTIMIZERS)),
    default="sgd",
    show_default=True,
    help="What it keeps beside parameters and gradients, in float32: sgd nothing, momentum one "
    "copy of the parameters, adam two. ONNX: in the parameters' own type.",
)
@click.option(
    "--strategy",
    type=click.Choice(list(STRATEGIES)),
    default="auto",
    show_default=True,
    help="Search strategy; memcli plan --help tells of each.",
)
@click.option(
    "--max-recompute",
    type=PERCENT,
    metavar="PERCENT",
    help="Most recomputation, in percent of the forward pass's FLOPs.",
)
@click.option(
    "--time-limit",
    type=SECONDS,
    metavar="SECONDS",
    help="Maximum time of each search for a plan, in seconds; there are a few.",
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
    help="Whether the plan may need an environment variable at run time to reach its memory.",
)
@cost_option
@click.option("--cpu", is_flag=True, help="The memory is the CPU's. [default: a card's]")
@click.option(
    "--gpu",
    metavar="N",
    help="With --cost measured: time operators on this card. [ONNX without --cpu: 0; else the CPU]",
)
@training_option
@json_option
def command(
    model: str,
    memory: str,
    reserve: str | None,
    out: str | None,
    force: bool,
    shapes: tuple[str, ...],
    dtype: str | None,
    frozen: tuple[str, ...],
    imports: tuple[str, ...],
    optimizer: str,
    strategy: str,
    max_recompute: float | None,
    time_limit: float | None,
    seed: int,
    environment: str,
    kernels: str,
    cost: str,
    cpu: bool,
    gpu: str | None,
    as_training: bool,
    as_json: bool,
) -> int:
    """Find the largest batch of MODEL that trains in SIZE, as it is and with a plan.

    MODEL is an MXNet symbol JSON, an ONNX file or a Caffe prototxt. Counted are parameters, their
    gradients, the optimizer's state, auxiliary states, the inputs (MXNet: and their gradients), and
    the feature maps. The batch is the inputs' leading dimension. ONNX and Caffe are planned for
    PyTorch on CUDA, or with --cpu on the CPU; no card is needed for that.
    """
    from memcli.commands.fit import fit
    from memcli.reports.console import notes_console, output_console, progress_bar
    from memcli.reports.fit_report import fit_json, print_fitted
    from memcli.reports.model_facts import ending
    from memcli.search.base import Settings

    refuse_json_beside(out, as_json)
    size = parse_size(memory)
    kept = None if reserve is None else parse_size_or_zero(reserve)
    if kept is not None and kept >= size:
        raise BadInput(f"--reserve {reserve} leaves nothing of --memory {memory}")
    if gpu is not None and (cost != "measured" or cpu):
        raise BadInput("--gpu goes with --cost measured, and without --cpu")
    settings = Settings(
        cost=cost,
        max_recompute=None if max_recompute is None else max_recompute / 100,
        time_limit=time_limit,
        environment=environment,
        kernels=kernels,
        seed=seed,
    )
    request = parse_shapes(shapes, None, dtype, frozen, imports)
    with progress_bar("fitting") as report:
        fitted = fit(
            model,
            request,
            size,
            settings,
            strategy=strategy,
            optimizer=optimizer,
            reserve=kept,
            cpu=cpu,
            gpu=one_gpu(gpu),
            training=as_training,
            out=out,
            force=force,
            on_progress=report,
        )
    notes = notes_console()
    for note in fitted.notes:
        notes.print(f"note: {note}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(fit_json(fitted)))
        return 0
    console = output_console(to_notes=out == STANDARD)
    print_fitted(console, fitted)
    if out is None:
        name = f"planned.{ending(fitted.source.format)}"
        last = f"nothing was written; next: memcli fit ... -o {name}"
    else:
        last = f"wrote {written_to(out)} for batch {fitted.planned.batch}"
        if out != STANDARD:
            where = " --gpu 0" if fitted.device == "cuda" else ""
            step = format_size(fitted.planned.breakdown.total)
            last += f"; next: memcli verify {shlex.quote(out)}{where} (a step in {step})"
    console.print(last, markup=False, soft_wrap=True)
    return 0
