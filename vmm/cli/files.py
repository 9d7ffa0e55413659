"""Scenario and history files that the user names; a bad one is one line and status 2."""

from pathlib import Path

from vmm.cli.errors import Unusable
from vmm.cli.selection import curated
from vmm.scenario.codec import FileError, read_history, read_scenario
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario


def scenario_from(name: str) -> Scenario:
    """Return the scenario in a file, or the curated one of that name if there is no such file."""
    path = Path(name)
    if not path.exists():
        for scenario in curated():
            if scenario.name == name:
                return scenario
    try:
        return read_scenario(path)
    except FileError as error:
        raise Unusable(str(error)) from None


def history_from(path: Path) -> History:
    """Return the history in a file, as far as it goes."""
    try:
        return read_history(path)
    except FileError as error:
        raise Unusable(str(error)) from None
