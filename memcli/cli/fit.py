"""``memcli fit``."""

from __future__ import annotations

import json
import shlex

import click

from memcli.choices import CARD_NAMES
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
    optimizer_option,
    parse_shapes,
    refuse_json_beside,
    reserve_option,
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
@click.option("--memory", metavar="SIZE", help="What there is, as 16GiB or 800MB.")
@click.option(
    "--card",
    type=click.Choice(CARD_NAMES),
    help="--memory of this card; no card is needed here.",
)
@reserve_option
@click.option("-o", "--output", "out", metavar="OUT", help="Write the planned graph to OUT.")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@sample_options
@frozen_option
@import_option
@optimizer_option
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
    memory: str | None,
    card: str | None,
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
    refuse_json_beside(out, as_json)
    if memory is not None and card:
        raise BadInput("--card says --memory: give one of them")
    if cpu and card:
        raise BadInput("--card is for training on a card, --cpu on the CPU")
    if memory is None and card is None:
        raise BadInput("nothing says what there is", "give --memory 16GiB, or --card rtx4090")
    from memcli.commands.fit import fit
    from memcli.frameworks.cards import CARDS
    from memcli.reports.console import notes_console, output_console, progress_bar
    from memcli.reports.fit_report import fit_json, print_fitted
    from memcli.reports.model_facts import ending
    from memcli.search.base import Settings

    size = CARDS[card].bytes if card else parse_size(memory or "")
    kept = None if reserve is None else parse_size_or_zero(reserve)
    if kept is not None and kept >= size:
        raise BadInput(f"--reserve {reserve} leaves nothing of {format_size(size)}")
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
