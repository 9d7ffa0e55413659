"""Errors of files, told with the name of the file: write(2) and its like give none."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Let an OSError of the block that names no file name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_named(path: Path, text: str) -> None:
    """Write a file as `Path.write_text` does. Raises `OSError` with its name, whatever fails."""
    with named(path):
        path.write_text(text)


class NamedFile(io.FileIO):
    """A file as `io.FileIO` opens it, whose errors say which file it is.

    ``path`` is the name to tell where ``file`` is a descriptor.
    """

    def __init__(self, file: Path | int, mode: str, path: Path | None = None) -> None:
        super().__init__(file, mode)
        self._path = str(path or file)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the data, and return how much."""
        with named(self._path):
            return super().write(data)
