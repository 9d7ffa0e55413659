"""A trace as text: what was read from it, and what its kernel refused."""

from collections.abc import Iterable, Iterator

from rich.text import Text

from vmm.scenario import words
from vmm.scenario.operations import AnyOperation

_LABEL_WIDTH = 10


def heading(name: str, text: str) -> Text:
    """Return the heading of a VM of a trace."""
    return Text(name, style="bold").append(f": {text}", style="not bold")


def remark(label: str, text: str, style: str = "") -> Text:
    """Return one labelled line about a trace."""
    line = Text(f"  {label:<{_LABEL_WIDTH}}", style="dim")
    return line.append(text, style=f"not dim {style}".strip())


def refusals(first: Iterable[tuple[int, AnyOperation, str]], count: int) -> Iterator[Text]:
    """Yield lines on refused calls, the first of which are given as (line, operation, errno)."""
    for number, operation, error in first:
        yield remark("refused", f"line {number}: {words.operation(operation)} = {error}")
        count -= 1
    if count:
        yield remark("", f"and {count} more")
