"""Gathers the findings of other runs, perhaps a stranger's, in one folder."""

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vmm.fuzz.files import whole_folder
from vmm.fuzz.findings import ALSO
from vmm.scenario.codec import read_scenario
from vmm.scenario.reading import FileError

_SCENARIO = "scenario.json"
_MAX_FILE_BYTES = 256 << 20


def findings_in(folder: Path) -> list[Path]:
    """Return the possible findings in a folder: its subfolders. Raises OSError.

    Those that a killed process left unfinished are not among them.
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def check_finding(path: Path) -> None:
    """Raise FileError for what is not a finding."""
    if not _is(path, stat.S_ISDIR):
        raise FileError(path, "not a folder")
    read_scenario(_regular(path / _SCENARIO))


def gather(finding: Path, out: Path) -> None:
    """Copy a finding, unless there is one of its name.

    Only regular files are copied, nothing that a symbolic link points to. Raises OSError.
    """
    target = out / finding.name
    if os.path.lexists(target):
        return
    with suppress(FileExistsError), whole_folder(target) as scratch:
        for path in sorted(finding.iterdir()):
            _copy(path, scratch)
        for other in _others(finding):
            (scratch / ALSO / other.name).mkdir(parents=True)
            for path in sorted(other.iterdir()):
                _copy(path, scratch / ALSO / other.name)


def _copy(path: Path, folder: Path) -> None:
    if _is(path, stat.S_ISREG) and path.stat().st_size <= _MAX_FILE_BYTES:
        shutil.copyfile(path, folder / path.name, follow_symlinks=False)


def _others(finding: Path) -> list[Path]:
    """Return the folders of the other findings of the same fault."""
    if not _is(finding / ALSO, stat.S_ISDIR):
        return []
    return [path for path in sorted((finding / ALSO).iterdir()) if _is(path, stat.S_ISDIR)]


def _regular(path: Path) -> Path:
    if not _is(path, stat.S_ISREG):
        raise FileError(path.parent, f"has no {path.name}")
    return path


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a path itself, not what it links to, is of a kind."""
    try:
        return kind(path.lstat().st_mode)
    except OSError:
        return False
