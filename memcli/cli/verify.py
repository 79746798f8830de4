"""``memcli verify``."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from memcli.choices import DEFAULT, PLAIN
from memcli.cli.json_errors import error_entry
from memcli.cli.options import (
    SEED,
    frozen_option,
    gpu_numbers,
    import_option,
    json_option,
    parse_shapes,
    shape_options,
    workers_option,
)
from memcli.errors import BadInput
from memcli.quoting import STANDARD
from memcli.request import Devices, ShapeRequest

if TYPE_CHECKING:
    from memcli.formats.detect import Model
    from memcli.results.verified import Verified


def newest_or_error(command: str) -> str:
    """The newest plan made from this folder, said on standard error.

    Raises:
        BadInput: there is none.
    """
    from memcli.formats.newest import newest_plan
    from memcli.reports.console import notes_console

    path = newest_plan()
    if path is None:
        raise BadInput(
            f"memcli {command} without a file acts on the newest plan made from this folder, "
            "and there is none",
            "make one: memcli plan MODEL -o planned.json",
        )
    notes_console().print(f"note: newest plan: {path}", markup=False, soft_wrap=True)
    return str(path)


def run_verify(
    planned: Model,
    *,
    original: Model | None,
    devices: Devices,
    seed: int,
    request: ShapeRequest | None,
    as_json: bool,
    engine: str = "auto",
    steps: int | None = None,
    kernels: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """Verify, print the report unless ``as_json``; exit status and the JSON object."""
    from memcli.commands.verify import verify
    from memcli.formats.detect import read_source
    from memcli.reports.console import notes_console, output_console, progress_bar
    from memcli.reports.verify_report import print_verified, verify_json

    if planned != original:  # both from standard input: refused below
        planned = read_source(planned)
    with progress_bar("verifying") as report:
        verified = verify(
            planned,
            original=original,
            engine=engine,
            devices=devices,
            seed=seed,
            steps=steps,
            kernels=kernels,
            request=request,
            on_progress=report,
        )
    notes = notes_console()
    for note in verified.notes:
        notes.print(f"note: {note}", markup=False, soft_wrap=True)
    if not as_json:
        console = output_console()
        print_verified(console, verified)
        console.print(_verdict(planned, verified), markup=False, soft_wrap=True)
    result = verify_json(verified)
    if verified.ok is not False and verified.memory_ok:
        return 0, result
    return 1, result | {"error": error_entry(1, _verdict(planned, verified))}


def _verdict(planned: Model, verified: Verified) -> str:
    """The last line."""
    from memcli.formats.detect import model_path, read_source

    if verified.ok is False:
        return "NOT verified: results differ; do not train with this plan"
    if verified.simulated:
        if verified.memory_ok:
            return "memory as estimated on a simulated card, which says nothing about bits"
        return "more memory than estimated on a simulated card"
    if not verified.memory_ok:
        return "NOT verified: same results to the bit, but more memory than estimated"
    path = model_path(planned)
    train = "train with it" if path == STANDARD else f"train {shlex.quote(path)}"
    if next_step := read_source(planned).kind.next_step:
        train = next_step(path)
    return f"verified: same results to the bit, memory as estimated; next: {train}"


@click.command("verify")
@click.argument("planned", required=False, type=click.Path())
@click.option(
    "--original",
    metavar="MODEL",
    help="The graph without the plan. [default: found by name and SHA-256, or the plan taken off]",
)
@click.option(
    "--gpu",
    metavar="N[,N...]",
    help="Run on this GPU. ONNX: 0,1 trains on both "
    "together (NCCL), each with its part of the batch.",
)
@click.option("--cpu", is_flag=True, help="Run on the CPU. [default]")
@workers_option
@click.option(
    "--engine",
    type=click.Choice(["auto", "mxnet", "torch"]),
    default="auto",
    show_default=True,
    help="What trains an MXNet graph. auto: MXNet, but PyTorch on cards that MXNet's build has no "
    "code for. ONNX files are trained by PyTorch.",
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Random seed for parameters and inputs."
)
@click.option(
    "--steps",
    type=click.IntRange(0, 10_000),
    metavar="N",
    help="Steps that are timed after a warm-up step; the table has the median. 0: none. "
    "[default: 5 on a GPU; on the CPU 3 to 5, none where that takes more than some seconds]",
)
@click.option(
    "--kernels",
    type=click.Choice([PLAIN, DEFAULT, "both"]),
    help="MXNet on the CPU. plain: as planned, on MXNet's own kernels; default: as MXNet starts, "
    "with oneDNN and without the plan's variables; both: as planned, and beside "
    "it as MXNet starts. [default: both, where a step takes no more than some seconds]",
)
@shape_options
@frozen_option
@import_option
@json_option
def command(
    planned: str | None,
    original: str | None,
    gpu: str | None,
    cpu: bool,
    workers: int,
    engine: str,
    seed: int,
    steps: int | None,
    kernels: str | None,
    shapes: tuple[str, ...],
    batch: int | None,
    dtype: str | None,
    frozen: tuple[str, ...],
    imports: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train one step of the original and of PLANNED, and compare every result bit by bit.

    Both run in processes of their own with the same parameters, inputs and seed. Memory is
    measured while they run. Exit status 1: a result differs, or either graph takes more than 5%
    over its estimate. PLANNED may be -, standard input. Without it: the newest plan made from this
    folder.

    With several workers (--gpu 0,1 or --workers 2) the batch is that of all together, and each has
    an equal part: --batch 64 on two is 32 each; without --batch, the batch that the plan is for.
    They train as in DistributedDataParallel: gradients are the mean of all, BatchNorm's statistics
    are of each worker's part. Memory is shown for each.
    """
    if gpu is not None and cpu:
        raise BadInput("--gpu and --cpu exclude one another")
    devices = Devices(gpu_numbers(gpu, workers), workers)
    request = None
    if shapes or batch is not None or dtype is not None or frozen or imports:
        request = parse_shapes(shapes, batch, dtype, frozen, imports)
    path = planned or newest_or_error("verify")
    status, result = run_verify(
        path,
        original=original,
        devices=devices,
        seed=seed,
        request=request,
        as_json=as_json,
        engine=engine,
        steps=steps,
        kernels=kernels,
    )
    if as_json:
        print(json.dumps(result))
    return status
