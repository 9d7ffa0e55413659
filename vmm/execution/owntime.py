"""Measures the time that a child spends on this program's own work: time limits do not count it.

Filling and comparing memory takes longer the more there is. Parent and child share the count, so
that the parent knows it while it waits.
"""

import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

_COUNTED = Struct("<QQ")  # ns of completed blocks, and when the current one began (0: none)


class OwnTime:
    """A count of seconds in memory that forked processes share. One process counts at a time."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _COUNTED.size)

    def reset(self) -> None:
        """Set the count to 0."""
        _COUNTED.pack_into(self._memory, 0, 0, 0)

    def spent_s(self) -> float:
        """Return the seconds so far, including the current block."""
        ended, since = _COUNTED.unpack_from(self._memory)
        under_way = time.monotonic_ns() - since if since else 0
        return float(ended + under_way) / 1e9

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time of a block."""
        ended, _ = _COUNTED.unpack_from(self._memory)
        since = time.monotonic_ns()
        _COUNTED.pack_into(self._memory, 0, ended, since)
        try:
            yield
        finally:
            _COUNTED.pack_into(self._memory, 0, ended + time.monotonic_ns() - since, 0)

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()
