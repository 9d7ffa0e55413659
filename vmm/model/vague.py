"""Unknown bytes of memory, such as those that KVM may have written by itself.

Masks are integers with a bit for each byte of a line.
"""

from collections.abc import Iterator

import msgspec

from vmm.scenario.clocks import LAYOUTS, ClockWrite
from vmm.scenario.operations import PAGE_SIZE_BYTES

_Key = tuple[str, int]


class Vague:
    """The unknown bytes, by line as `Contents` keeps them, and the structures that are due.

    A structure is due if KVM must have given it a new version since the last look; this cannot be
    told if something else has changed the same page since then. While ``masks`` is empty, every
    byte is known.
    """

    def __init__(self) -> None:
        self.masks: dict[_Key, int] = {}
        self._due: dict[_Key, ClockWrite] = {}
        self._doubted: set[_Key] = set()

    def of(self, line: _Key) -> int:
        """Return the unknown bytes of a line."""
        return self.masks.get(line, 0)

    def add(self, line: _Key, mask: int) -> None:
        """Note that these bytes are unknown."""
        self.masks[line] = self.masks.get(line, 0) | mask

    def settle(self, line: _Key, mask: int) -> None:
        """Note that these bytes are known from now on."""
        if line in self.masks:
            self.masks[line] &= ~mask

    def clear(self, line: _Key) -> None:
        """Note that a whole line is known from now on."""
        self.masks.pop(line, None)

    def copy(self, line: _Key, to: _Key) -> None:
        """Note that a line was copied to another one."""
        self.masks[to] = self.of(line)

    def written(self, write: ClockWrite, *, surely: bool) -> None:
        """Note that KVM wrote a structure, or, if not ``surely``, may have."""
        page = write.mapping, write.offset // PAGE_SIZE_BYTES
        if any(_overlap(each, write) for each in self._due.values()):
            self.doubt(*page)
        if page in self._doubted or not surely:
            return
        key = write.mapping, write.offset
        before = self._due.get(key)
        stopped = write.stopped or (before is not None and before.stopped)
        self._due[key] = msgspec.structs.replace(write, stopped=stopped)

    def doubt(self, mapping: str, page: int) -> None:
        """Note that a page changed in another way: nothing in it is due before the next look."""
        if not self.masks:
            return
        self._doubted.add((mapping, page))
        first = page * PAGE_SIZE_BYTES
        for name, offset in tuple(self._due):
            if name == mapping and first <= offset < first + PAGE_SIZE_BYTES:
                del self._due[name, offset]

    @property
    def due(self) -> tuple[ClockWrite, ...]:
        """The structures that must have a new version."""
        return tuple(self._due.values())

    def looked_at(self) -> None:
        """Note a look at memory: nothing is due any more."""
        self._due.clear()
        self._doubted.clear()


def mask_of(start: int, size: int) -> int:
    """Return the mask of ``size`` bytes of a line from ``start`` on."""
    return ((1 << size) - 1) << start


def spans(mask: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of bytes in a mask, ascending."""
    start = 0
    while mask:
        gap = (mask & -mask).bit_length() - 1
        mask >>= gap
        size = (~mask & (mask + 1)).bit_length() - 1
        yield start + gap, start + gap + size
        mask >>= size
        start += gap + size


def blend(held: bytes, first: int, now: bytes, mask: int) -> bytes:
    """Return ``held`` with the bytes in ``mask`` taken from ``now``, which begins at ``first``."""
    blended = bytearray(held)
    for start, end in spans(mask):
        begin, stop = max(start, first), min(end, first + len(now))
        if begin < stop:
            blended[begin:stop] = now[begin - first : stop - first]
    return bytes(blended)


def _overlap(one: ClockWrite, other: ClockWrite) -> bool:
    """Whether two different structures share bytes."""
    if one.mapping != other.mapping or (one.offset, one.clock) == (other.offset, other.clock):
        return False
    return (
        one.offset < other.offset + LAYOUTS[other.clock].size
        and other.offset < one.offset + LAYOUTS[one.clock].size
    )
