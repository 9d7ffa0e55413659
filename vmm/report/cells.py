"""A table of the same scenarios on several machines: a row a scenario, a column a cell."""

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from vmm.report.counts import counted_as
from vmm.scenario.words import counted

Statuses = Mapping[str, str]
"""Scenario -> status, from one cell's result."""

_MARKS = {
    "passed": ("ok", "green"),
    "skipped": ("-", "dim"),
    "known": ("known", "yellow"),
    "differs": ("DIFFERS", "bold red"),
    "inconclusive": ("???", "bold magenta"),
}
_ABSENT = ("not run", "bold magenta")


def parts(scenario: str, cells: Sequence[Statuses]) -> bool:
    """Return whether the cells' statuses of a scenario differ, skips aside."""
    said = {cell.get(scenario, "not run") for cell in cells} - {"skipped"}
    return len(said) > 1


def table(results: Mapping[str, Statuses]) -> Iterator[Text]:
    """Yield a legend, a row for each scenario that did not pass everywhere, and counts.

    Cells are columns A, B, ...; a star marks a row in which they differ.
    """
    letters = {cell: _letter(number) for number, cell in enumerate(results)}
    for cell, statuses in results.items():
        yield Text(f"{letters[cell]:>3}  {cell}: {_counts(statuses)}")
    yield Text("")
    names = list(dict.fromkeys(name for statuses in results.values() for name in statuses))
    cells = list(results.values())
    rows = [name for name in names if parts(name, cells) or not _is_good(name, cells)]
    width = max((len(name) for name in rows), default=0)
    if rows:
        yield Text(" " * (width + 3) + "".join(f"{letter:<9}" for letter in letters.values()))
    for name in rows:
        line = Text("* " if parts(name, cells) else "  ", "bold")
        line.append(f"{name:<{width}} ", "bold" if parts(name, cells) else "")
        for statuses in cells:
            mark, style = _MARKS.get(statuses.get(name, ""), _ABSENT)
            line.append(f"{mark:<9}", style)
        yield line
    good = f"{len(names) - len(rows)} passed or skipped in every cell"
    yield Text(f"{counted(len(names), 'scenario')}, {good}")


def _is_good(name: str, cells: Sequence[Statuses]) -> bool:
    return all(cell.get(name) in ("passed", "skipped") for cell in cells)


def _counts(statuses: Statuses) -> str:
    if not statuses:
        return "no result"
    found = list(statuses.values())
    return ", ".join(counted_as(each, found.count(each)) for each in _MARKS if each in found)


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"{number + 1}"


def markdown(results: Mapping[str, Statuses]) -> str:
    """Return the same table as Markdown."""
    cells = list(results.values())
    names = list(dict.fromkeys(name for statuses in cells for name in statuses))
    rows = [name for name in names if parts(name, cells) or not _is_good(name, cells)]
    lines = [f"| scenario | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name in rows:
        marks = [_MARKS.get(cell.get(name, ""), _ABSENT)[0] for cell in cells]
        shown = f"**{name}**" if parts(name, cells) else name
        lines.append(f"| {shown} | {' | '.join(marks)} |")
    lines.append("")
    lines += [f"- {cell}: {_counts(statuses)}" for cell, statuses in results.items()]
    return "\n".join(lines) + "\n"
