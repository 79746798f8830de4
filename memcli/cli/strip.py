"""``memcli strip``."""

from __future__ import annotations

import json

import click

from memcli.cli.options import json_option, refuse_json_beside, written_to
from memcli.quoting import STANDARD


@click.command("strip")
@click.argument("planned", type=click.Path())
@click.option("-o", "--output", "out", metavar="OUT", required=True, help="Write the graph to OUT.")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@json_option
def command(planned: str, out: str, force: bool, as_json: bool) -> int:
    """Write the graph of PLANNED without its plan: nodes, marks and attributes as they were.

    PLANNED is a file that memcli plan wrote, of any format, or an MXNet symbol that was saved anew
    since; OUT has the same format. Nothing that the plan put in is left: marks, save barriers,
    reserved blocks and other rewrites. Parameters fit both graphs alike. PLANNED and OUT may be -,
    standard input and output.
    """
    from memcli.commands.strip import strip
    from memcli.reports.console import notes_console, output_console

    refuse_json_beside(out, as_json)
    stripped = strip(planned, out, force=force)
    notes = notes_console()
    for note in stripped.notes:
        notes.print(f"note: {note}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(stripped.to_json()))
        return 0
    where = written_to(out, "the graph")
    text = f"wrote {where}: {stripped.what}; marks taken off: {stripped.marks}"
    if stripped.removed:
        text += f", nodes of rewrites removed: {stripped.removed}"
    output_console(to_notes=out == STANDARD).print(text, markup=False, soft_wrap=True)
    return 0
