"""Adds file names to errors: those of write(2) and the like have none."""

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
    """Add this file name to an OSError of the block that has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_named(path: Path, text: str) -> None:
    """Write a file like `Path.write_text`; every `OSError` has its name."""
    with named(path):
        path.write_text(text)


class NamedFile(io.FileIO):
    """An `io.FileIO` whose errors have the file's name.

    ``path`` is that name if ``file`` is a descriptor.
    """

    def __init__(self, file: Path | int, mode: str, path: Path | None = None) -> None:
        super().__init__(file, mode)
        self._path = str(path or file)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the data, and return how many bytes."""
        with named(self._path):
            return super().write(data)
