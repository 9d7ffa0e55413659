"""Scenario and history files that the user names; a bad one is one line and status 2."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from vmm.cli.options.selection import curated
from vmm.cli.output.errors import Unusable, usable
from vmm.scenario.codec import (
    HEADER_BEGINS,
    FileError,
    HistoryText,
    histories_in,
    parse_scenario,
    read_history,
    read_scenario,
)
from vmm.scenario.demand import LARGE, USUAL, Limits
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario
from vmm.scenario.reading import MAX_FILE_BYTES, not_empty, opened
from vmm.scenario.selection import SelectionError, named

allow_large = click.option(
    "--allow-large",
    "limits",
    flag_value=LARGE,
    default=USUAL,
    type=click.UNPROCESSED,
    help=f"Take files that need more than {USUAL.memory_bytes >> 30} GiB or {USUAL.seconds:.0f} s: "
    f"up to {LARGE.memory_bytes >> 30} GiB, {LARGE.seconds / 3600:.0f} h.",
)
"""The option of commands that read scenarios: ``limits`` is what a scenario may take."""


STDIN = "-"
"""The name that means standard input."""


def scenario_from(name: str, limits: Limits = USUAL) -> Scenario:
    """Return the scenario in a file, or the curated one of that name if there is no such file.

    Raises Unusable.
    """
    path = Path(name)
    if name != STDIN and not os.path.exists(name) and _may_be_curated(name):
        try:
            return named(curated(), name)
        except SelectionError as error:
            raise Unusable(f"no such file, and {error}") from None
    try:
        if name == STDIN:
            return parse_scenario(_from_stdin(), "standard input", limits)
        return read_scenario(path, limits)
    except FileError as error:
        raise Unusable(str(error)) from None


def _may_be_curated(name: str) -> bool:
    """Whether this may be a scenario's name, rather than a path or file name."""
    return not any(each in name for each in "/.\0")


def _from_stdin() -> bytes:
    """Return the content of standard input, up to a limit. Raises FileError."""
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        limit = f"larger than {MAX_FILE_BYTES >> 20} MiB, which is all that is read"
        raise FileError("standard input", limit)
    return not_empty(data, "standard input")


def holds_history(name: str) -> bool:
    """Whether a file holds a history, whatever its name."""
    path = Path(name)
    if not os.path.isfile(path):
        return name.endswith(".jsonl")
    try:
        with opened(path) as file:
            return file.read(len(HEADER_BEGINS)) == HEADER_BEGINS or name.endswith(".jsonl")
    except (FileError, OSError):
        return False  # Reading it as a scenario reports why.


def history_from(path: Path, limits: Limits = USUAL) -> History:
    """Return the history in a file, as far as it goes. Raises Unusable."""
    try:
        return read_history(path, limits)
    except FileError as error:
        raise Unusable(str(error)) from None


def histories_from(path: Path, limits: Limits = USUAL) -> Iterator[HistoryText]:
    """Yield the histories in a file, or in the files of a folder. Raises FileError.

    Raises Unusable for a folder that has none, or cannot be read.
    """
    for file in history_files(path):
        yield from histories_in(file, limits)


def history_files(path: Path) -> list[Path]:
    """Return a file, or the history files in a folder. Raises Unusable if it has none."""
    return files_under(path, "**/*.jsonl", "history")


def files_under(path: Path, names: str, what: str) -> list[Path]:
    """Return a file, or those in a folder whose names match. Raises Unusable if it has none."""
    if not os.path.isdir(path):
        return [path]
    with usable(path):
        found = sorted(path.glob(names))
    if not found:
        suffix = names.rpartition("*")[2]
        raise Unusable(f"{path}: no {what} there: a {what}'s name ends in {suffix}")
    return found
