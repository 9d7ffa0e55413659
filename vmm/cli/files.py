"""Scenario and history files that the user names; a bad one is one line and status 2."""

from collections.abc import Iterator
from pathlib import Path

import click

from vmm.cli.errors import Unusable, usable
from vmm.cli.selection import curated
from vmm.scenario.codec import (
    HEADER_BEGINS,
    FileError,
    HistoryText,
    histories_in,
    read_history,
    read_scenario,
)
from vmm.scenario.demand import LARGE, USUAL, Limits
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario
from vmm.scenario.reading import opened

allow_large = click.option(
    "--allow-large",
    "limits",
    flag_value=LARGE,
    default=USUAL,
    type=click.UNPROCESSED,
    help=f"Take files that need more than {USUAL.memory_bytes >> 30} GiB or {USUAL.seconds:.0f} s: "
    f"up to {LARGE.memory_bytes >> 30} GiB, {LARGE.seconds / 3600:.0f} h.",
)
"""An option of commands that take files: ``limits`` is what a scenario may take."""


def scenario_from(name: str, limits: Limits = USUAL) -> Scenario:
    """Return the scenario in a file, or the curated one of that name if there is no such file."""
    path = Path(name)
    if not path.exists():
        for scenario in curated():
            if scenario.name == name:
                return scenario
    try:
        return read_scenario(path, limits)
    except FileError as error:
        raise Unusable(str(error)) from None


def holds_history(name: str) -> bool:
    """Whether a file is a history, whatever it is called."""
    path = Path(name)
    if not path.is_file():
        return name.endswith(".jsonl")
    try:
        with opened(path) as file:
            return file.read(len(HEADER_BEGINS)) == HEADER_BEGINS or name.endswith(".jsonl")
    except (FileError, OSError):
        return False  # Reading it as a scenario says why.


def history_from(path: Path, limits: Limits = USUAL) -> History:
    """Return the history in a file that holds one, as far as it goes."""
    try:
        return read_history(path, limits)
    except FileError as error:
        raise Unusable(str(error)) from None


def histories_from(path: Path, limits: Limits = USUAL) -> Iterator[HistoryText]:
    """Yield what a file of histories, or a folder of such files, holds. Raises FileError.

    A folder without any, or that cannot be read, is Unusable.
    """
    if not path.is_dir():
        yield from histories_in(path, limits)
        return
    with usable(path):
        files = sorted(path.rglob("*.jsonl"))
    if not files:
        raise Unusable(f"{path}: no history there (*.jsonl)")
    for file in files:
        yield from histories_in(file, limits)
