"""``memcli solve``."""

from __future__ import annotations

import json

import click

from memcli.choices import SOLVE_STRATEGIES
from memcli.cli.options import SECONDS, SEED, json_option, refuse_json_beside, written_to
from memcli.quoting import STANDARD

_STRATEGY_HELP = "Search strategy: " + "; ".join(f"{k}: {v}" for k, v in SOLVE_STRATEGIES.items())


@click.command("solve")
@click.argument("graph", type=click.Path())
@click.option("-o", "--output", "out", metavar="OUT", help="Write the JSON object to OUT.")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@click.option(
    "--budget",
    metavar="SIZE",
    help="Most memory, as 6GiB, 800MB, or 80% of the plain order's peak. [default: the least]",
)
@click.option(
    "--time-limit",
    type=SECONDS,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Maximum search time in seconds; the answer is then the best so far.",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed of the search.",
)
@click.option(
    "--strategy",
    type=click.Choice(list(SOLVE_STRATEGIES)),
    default="auto",
    show_default=True,
    help=_STRATEGY_HELP,
)
@json_option
def command(
    graph: str,
    out: str | None,
    force: bool,
    budget: str | None,
    time_limit: float,
    seed: int,
    strategy: str,
    as_json: bool,
) -> int:
    """Find a schedule of a graph's nodes, with recomputation, within a memory budget.

    GRAPH is networkx node-link JSON with a time and a memory for each node (cost_cpu and
    cost_ram, or duration and out_cost), or a Chainer graph in the text format of Kusumoto et al.
    The schedule lists node ids; a node that is there twice is recomputed. Each use reads the
    latest computation before it, which is freed after its last use.
    """
    from memcli.commands.solve import solve_file, write_solution
    from memcli.reports.console import output_console, progress_bar
    from memcli.reports.solve_report import print_solved, solve_json
    from memcli.solve.base import ScheduleSettings

    refuse_json_beside(out, as_json)
    settings = ScheduleSettings(time_limit=time_limit, seed=seed, strategy=strategy)
    with progress_bar("solving") as report:
        solved = solve_file(
            graph, settings, budget=budget, out=out, force=force, on_progress=report
        )
    result = solve_json(solved)
    if out is not None:
        write_solution(result, out, force)
    if as_json:
        print(json.dumps(result))
        return 0
    console = output_console(to_notes=out == STANDARD)
    print_solved(console, solved)
    last = "nothing was written; the schedule: --json, or -o"
    if out is not None:
        last = f"wrote {written_to(out, 'the schedule')}"
    console.print(last, markup=False, soft_wrap=True)
    return 0
