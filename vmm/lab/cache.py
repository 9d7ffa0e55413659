"""The lab's cache for what is slow to get: kernels, package lists, logs of runs."""

import os
import shutil
from pathlib import Path

from vmm.host.naming import write_named

KEPT_RUNS = 20
"""How many folders of earlier runs are kept."""


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/memslot-vmm or ~/.cache/memslot-vmm, which may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "memslot-vmm"


def home() -> Path:
    """Return the user's home, or / if the system has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def new_run_folder() -> Path:
    """Make a folder for one run's logs, and remove the oldest ones."""
    runs = cache_folder() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    earlier = sorted((int(path.name), path) for path in runs.iterdir() if path.name.isdigit())
    for _, path in earlier[:-KEPT_RUNS]:
        if not is_alive(path):
            shutil.rmtree(path, ignore_errors=True)
    number = earlier[-1][0] + 1 if earlier else 1
    while True:
        try:
            (runs / str(number)).mkdir()
        except FileExistsError:
            number += 1
            continue
        pid = runs / str(number) / "pid"
        write_named(pid, str(os.getpid()))
        return runs / str(number)


def is_alive(run: Path) -> bool:
    """Return whether the process that made a run's folder still exists."""
    try:
        os.kill(int((run / "pid").read_text()), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True
