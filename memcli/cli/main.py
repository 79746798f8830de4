"""``memcli``: the command group, and how errors end."""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import sys
from typing import Any

import click

from memcli import __version__, highs
from memcli.cli import interrupts
from memcli.errors import AnswerIsNo, MemcliError

# What writing to standard output fails with: full, gone, closed.
_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT})
_OBJECTS = 100_000  # new ones between two collections of the youngest garbage
COMMANDS = {
    "plan": "memcli.cli.plan",
    "inspect": "memcli.cli.inspect",
    "verify": "memcli.cli.verify",
    "compare": "memcli.cli.compare",
    "fit": "memcli.cli.fit",
    "export": "memcli.cli.export",
    "solve": "memcli.cli.solve",
    "doctor": "memcli.cli.doctor",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for, so that ``--help`` is immediate."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[cmd_name]).command


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
    memcli solve costs.json --budget 80%                a schedule for any graph of costs
    memcli doctor                                       which engines and devices work here

    Exit status: 0 done, 1 the answer is no, 2 bad input, 3 an engine is missing or failed.
    """


def run(arguments: list[str] | None = None) -> None:
    """Entry point: errors that the user can mend are one or two lines, never a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, to the end of the process
    interrupts.raise_lost_ones_again()
    interrupts.end_as_by_ctrl_c()
    # graphs are millions of small objects, none in a cycle: looked through less often
    gc.set_threshold(_OBJECTS, 20, 100)
    code = status(arguments)
    interrupts.take_no_more()
    if highs.left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def status(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit status."""
    stream = sys.stdout
    try:
        result: Any = main.main(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except MemcliError as error:
        given = sys.argv if arguments is None else arguments
        if isinstance(error, AnswerIsNo) and "--json" in given:
            _print_no(error)
        return _fail(error.lines(), error.exit_status)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        lines = [error.format_message()]
        if isinstance(error, click.UsageError) and error.ctx is not None:
            lines.append(f"see: {error.ctx.command_path} --help")
        return _fail(lines, 2)
    except BrokenPipeError:
        return _read_enough()
    except SystemExit as error:
        # Where the reader is gone, rich ends so, and click, which wraps the stream before.
        if sys.stdout is stream and not isinstance(error.__context__, BrokenPipeError):
            raise
        sys.stdout = stream
        return _read_enough()
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        _say_nothing_more()
        return _fail([f"standard output cannot be written to: {error.strerror}"], 2)
    except Exception:
        if interrupts.lost():
            return _interrupted()
        raise


def _print_no(error: AnswerIsNo) -> None:
    """The object that ``--json`` promises, where there is no plan to tell of."""
    print(json.dumps({"schema": 1, "ok": False, "error": error.message, "hint": error.hint}))


def _read_enough() -> int:
    """The reader (head, less) has what it wanted."""
    _say_nothing_more()
    return 0


def _say_nothing_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted() -> int:
    if interrupts.lost():
        # the lost one is raised again soon
        interrupts.take_no_more()
    return _fail(["interrupted; nothing was written"], interrupts.exit_status())


def _fail(lines: list[str], code: int) -> int:
    for number, line in enumerate(lines):
        text = " ".join(line.split())
        print(f"memcli: {text}" if number == 0 else f"  {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
