"""``memcli doctor``."""

from __future__ import annotations

import json

import click

from memcli.cli.json_errors import error_entry
from memcli.cli.options import json_option


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Say which engines and devices work here, and for each that does not what would mend it.

    Exit status: 0 when MXNet or PyTorch trains here, 3 when no engine works.
    """
    from memcli.engines.doctor import check_all
    from memcli.reports.console import output_console
    from memcli.reports.doctor_report import doctor_json, engine_works, next_step, print_checks

    checks = check_all()
    status = 0 if engine_works(checks) else 3
    if as_json:
        result = doctor_json(checks)
        if status:
            message, _, mend = next_step(checks).partition("; next: ")
            result["error"] = error_entry(status, message, mend)
        print(json.dumps(result))
    else:
        console = output_console()
        print_checks(console, checks)
        console.print(next_step(checks), markup=False, soft_wrap=True)
    return status
