"""A trace in words: what was read of it, and where its kernel differs from the model."""

from collections.abc import Iterable, Iterator

from rich.text import Text

from vmm.scenario import words
from vmm.scenario.operations import AnyOperation

_MANY = 5
_LABEL_WIDTH = 10


def heading(name: str, text: str) -> Text:
    """Return the line that a VM of a trace begins with."""
    return Text(name, style="bold").append(f": {text}", style="not bold")


def remark(label: str, text: str, style: str = "") -> Text:
    """Return one line of what is to be said of a trace."""
    line = Text(f"  {label:<{_LABEL_WIDTH}}", style="dim")
    return line.append(text, style=f"not dim {style}".strip())


def refusals(calls: Iterable[tuple[int, AnyOperation, str]]) -> Iterator[Text]:
    """Yield lines on the calls that were refused, each with its line and the errno."""
    every = list(calls)
    for number, operation, error in every[:_MANY]:
        yield remark("refused", f"line {number}: {words.operation(operation)} = {error}")
    if len(every) > _MANY:
        yield remark("", f"and {len(every) - _MANY} more")
