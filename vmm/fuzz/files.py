"""Files that others read while we write: each is seen whole or not at all, after a crash, too."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.host.naming import named


def write_whole(path: Path, text: str) -> None:
    """Write a file, in place of one that is there. Raises OSError."""
    scratch = _scratch(path)
    try:
        scratch.unlink(missing_ok=True)
        with named(path), scratch.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # Else a crash may leave the name, and nothing in it.
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder, which has its name when the block ends.

    Raises FileExistsError where there is such a folder by then, and OSError.
    """
    scratch = _scratch(path)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        try:
            scratch.rename(path)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            raise
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def make_writable(folder: Path) -> None:
    """Make a folder if there is none, and try to write there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / "trial"
    scratch = _scratch(trial)
    scratch.touch()
    scratch.unlink()


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
