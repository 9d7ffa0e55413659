"""Printing: lines of styled text, and live progress on a terminal."""

from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from vmm.cli.output.printing import output_checked
from vmm.cli.output.width import width_of as columns_of

if TYPE_CHECKING:
    from rich.progress import Progress


_USUAL_COLUMNS = 80


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the exit status to the command; rich would make it 1, which is a verdict here."""
        raise


def console(stderr: bool = False) -> Console:
    """Return the console that commands print to."""
    return _wide_enough(_Console(stderr=stderr, highlight=False))


def console_of(stream: IO[str]) -> Console:
    """Return a console that prints to a file."""
    return _wide_enough(Console(file=stream, highlight=False))


def _wide_enough(made: Console) -> Console:
    """Return a console that prints: with COLUMNS=0 rich would cut each line to nothing."""
    if made.width < 1:
        made.width = columns_of(2 if made.stderr else 1) or _USUAL_COLUMNS
    return made


def width_of(to: Console) -> int | None:
    """Return the width to wrap at: None in a file or a pipe, where people grep."""
    if to.is_terminal:
        return to.width
    return columns_of(2 if to.stderr else 1) if isinstance(to, _Console) else None


def print_lines(to: Console, lines: Iterable[Text]) -> None:
    """Print lines, wrapping those too wide for a terminal. Raises OutputLost."""
    width = width_of(to)
    with output_checked():
        for line in lines:
            for piece in _broken(line, width):
                to.print(piece, soft_wrap=True)


def _broken(line: Text, width: int | None) -> Iterator[Text]:
    """Break a line between words; continuations are indented by two more columns.

    A long word is indented less, if it fits only so.
    """
    begin = len(line.plain) - len(line.plain.lstrip())
    indent = begin + 2
    while width is not None and line.cell_len > width:
        end = line.plain.rfind(" ", begin + 1, width + 1)
        end = line.plain.find(" ", width) if end < 0 else end
        rest = line.plain[end:].lstrip() if end >= 0 else ""
        if not rest:
            break
        yield line[:end]
        begin = max(0, min(indent, width - len(rest.split(" ", 1)[0])))
        line = Text(" " * begin).append_text(line[-len(rest) :])
    yield line


class LiveProgress:
    """Shows how many scenarios have begun, and the current one; nothing without a terminal.

    It is drawn on each event and never by a thread, since scenarios run in forked children.
    """

    def __init__(self, to: Console, total: int) -> None:
        self._bar = _bar(to, total) if to.is_terminal else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """Show which scenario runs now."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=name, advance=1, refresh=True)

    def advance(self) -> None:
        """Count a scenario that does not run."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=1)


def _bar(to: Console, total: int) -> "Progress":
    """Return a bar with one task. A command without a terminal does not import what it takes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(bar_width=24, complete_style="cyan", finished_style="cyan"),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        console=to,
        auto_refresh=False,
        transient=True,
    )
    bar.add_task("", total=total)
    return bar
