"""The corpus: a folder of scenarios that covered something new, named by their content.

Several fuzzers may share a folder: a file appears completely or not at all, under a name that
belongs to its content.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmm.fuzz.files import write_whole
from vmm.scenario.codec import FileError, read_scenario, scenario_text
from vmm.scenario.expected import without_expectations
from vmm.scenario.operations import Scenario

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A corpus as read; ``passed_over`` has a line for each file that is not a scenario."""

    scenarios: tuple[Scenario, ...]
    passed_over: tuple[str, ...]


def load(folder: Path) -> Loaded:
    """Return the scenarios in a folder; none if it does not exist.

    They will be mutated, so the ``expect`` of their operations is removed.
    """
    scenarios: list[Scenario] = []
    passed_over: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            scenarios.append(without_expectations(read_scenario(path)))
        except (FileError, OSError) as error:
            passed_over.append(str(error))
    return Loaded(tuple(scenarios), tuple(passed_over))


def keep(folder: Path, scenario: Scenario) -> bool:
    """Add a scenario; return False if the corpus has it. Raises OSError."""
    path = folder / f"{content_name(scenario)}.json"
    if path.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, scenario_text(scenario))
    return True


def file_name(scenario: Scenario) -> str:
    """Return a file name for a scenario: its own name if that is a plain file name."""
    name = scenario.name
    return name if _FILE_NAME.fullmatch(name) else content_name(scenario)


def content_name(scenario: Scenario) -> str:
    """Return a name that depends on what a scenario does, not on what it is called."""
    bare = msgspec.structs.replace(scenario, name="", why="", source="", tags=())
    return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()[:16]
