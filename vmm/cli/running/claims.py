"""Which machine runs which scenario, when several machines share one check.

A claim is a file in a shared folder, which only the first machine can create, for a few scenarios
that follow each other: in a machine without hardware's help it takes as long as a short scenario.
So a machine that is faster, or has shorter scenarios, runs more of them. What is done, or left to
others, is named in another file.
"""

import os
from collections.abc import Collection
from pathlib import Path

from vmm.cli.running.carrying import Claim

_GROUP = 8
"""How many scenarios one claim is for."""


def claiming(folder: Path | None, done: Path | None = None) -> Claim:
    """Return a function that claims scenarios by index, in a folder, unless they are done.

    Raises OSError.
    """
    indices = frozenset(map(int, done.read_text().split())) if done is not None else frozenset()
    return _Claims(folder, indices)


def done_text(indices: Collection[int]) -> str:
    """Return the content of a file that names what is done."""
    return " ".join(map(str, sorted(indices)))


class _Claims:
    """What this machine has claimed, or found claimed, by groups of scenarios."""

    def __init__(self, folder: Path | None, done: frozenset[int]) -> None:
        self._folder = folder
        self._done = done
        self._ours: dict[int, bool] = {}

    def __call__(self, index: int) -> bool:
        if index in self._done:
            return False
        if self._folder is None:
            return True
        group = index // _GROUP
        if group not in self._ours:
            self._ours[group] = _is_created(self._folder / str(group))
        return self._ours[group]


def _is_created(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    except FileExistsError:
        return False
    return True
