"""``vmm compare``: the same scenarios on two kernels."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from vmm.cli.command import Command
from vmm.cli.input.files import allow_large, history_files
from vmm.cli.options.paths import FilePath
from vmm.cli.output.errors import Unusable
from vmm.cli.output.printing import tell
from vmm.scenario.codec import CutOffError, FileError, HistoryText, histories_in
from vmm.scenario.demand import Limits
from vmm.scenario.history import Header, History
from vmm.scenario.shown import shown
from vmm.scenario.words import counted
from vmm.verdict import statuses
from vmm.verdict.compare import features_that_differ, partings

_MOST = 20

_Name = tuple[str, int]
"""A scenario's name, and how many of the same name come before it."""


@click.command(cls=Command)
@click.argument("first", metavar="A.jsonl", type=FilePath(path_type=Path))
@click.argument("second", metavar="B.jsonl", type=FilePath(path_type=Path))
@allow_large
@click.pass_context
def compare(ctx: click.Context, first: Path, second: Path, limits: Limits) -> None:
    """Say where two kernels differ on the same scenarios.

    Each is a file of histories, such as `vmm check --histories` and `vmm run --history` write, or a
    folder of such files. Exit status 1 if a scenario differs; 3 if none does, but some could not be
    compared.
    """
    a, b = _sources(first, limits), _sources(second, limits)
    both = [name for name in a if name in b]
    kernels: set[str] = set()
    said: list[str] = []
    """Printed at the end: if a file turns out to be broken, that one line is all."""
    differing, unknown = 0, 0
    for name in both:
        one, other = a[name], b[name]
        for line in _kernels(one.header, other.header):
            if line not in kernels:
                said.append(line)
                kernels.add(line)
        differs, complete = _compare(one, other, said)
        differing += differs
        unknown += not differs and not complete
    for name in (name for name in a if name not in b):
        said.append(f"{name[0]}: not in {second}")
    for name in (name for name in b if name not in a):
        said.append(f"{name[0]}: not in {first}")
    unknown += len(a) + len(b) - 2 * len(both)
    for line in said:
        tell(line)
    tell(
        f"{counted(len(both), 'scenario')} in both, {differing} differ, "
        f"{unknown} could not be compared"
    )
    ctx.exit(statuses.DIFFERS if differing else statuses.INCONCLUSIVE if unknown else 0)


def _sources(path: Path, limits: Limits) -> dict[_Name, HistoryText]:
    """Return the histories of a file or a folder. Raises Unusable."""
    found: dict[_Name, HistoryText] = {}
    seen: Counter[str] = Counter()
    for file in history_files(path):
        for source in _in_file(file, limits):
            name = source.header.scenario.name
            found[name, seen[name]] = source
            seen[name] += 1
    if not found:
        raise Unusable(f"{path}: no history there")
    return found


def _in_file(file: Path, limits: Limits) -> Iterator[HistoryText]:
    try:
        yield from histories_in(file, limits)
    except CutOffError:
        return
    except FileError as error:
        raise Unusable(str(error)) from None


def _kernels(a: Header, b: Header) -> Iterator[str]:
    """Yield which kernels the two are, and the features that differ."""
    yield f"A: {_host(a)}"
    yield f"B: {_host(b)}"
    for line in features_that_differ(a.features, b.features):
        yield f"feature {line}"


def _host(header: Header) -> str:
    host = header.host
    words = host.get("kernel", "unknown kernel"), host.get("vendor", "unknown vendor")
    return ", ".join(map(shown, words))


def _compare(one: HistoryText, other: HistoryText, said: list[str]) -> tuple[bool, bool]:
    """Add the differences; return whether there are any, and whether all was comparable."""
    a, b = _whole(one), _whole(other)
    name = a.header.scenario.name
    if _essence(a) != _essence(b):
        said.append(f"{name}: the two scenarios of this name are not the same")
        return False, False
    found = list(partings(a, b))
    if found:
        said.append(f"{name}:")
    for parting in found[:_MOST]:
        said.append(f"  step {parting.event}: {parting.operation}")
        said.append(f"    A: {parting.first}")
        said.append(f"    B: {parting.second}")
    if len(found) > _MOST:
        said.append(f"  ... and {len(found) - _MOST} more")
    differs = any(parting.differs for parting in found)
    return differs, len(found) == sum(parting.differs for parting in found)


def _whole(text: HistoryText) -> History:
    try:
        return text.history()
    except FileError as error:
        raise Unusable(str(error)) from None


def _essence(history: History) -> tuple[object, ...]:
    """Return what determines what a scenario does."""
    scenario = history.header.scenario
    return scenario.operations, scenario.mappings, scenario.guest, scenario.vcpus, scenario.survey
