"""How long a child has spent on work of this program's own: a time limit is for the kernel's.

Filling and comparing memory takes as long as there is memory. Parent and child share what is
counted here, so that the parent knows it while it waits.
"""

import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

_COUNTED = Struct("<QQ")  # ns that have ended, and when the stretch under way began (0: none is)


class OwnTime:
    """A count of seconds in memory that forked processes share. One process counts at a time."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _COUNTED.size)

    def reset(self) -> None:
        """Begin anew."""
        _COUNTED.pack_into(self._memory, 0, 0, 0)

    def spent_s(self) -> float:
        """Return how long it was so far, with what is under way."""
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
        """Give the memory back."""
        self._memory.close()
