"""``memcli export``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from memcli.choices import TARGETS
from memcli.cli.options import json_option
from memcli.quoting import STANDARD


@click.command("export")
@click.argument("planned", type=click.Path())
@click.option(
    "--to",
    "target",
    type=click.Choice(TARGETS),
    required=True,
    help="Whose checkpoints to use: torch.utils.checkpoint, tf.recompute_grad or jax.checkpoint.",
)
@click.option("-o", "--output", "out", metavar="FILE", help="Write the script to FILE.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@json_option
def command(planned: str, target: str, out: str | None, force: bool, as_json: bool) -> int:
    """Write the plan of PLANNED, an ONNX file or .pt2, as a Python script that needs no memcli.

    The script says which layers or modules are wrapped together, and has the function that wraps
    them, recompute(model); its head gives the memory and the recomputation of just that, which is
    less fine than the plan. Without -o it goes to standard output.
    """
    from memcli.commands.export import export
    from memcli.formats.output import check_output, write_output
    from memcli.reports.console import notes_console, output_console, progress_bar
    from memcli.reports.export_report import export_json, next_step, print_exported
    from memcli.reports.export_script import export_script

    check_output(planned, out, force)
    with progress_bar("exporting") as report:
        exported = export(planned, target, on_progress=report)
    notes = notes_console()
    for note in exported.notes:
        notes.print(f"note: {note}", markup=False, soft_wrap=True)
    stem = Path(out).stem if out is not None else ""
    script = export_script(exported, stem if re.fullmatch(r"[A-Za-z_]\w*", stem) else "SCRIPT")
    if out == STANDARD:  # where it goes without -o, too
        out = None
    if out is not None:
        write_output(out, script.encode(), overwrite=force)
        exported.output = out
    if as_json:
        print(json.dumps(export_json(exported, script)))
    elif out is None:
        print(script, end="")
    else:
        console = output_console()
        print_exported(console, exported)
        console.print(next_step(exported), markup=False, soft_wrap=True)
    return 0
