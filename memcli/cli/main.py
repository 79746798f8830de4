"""``memcli``: the command group, and how errors end."""

from __future__ import annotations

import errno
import gc
import importlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from memcli import milp_solver, time_limit, unfinished
from memcli.cli.entry import run as run  # noqa: PLC0414, where programs of earlier versions look
from memcli.cli.json_errors import asks_for_json, error_object
from memcli.cli.output import OutputFailed, watch_output
from memcli.errors import AnswerIsNo, MemcliError
from memcli.quoting import shown_message, shown_path
from memcli.version import __version__

# What writing to a file fails with where a disk is full, or the user has no more of it.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_FOLDER = "No usable temporary directory"  # all that tempfile would take are full
_LAST_WITH_OBJECT = 3  # the highest exit status that --json has an object for
_OBJECTS = 100_000  # new ones between two collections of the youngest garbage
# Each is a module of this folder, which is loaded when the command is asked for.
COMMANDS = {
    "plan": "Search for a plan and write the planned graph.",
    "inspect": "Show what a graph holds and where its memory goes.",
    "verify": "Train a step of both graphs for real and compare.",
    "compare": "All strategies and several budgets side by side.",
    "fit": "Find the largest batch that trains in a given memory.",
    "export": "A plan as code for PyTorch, TensorFlow or JAX alone.",
    "strip": "Take the plan off a file: the graph as it was.",
    "solve": "Find a recomputation schedule for any graph of costs.",
    "doctor": "Say which engines and devices work here.",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for, so that ``--help`` is immediate."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"memcli.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without loading one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="memcli")
def main() -> None:
    """Rewrite saved model graphs so that they train in a fraction of the memory.

    \b
    memcli plan resnet-50-symbol.json -o planned.json   search, and write the planned graph
    memcli inspect planned.json                         where the training memory goes
    memcli verify planned.json                          train a step of both graphs for real
    memcli compare resnet-50-symbol.json                all strategies and several budgets
    memcli fit resnet-50-symbol.json --memory 16GiB     the largest batch that trains
    memcli export planned.onnx --to torch               a plan as code that needs no memcli
    memcli strip planned.json -o graph.json             the graph without its plan
    memcli solve costs.json --budget 80%                a schedule for any graph of costs
    memcli doctor                                       which engines and devices work here

    Exit status: 0 done, 1 the answer is no, 2 bad input, 3 an engine is missing or failed.
    """


def work(arguments: list[str] | None = None) -> None:
    """The command, in the process that does its work; ends the process."""
    time_limit.command_begins()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, to the end of the process
        # a name that the terminal's encoding lacks is no reason to fail after all the work
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    watch_output()
    # graphs are millions of small objects, none in a cycle: looked through less often
    gc.set_threshold(_OBJECTS, 20, 100)
    code = status(arguments)
    unfinished.done(code)
    if milp_solver.left_behind() or time_limit.left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def status(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit status."""
    stream = sys.stdout
    given = sys.argv[1:] if arguments is None else arguments
    try:
        result: Any = main.main(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except MemcliError as error:
        nearest = error.nearest if isinstance(error, AnswerIsNo) else None
        return _fail(given, error.exit_status, error.message, error.hint, nearest)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):  # where nobody watches over this process
        return _fail(given, 130, "interrupted")
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        mend = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            mend = f"see: {error.ctx.command_path} --help"
        return _fail(given, 2, error.format_message(), mend)
    except BrokenPipeError:
        return _read_enough()
    except SystemExit as error:
        # Where the reader is gone, rich ends so, and click, which wraps the stream before.
        if sys.stdout is stream and not isinstance(error.__context__, BrokenPipeError):
            raise
        sys.stdout = stream
        return _read_enough()
    except OutputFailed as error:
        _say_nothing_more()
        return _fail([], 2, f"standard output cannot be written to: {error.strerror}")
    except OSError as error:
        if error.errno not in _FULL and _NO_FOLDER not in str(error.strerror):
            raise
        return _no_room(given, error)


def _read_enough() -> int:
    """The reader (head, less) has what it wanted."""
    _say_nothing_more()
    return 0


def _say_nothing_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _no_room(arguments: Sequence[str], error: OSError) -> int:
    """The disk is full; files that the user named are told of where they are written."""
    folder = unfinished.temporary_folder()
    name = shown_path(error.filename) if error.filename else f"temporary files in {folder}"
    why = "no folder for them takes any" if error.errno == errno.ENOENT else error.strerror
    mend = "free some space, or set TMPDIR to a folder with room"
    return _fail(arguments, 3, f"{name} cannot be written: {why}", mend)


def _fail(
    arguments: Sequence[str],
    code: int,
    message: str,
    mend: str = "",
    nearest: Mapping[str, Any] | None = None,
) -> int:
    """Says why on standard error, and on standard output too where ``--json`` is asked for."""
    message, mend = shown_message(message), shown_message(mend)
    print(f"memcli: {message}", file=sys.stderr)
    if mend:
        print(f"  {mend}", file=sys.stderr)
    if code <= _LAST_WITH_OBJECT and asks_for_json(arguments):
        try:
            print(json.dumps(error_object(code, message, mend, nearest)), flush=True)
        except OSError:  # the reader is gone, or has no room; standard error has the same
            _say_nothing_more()
    return code


if __name__ == "__main__":
    run()
