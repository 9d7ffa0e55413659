"""Results of earlier runs, which must not be taken for this one's where it ends before it begins.

Once a command has begun, `unfinished.py` sees to that; its module may fail to load before.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

_WRITERS = (["check"], ["run"], ["judge"])
"""Commands that write a result there, and read none. `coverage --json RESULT.json` reads it."""

_MARK = b'"exit_status"'
_BEGINNING_BYTES = 200

OlderResults = dict[str, tuple[int, int, int]]
"""Files that exist, and a value that changes when a file does."""


def older_results(words: Sequence[str]) -> OlderResults:
    """Return the files that may be meant by --json among the words of a command line."""
    if words[:1] not in _WRITERS:
        return {}
    named = [name for word, name in pairwise(words) if word == "--json"]
    named += [word.removeprefix("--json=") for word in words if word.startswith("--json=")]
    return {name: state for name in named if (state := _state(name))}


def forget(older: OlderResults) -> None:
    """Remove those that are still what they were, and are results."""
    for name, state in older.items():
        with suppress(OSError):
            if _state(name) == state and _is_result(name):
                os.unlink(os.path.realpath(name))


def _state(name: str) -> tuple[int, int, int] | None:
    with suppress(OSError, ValueError):
        found = os.stat(name)
        if stat.S_ISREG(found.st_mode):
            return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _is_result(name: str) -> bool:
    """Whether a file begins as a result does: the word after --json may be what a command reads."""
    with open(name, "rb") as file:
        return _MARK in file.read(_BEGINNING_BYTES)
