"""Who takes which scenario, where several machines share the scenarios of one check.

A claim is a file in a folder that all of them see, which only the first can make: a machine that is
quick, or whose scenarios are short, takes more of them.
"""

import os
from functools import partial
from pathlib import Path

from vmm.cli.carrying import Claim


def claiming(folder: Path) -> Claim:
    """Return what claims scenarios in a folder, by their indices."""
    return partial(_claimed, folder)


def _claimed(folder: Path, index: int) -> bool:
    try:
        os.close(os.open(folder / str(index), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    except FileExistsError:
        return False
    return True
