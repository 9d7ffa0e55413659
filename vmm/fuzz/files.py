"""Files that are read while we write: they appear complete or not at all, even after a crash."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.host.naming import named


def write_whole(path: Path, text: str) -> None:
    """Write a file, replacing an existing one. Raises OSError."""
    scratch = _scratch(path)
    try:
        scratch.unlink(missing_ok=True)
        with named(path), scratch.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # Or a crash may leave the name with no content.
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder, which gets its name when the block ends.

    Raises FileExistsError if there is such a folder by then, and OSError.
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
    """Create a folder if there is none, and check that it is writable. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / "trial"
    scratch = _scratch(trial)
    scratch.touch()
    scratch.unlink()


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
