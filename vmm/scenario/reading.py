"""Reads files that the user names: regular files only, and only up to a limit."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from vmm.scenario.endings import HOST_SHORT
from vmm.scenario.shown import shown

MAX_FILE_BYTES = 32 << 20
"""The limit for a file that is read as a whole: a scenario, a result, a journal."""

MAX_HISTORY_BYTES = 256 << 20
"""The limit for one history, read or written; reading it takes several times as much memory."""

MAX_LINE_BYTES = 64 << 20
"""The limit for one line of a history: enough for the longest race. See `packing`."""

EMPTY = "empty"
"""What every command says of a file without content."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class FileError(ValueError):
    """A file that cannot be used; the text is one line with file, place and remedy."""

    def __init__(self, place: object, problem: object) -> None:
        """Take the place (a path, perhaps with a line) and the problem; both are escaped."""
        super().__init__(f"{shown(str(place), 300)}: {shown(str(problem), 500)}")


class CutOffError(FileError):
    """A file whose last header is cut off; everything before it is whole."""


def read_whole(path: Path, most_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a regular file. Raises FileError, and OSError."""
    with opened(path) as file:
        data = _read(file, path, most_bytes + 1)
    if len(data) > most_bytes:
        raise FileError(path, f"larger than {most_bytes >> 20} MiB, which is all that is read")
    return data


def beginning_of(path: Path, most_bytes: int) -> bytes:
    """Return the first bytes of a regular file. Raises FileError."""
    with opened(path) as file:
        return _read(file, path, most_bytes)


def lines_of(path: Path, most_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of a regular file without their ends, as ``split(b"\\n")`` does.

    So a file that ends with a line feed has an empty last line. Raises FileError.
    """
    with opened(path) as file:
        number, is_whole = 0, True
        while is_whole:
            number += 1
            line = _read_line(file, path, most_bytes + 1)
            is_whole = line.endswith(b"\n")
            if len(line) > most_bytes:
                raise FileError(f"{path}:{number}", f"longer than {most_bytes >> 20} MiB")
            yield line[:-1] if is_whole else line


def read_text(path: Path, most_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a regular file that is not empty. Raises FileError."""
    return not_empty(read_whole(path, most_bytes), path)


def not_empty(data: bytes, place: object) -> bytes:
    """Return the content of a file, or of standard input. Raises FileError if it is blank."""
    if not data or data.isspace():
        raise FileError(place, EMPTY)
    return data


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Yield a regular file, open for reading. Raises FileError.

    A pipe or a device is refused, since it may never end; opening does not wait for a writer.
    Where the host is short of something, here and below, the OSError itself is raised.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode)  # Opening a device may have side effects.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise _failed(path, error) from None
    with os.fdopen(number, "rb") as file:
        _refuse_special(path, os.fstat(number).st_mode)
        yield file


def kind_of(mode: int) -> str:
    """Return the kind of a special file, by its ``st_mode``, in words; empty for a regular file."""
    kind = stat.S_IFMT(mode)
    return "" if kind == stat.S_IFREG else _KINDS.get(kind, "something else")


def _refuse_special(path: Path, mode: int) -> None:
    kind = kind_of(mode)
    if kind:
        raise FileError(path, f"{kind}, not a file")


def _read(file: BufferedReader, path: Path, most_bytes: int) -> bytes:
    try:
        data: bytes | None = file.read(most_bytes)
    except OSError as error:
        raise _failed(path, error) from None
    if data is None:  # As for /proc/kmsg: more may come, but we do not wait for it.
        raise FileError(path, "there is nothing to read yet")
    return data


def _read_line(file: BufferedReader, path: Path, most_bytes: int) -> bytes:
    try:
        return file.readline(most_bytes)
    except OSError as error:
        raise _failed(path, error) from None


def _failed(path: Path, error: OSError | ValueError) -> Exception:
    """Return what to raise for a file that cannot be read: the error itself if it is the host's.

    Python itself raises ValueError for a null byte in a name.
    """
    if not isinstance(error, OSError):
        return FileError(path, error)
    if error.errno in HOST_SHORT:
        error.filename = str(path)
        return error
    return FileError(path, error.strerror)
