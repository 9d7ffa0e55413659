"""Where a child process writes a history, so that it outlives the child.

A `FileTape` is on disk before the next operation begins, and survives a crash of the host. A
`MemoryTape` survives only the child, and costs it no system call.
"""

import mmap
import os
from pathlib import Path
from struct import Struct

from vmm.host.naming import named
from vmm.scenario.reading import MAX_HISTORY_BYTES

_LENGTH = Struct("<Q")
_MEMORY_BYTES = MAX_HISTORY_BYTES + _LENGTH.size
"""Memory is allocated only for what is written."""


def _check_room(size_bytes: int) -> None:
    """Raise OverflowError for a history that is too long to be read again."""
    if size_bytes > MAX_HISTORY_BYTES:
        raise OverflowError(f"a history has more than {MAX_HISTORY_BYTES >> 20} MiB")


class MemoryTape:
    """Memory that parent and child share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _MEMORY_BYTES)

    def clear(self) -> None:
        """Remove all data."""
        _LENGTH.pack_into(self._memory, 0, 0)

    def append(self, data: bytes) -> None:
        """Append data. Raises OverflowError if there is no room."""
        (length,) = _LENGTH.unpack_from(self._memory)
        start = _LENGTH.size + length
        _check_room(length + len(data))
        self._memory[start : start + len(data)] = data
        # The length comes last, so that a child that dies in between has written nothing.
        _LENGTH.pack_into(self._memory, 0, length + len(data))

    def mend(self) -> None:
        """Remove an incomplete last line: there is never one."""

    def read(self) -> bytes:
        """Return all that was written."""
        (length,) = _LENGTH.unpack_from(self._memory)
        return self._memory[_LENGTH.size : _LENGTH.size + length]

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()


class FileTape:
    """A file; each `append` is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        """Create the file, or empty it. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_DSYNC | os.O_CLOEXEC
        self._path = path
        self._file = os.open(path, flags, 0o644)

    def clear(self) -> None:
        """Remove all data."""
        os.ftruncate(self._file, 0)

    def append(self, data: bytes) -> None:
        """Append data. Raises OSError, and OverflowError if there is no room."""
        _check_room(os.fstat(self._file).st_size + len(data))
        with named(self._path):
            while data:
                data = data[os.write(self._file, data) :]

    def mend(self) -> None:
        """Remove an incomplete last line."""
        os.ftruncate(self._file, self.read().rfind(b"\n") + 1)

    def read(self) -> bytes:
        """Return all that was written."""
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


Tape = MemoryTape | FileTape
