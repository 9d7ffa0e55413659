"""The intent journal: which scenarios are under way is on disk before they run.

One file a worker. It holds one intent, as a line of JSON, and behind it a full stop for each
of its scenarios that ended. What a crash of the machine leaves behind names the scenario under
way, or the few among which it is.
"""

import os
from pathlib import Path

import msgspec

from vmm.memslots.operations import Scenario

_PATTERN = "under-way-*.journal"


class Intent(msgspec.Struct, frozen=True):
    """What a worker is about to run. ``next_index`` is where a later run goes on."""

    seed: int
    shard: tuple[int, int]
    next_index: int
    scenarios: tuple[Scenario, ...]


class Journal:
    """The journal of one worker."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the file. Raises OSError."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def begin(self, intent: Intent) -> None:
        """Put the intent on disk, in place of the one before. Raises OSError."""
        line = msgspec.json.encode(intent) + b"\n"
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        while line:  # A disk that is nearly full takes a part, and refuses the rest.
            line = line[os.write(self._file, line) :]
        os.fdatasync(self._file)

    def ended(self) -> None:
        """Note that one more scenario of the intent ended."""
        os.write(self._file, b".")

    def close(self) -> None:
        """Close the file and remove it: nothing is under way."""
        os.close(self._file)
        self._path.unlink(missing_ok=True)


class Interrupted(msgspec.Struct, frozen=True):
    """What a journal says: its intent, and the scenarios of it that did not end."""

    intent: Intent
    under_way: tuple[Scenario, ...]


def journal_path(folder: Path, worker: int) -> Path:
    """Return where a worker keeps its journal."""
    return folder / _PATTERN.replace("*", str(worker))


def read_journal(path: Path) -> Interrupted | None:
    """Return what a journal says; None if its intent did not come to disk."""
    line, _, ended = path.read_bytes().partition(b"\n")
    try:
        intent = msgspec.json.decode(line, type=Intent)
    except msgspec.DecodeError:
        return None
    return Interrupted(intent, intent.scenarios[len(ended) :])


def left_behind(folder: Path) -> tuple[Path, ...]:
    """Return the journals of a run that did not end by itself."""
    return tuple(sorted(folder.glob(_PATTERN)))
