"""Which machine runs which scenario, when several machines share one check.

A claim is a file in a shared folder, which only the first machine can create. So a machine that is
faster, or has shorter scenarios, runs more of them. What is done, or left to others, is named in
another file.
"""

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

from vmm.cli.running.carrying import Claim


def claiming(folder: Path | None, done: Path | None = None) -> Claim:
    """Return a function that claims scenarios by index, in a folder, unless they are done.

    Raises OSError.
    """
    indices = frozenset(map(int, done.read_text().split())) if done is not None else frozenset()
    return partial(_claimed, folder, indices)


def done_text(indices: Collection[int]) -> str:
    """Return the content of a file that names what is done."""
    return " ".join(map(str, sorted(indices)))


def _claimed(folder: Path | None, done: frozenset[int], index: int) -> bool:
    if index in done:
        return False
    if folder is None:
        return True
    try:
        os.close(os.open(folder / str(index), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    except FileExistsError:
        return False
    return True
