"""Which machine runs which scenario, when several machines share one check.

A claim is a file in a shared folder, which only the first machine can create. So a machine that is
faster, or has shorter scenarios, runs more of them.
"""

import os
from functools import partial
from pathlib import Path

from vmm.cli.running.carrying import Claim


def claiming(folder: Path) -> Claim:
    """Return a function that claims scenarios by index, in a folder."""
    return partial(_claimed, folder)


def _claimed(folder: Path, index: int) -> bool:
    try:
        os.close(os.open(folder / str(index), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    except FileExistsError:
        return False
    return True
