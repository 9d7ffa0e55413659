"""A trace as text: what was read from it, and what its kernel refused."""

from collections.abc import Iterable, Iterator

from rich.text import Text

from vmm.scenario import words
from vmm.scenario.operations import AnyOperation

_MANY = 5
_LABEL_WIDTH = 10


def heading(name: str, text: str) -> Text:
    """Return the heading of a VM of a trace."""
    return Text(name, style="bold").append(f": {text}", style="not bold")


def remark(label: str, text: str, style: str = "") -> Text:
    """Return one labelled line about a trace."""
    line = Text(f"  {label:<{_LABEL_WIDTH}}", style="dim")
    return line.append(text, style=f"not dim {style}".strip())


def refusals(calls: Iterable[tuple[int, AnyOperation, str]]) -> Iterator[Text]:
    """Yield lines on refused calls, given as (line of the trace, operation, errno)."""
    every = list(calls)
    for number, operation, error in every[:_MANY]:
        yield remark("refused", f"line {number}: {words.operation(operation)} = {error}")
    if len(every) > _MANY:
        yield remark("", f"and {len(every) - _MANY} more")
