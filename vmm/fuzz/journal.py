"""The intent journal: which scenarios are under way is on disk before they run.

Each worker has one file, locked while it lives. It holds one intent as a line of JSON, followed by
a full stop for each of its scenarios that ended. After a crash of the machine it names the scenario
that was under way, or the few that may have been.
"""

import os
from pathlib import Path

import msgspec

from vmm.host.naming import named
from vmm.scenario.operations import Scenario
from vmm.scenario.problem import ScenarioError
from vmm.scenario.reading import FileError, read_whole
from vmm.scenario.undecodable import UNDECODABLE
from vmm.scenario.validate import validate

_PATTERN = "under-way-*.journal"


class Intent(msgspec.Struct, frozen=True):
    """What a worker is about to run: the scenarios ``first``, ``first + step``, ... of a seed."""

    seed: int
    shard: tuple[int, int]
    first: int
    step: int
    scenarios: tuple[Scenario, ...]

    @property
    def next_index(self) -> int:
        """The index at which this worker would continue."""
        return self.first + self.step * len(self.scenarios)


class Journal:
    """The journal of one worker."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises OSError, also if another process has it locked."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        os.lockf(self._file, os.F_TLOCK, 0)

    def begin(self, intent: Intent) -> None:
        """Write an intent to disk, replacing the previous one. Raises OSError."""
        line = msgspec.json.encode(intent) + b"\n"
        with named(self._path):
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            while line:  # A nearly full disk takes a part and refuses the rest.
                line = line[os.write(self._file, line) :]
            os.fdatasync(self._file)

    def ended(self) -> None:
        """Note that one more scenario of the intent ended. Raises OSError."""
        with named(self._path):
            os.write(self._file, b".")

    def close(self) -> None:
        """Close and remove the file: nothing is under way."""
        os.close(self._file)
        self._path.unlink(missing_ok=True)


class Interrupted(msgspec.Struct, frozen=True):
    """The content of a journal: the intent, and its scenarios that did not end."""

    intent: Intent
    under_way: tuple[Scenario, ...]


def journal_path(folder: Path, run: str, worker: int) -> Path:
    """Return a worker's journal; ``run`` distinguishes runs at the same time."""
    return folder / _PATTERN.replace("*", f"{run}-{worker}")


def read_journal(path: Path) -> Interrupted | None:
    """Return the content of a journal; None if its intent was not written completely.

    Its scenarios are validated like those of any file. Raises FileError.
    """
    line, _, ended = read_whole(path).partition(b"\n")
    try:
        intent = msgspec.json.decode(line, type=Intent)
    except UNDECODABLE:
        return None
    try:
        _check(intent)
    except ScenarioError as error:
        raise FileError(path, f"not a journal of `vmm fuzz`: {error}") from None
    return Interrupted(intent, intent.scenarios[len(ended) :])


def _check(intent: Intent) -> None:
    """Raise ScenarioError for numbers that no run has, or a scenario that must not run."""
    index, count = intent.shard
    if not 1 <= index <= count or intent.seed < 0 or intent.first < 0 or intent.step < 1:
        raise ScenarioError("$: no seed, shard, first and step of a run")
    if not intent.scenarios:
        raise ScenarioError("$.scenarios: one or more are needed")
    for number, scenario in enumerate(intent.scenarios):
        try:
            validate(scenario)
        except ScenarioError as error:
            raise ScenarioError(f"$.scenarios[{number}]: {error}") from None


def left_behind(folder: Path) -> tuple[Path, ...]:
    """Return the journals of runs that did not end by themselves, the latest last.

    Those of runs still going on are not among them.
    """
    left = [path for path in folder.glob(_PATTERN) if not _is_in_use(path)]
    return tuple(sorted(left, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def _is_in_use(path: Path) -> bool:
    """Whether another process has the file locked. A link, a pipe or a folder is not a journal."""
    if path.is_symlink() or not path.is_file():
        return True
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return True  # Not ours to resume.
    try:
        os.lockf(file, os.F_TEST, 0)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
