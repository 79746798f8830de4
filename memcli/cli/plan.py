"""``memcli plan``."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from memcli.choices import AS_PLANNED, CARD_NAMES
from memcli.cli.options import (
    PERCENT,
    SECONDS,
    SEED,
    cost_option,
    frozen_option,
    gpu_numbers,
    import_option,
    json_option,
    kernels_option,
    optimizer_option,
    parse_shapes,
    refuse_json_beside,
    reserve_option,
    shape_options,
    training_option,
    workers_option,
    written_to,
)
from memcli.errors import BadInput
from memcli.quoting import STANDARD
from memcli.request import Devices, ShapeRequest
from memcli.search.registry import DESCRIPTIONS, STRATEGIES
from memcli.units import parse_size, parse_size_or_zero

_STRATEGY_HELP = "Search strategy: " + "; ".join(f"{k}: {v}" for k, v in DESCRIPTIONS.items())


@click.command("plan")
@click.argument("model", type=click.Path())
@click.option(
    "-o",
    "--output",
    "out",
    metavar="OUT",
    help="Write the planned graph to OUT; - is standard output, and the report goes to standard "
    "error.",
)
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@shape_options
@frozen_option
@import_option
@click.option(
    "--strategy",
    type=click.Choice(list(STRATEGIES)),
    default="auto",
    show_default=True,
    help=_STRATEGY_HELP,
)
@click.option(
    "--budget",
    metavar="SIZE",
    help="Most memory, as 6GiB (6G), 800MB, or 50% of the baseline. What fits without a plan is "
    "written as it is.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Most memory of the whole training step, in place of --budget: with parameters, "
    "gradients, optimizer, inputs, and what is assumed for the engine. A card's, or with --cpu the "
    "process's.",
)
@click.option(
    "--card",
    type=click.Choice(CARD_NAMES),
    help="--memory of this card; no card is needed here.",
)
@optimizer_option
@reserve_option
@click.option(
    "--max-recompute",
    type=PERCENT,
    metavar="PERCENT",
    help="Most recomputation, in percent of the forward pass's FLOPs. [ONNX without --budget: 100]",
)
@click.option(
    "--threshold",
    "thresholds",
    type=int,
    multiple=True,
    metavar="MB",
    help="Try this stage size (feature maps between two cuts) instead of searching. Repeatable.",
)
@click.option(
    "--trials",
    type=click.IntRange(0, 10000),
    default=6,
    show_default=True,
    help="Thresholds that the search tries after its first three guesses.",
)
@click.option("--keep", multiple=True, metavar="GLOB", help="Never recompute these nodes.")
@click.option("--recompute", multiple=True, metavar="GLOB", help="Always recompute these nodes.")
@click.option("--no-rewrite", is_flag=True, help="Set attributes only; the nodes stay the same.")
@cost_option
@training_option
@click.option(
    "--time-limit",
    type=SECONDS,
    metavar="SECONDS",
    help="Maximum seconds from the start of the command; the plan is the best found by then. "
    "Loading and analyzing the model cannot be interrupted. [default: a fixed amount of work]",
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Random seed of searches and of verify."
)
@click.option(
    "--environment",
    type=click.Choice(["best", "default"]),
    default="best",
    show_default=True,
    help="Whether the plan may need an environment variable at run time to reach its memory.",
)
@kernels_option
@click.option("--measure", is_flag=True, help="Verify right after planning.")
@click.option(
    "--gpu",
    metavar="N[,N...]",
    help="With --measure or --cost measured: on this GPU. "
    "ONNX: plan for CUDA; 0,1: for two cards that train together, the batch split over them.",
)
@click.option("--cpu", is_flag=True, help="With --measure or --cost measured: on the CPU.")
@workers_option
@json_option
def command(model: str, out: str | None, force: bool, as_json: bool, **options: Any) -> int:
    """Search for what to keep and what to recompute, and write the planned graph.

    MODEL is an MXNet symbol JSON, an ONNX file, a Caffe prototxt, gzipped or not, or a .pt2 of
    torch.export; - is standard input. It is never changed. Or package.module:function, your own
    code, which is run and gives (model, args[, kwargs[, loss]]). Shapes that are neither in the
    file nor given are guessed where a guess fits the graph, and shown. All but MXNet's are planned
    for PyTorch, on the CPU or, with --gpu N, on CUDA; no card is needed for that. A planned Caffe
    net is written as OUT says:
    .prototxt, the net with the plan in comments, or .onnx, the training graph.
    For several workers (--gpu 0,1 or --workers 2) the batch is that of all together, and what is
    planned, shown and held to --budget is each one's.
    """
    from memcli.commands.plan import devices_of, make_plan
    from memcli.engine import engine_of
    from memcli.formats.detect import Model, read_source
    from memcli.formats.output import check_output
    from memcli.reports.console import notes_console, output_console, progress_bar
    from memcli.reports.model_facts import ending
    from memcli.reports.plan_report import plan_json, print_plan
    from memcli.search.base import Settings

    refuse_json_beside(out, as_json)
    source: Model = model
    timed = options["cost"] == "measured"
    placed = options["gpu"] or options["cpu"]
    held = options["memory"] or options["card"]
    if placed and not (options["measure"] or timed or held):
        source = read_source(source)
        if not engine_of(source).plans_for_devices:
            raise BadInput("--gpu and --cpu go with --measure or --cost measured")
    if options["gpu"] and options["cpu"]:
        raise BadInput("--gpu and --cpu exclude one another")
    if options["measure"] and out in (None, STANDARD):
        raise BadInput("--measure needs -o FILE: it verifies the file that was written")
    if any(t < 0 for t in options["thresholds"]):
        raise BadInput("--threshold must not be negative")
    devices = Devices(gpu_numbers(options["gpu"], options["workers"]), options["workers"])
    memory = None if options["memory"] is None else parse_size(options["memory"])
    if memory is not None and options["card"]:
        raise BadInput("--card says --memory: give one of them")
    if options["cpu"] and options["card"]:
        raise BadInput("--card is for training on a card, --cpu on the CPU")
    kept = None if options["reserve"] is None else parse_size_or_zero(options["reserve"])
    request = parse_shapes(
        options["shapes"],
        options["batch"],
        options["dtype"],
        options["frozen"],
        options["imports"],
    )
    settings = Settings(
        thresholds=list(options["thresholds"]),
        trials=options["trials"],
        keep=list(options["keep"]),
        recompute=list(options["recompute"]),
        max_recompute=None if options["max_recompute"] is None else options["max_recompute"] / 100,
        time_limit=options["time_limit"],
        environment=options["environment"],
        kernels=options["kernels"],
        cost=options["cost"],
        rewrite=not options["no_rewrite"],
        seed=options["seed"],
    )
    check_output(source, out, force)
    source = read_source(source)
    if held:
        devices = devices_of(engine_of(source), devices, on_card=not options["cpu"])
    if options["measure"]:
        engine_of(source).check_devices(devices)
    with progress_bar("planning") as report:
        planned = make_plan(
            source,
            request,
            options["strategy"],
            settings,
            budget=options["budget"],
            memory=memory,
            card=options["card"] or "",
            optimizer=options["optimizer"],
            reserve=kept,
            cpu=options["cpu"],
            training=options["as_training"],
            devices=devices,
            out=out,
            force=force,
            on_progress=report,
        )
    notes = notes_console()
    for note in planned.notes:
        notes.print(f"note: {note}", markup=False, soft_wrap=True)
    result = plan_json(planned)
    console = output_console(to_notes=out == STANDARD)
    if not as_json:
        print_plan(console, planned)
    status = 0
    if options["measure"]:
        from memcli.cli.verify import run_verify

        assert out is not None
        status, verified = run_verify(
            out,
            original=source,
            devices=devices,
            seed=options["seed"],
            as_json=as_json,
            kernels=AS_PLANNED,
            request=ShapeRequest(imports=request.imports) if request.imports else None,
        )
        result["verify"] = verified
        if status:
            result["error"] = verified["error"]
    if as_json:
        print(json.dumps(result))
    elif not options["measure"]:
        if out is None:
            last = f"nothing was written; next: memcli plan ... -o planned.{ending(planned.format)}"
        else:
            last = f"wrote {written_to(out)}"
            if out != STANDARD:
                last += f"; next: memcli verify {shlex.quote(out)}"
            if out != STANDARD and devices.count > 1:
                on = f"--gpu {options['gpu']}" if devices.gpus else f"--workers {devices.workers}"
                last += f" {on}"
        console.print(last, markup=False, soft_wrap=True)
    return status
