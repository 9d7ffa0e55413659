"""The running kernel's memory, through /proc/kcore: an ELF file whose segments are addresses.

drgn reads it, too, but takes ten seconds to start in an emulated machine (it looks up every symbol
of the kernel), and must start again in each child process.
"""

import os
from pathlib import Path
from struct import Struct
from typing import Self

_HEADER = Struct("<16xHHIQQQIHHH")
_SEGMENT = Struct("<IIQQQQQQ")
_LOAD = 1


class Kcore:
    """An open /proc/kcore. Child processes may use it."""

    def __init__(self, path: Path = Path("/proc/kcore")) -> None:
        """Raises OSError, and ValueError if the file is not a 64-bit ELF file."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._segments = self._found()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of the kernel's memory. Raises OSError."""
        for start, length, offset in self._segments:
            if start <= address and address + size <= start + length:
                data = os.pread(self._file, size, offset + address - start)
                if len(data) == size:
                    return data
                break
        raise OSError(f"the kernel has no memory at {address:#x}")

    def _found(self) -> list[tuple[int, int, int]]:
        header = os.pread(self._file, _HEADER.size, 0)
        if len(header) < _HEADER.size or header[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit ELF file")
        _, _, _, _, table, _, _, _, size, count = _HEADER.unpack(header)
        data = os.pread(self._file, size * count, table)
        found: list[tuple[int, int, int]] = []
        for number in range(len(data) // size if size >= _SEGMENT.size else 0):
            kind, _, offset, address, _, _, length, _ = _SEGMENT.unpack_from(data, number * size)
            if kind == _LOAD:
                found.append((address, length, offset))
        return found
