"""Holds any number of records in bounded memory: all but the first and the last are in a file."""

import os
import zlib
from array import array
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import IO, Generic, TypeVar

import msgspec

_T = TypeVar("_T")

KEPT = 128
"""How many of the first records of a spool stay in memory."""

BLOCK = 512
"""How many records are packed together."""

_QUICKLY = 1


class Store:
    """A file without a name, for the blocks of several spools."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, block: bytes) -> tuple[int, int]:
        """Write a block; return its offset and size. Raises OSError if the disk is full."""
        if self._file is None:
            self._file = TemporaryFile(buffering=0)  # noqa: SIM115  # It lives as long as this.
        begin, data = self._end, memoryview(block)
        while data:
            written = os.pwrite(self._file.fileno(), data, self._end)
            data, self._end = data[written:], self._end + written
        return begin, len(block)

    def get(self, offset: int, size: int) -> bytes:
        """Return a block."""
        assert self._file is not None
        return os.pread(self._file.fileno(), size, offset)


class Spool(Generic[_T]):
    """Records in the order in which they were appended; they can be iterated over repeatedly."""

    def __init__(self, store: Store, decoder: "msgspec.msgpack.Decoder[list[_T]]") -> None:
        self._store = store
        self._decoder = decoder
        self._first: list[_T] = []
        self._last: list[_T] = []
        self._blocks = array("Q")
        """Offset and size of each block, in turn."""

        self._length = 0

    def append(self, record: _T) -> None:
        """Append a record. Raises OSError if the disk is full."""
        self._length += 1
        if self._length <= KEPT:
            self._first.append(record)
            return
        self._last.append(record)
        if len(self._last) == BLOCK:
            packed = zlib.compress(msgspec.msgpack.encode(self._last), _QUICKLY)
            self._blocks.extend(self._store.put(packed))
            self._last = []

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[_T]:
        yield from self._first
        for at in range(0, len(self._blocks), 2):
            packed = self._store.get(self._blocks[at], self._blocks[at + 1])
            yield from self._decoder.decode(zlib.decompress(packed))
        yield from self._last
