"""Where output goes: results to standard output, progress and notes to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from memcli.quoting import printable

# A log file has no width of its own; tables are made to be readable at this one.
LOG_WIDTH = 80

Report = Callable[[str, float | None], None]


class PlainConsole(Console):
    """A console that hands no control character of what it is given to print to the terminal.

    Names of nodes, operators and files come from files that others made; an escape sequence in
    one would be obeyed. Those that rich itself writes (colours, the cursor) are no text to it.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """The renderable's segments, everything unprintable in their text escaped."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable() or text == "\n":
                yield segment
            else:
                lines = "\n".join(printable(line) for line in text.split("\n"))
                yield Segment(lines, segment.style, segment.control)


def output_console(*, to_notes: bool = False) -> Console:
    """For tables and the last line.

    Args:
        to_notes: on standard error, where standard output is for the planned graph.
    """
    plain = not (sys.stderr if to_notes else sys.stdout).isatty()
    return PlainConsole(
        stderr=to_notes, highlight=False, width=LOG_WIDTH if plain else None, soft_wrap=False
    )


def notes_console() -> Console:
    """For notes, warnings and progress."""
    plain = not sys.stderr.isatty()
    return PlainConsole(stderr=True, highlight=False, width=LOG_WIDTH if plain else None)


def silent(text: str, fraction: float | None = None) -> None:
    """Progress for nobody."""


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Report]:
    """A bar that shows what is being done once it takes longer than a moment.

    In a log file (no terminal) a line is written when a new thing begins after a second's work.
    """
    console = notes_console()
    if quiet:
        yield silent
        return
    if not console.is_terminal:
        started = time.monotonic()
        said: set[str] = set()

        def log(text: str, fraction: float | None = None) -> None:
            if time.monotonic() - started > 1.0 and text not in said and len(said) < 40:
                said.add(text)
                console.print(f"{title}: {text}", markup=False, soft_wrap=True)

        yield log
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[title]}: {task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=None, title=title)

        def report(text: str, fraction: float | None = None) -> None:
            total = None if fraction is None else 1.0
            bar.update(task, description=text, total=total, completed=fraction or 0.0)

        yield report
