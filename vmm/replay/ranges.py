"""Maps ranges of addresses to values."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

_V = TypeVar("_V")

MAX_RANGES = 1 << 17
"""More than the kernel allows a process (vm.max_map_count); further ranges are ignored."""


class Ranges(Generic[_V]):
    """Ranges that do not overlap, each with a value; a new range replaces what was there."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[_V] = []

    def put(self, start: int, end: int, value: _V) -> None:
        """Set the value of a range."""
        self.clear(start, end)
        if start < end and len(self._starts) < MAX_RANGES:
            self._insert(bisect_left(self._starts, start), start, end, value)

    def clear(self, start: int, end: int) -> None:
        """Forget a range."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        head = (self._starts[first], self._values[first])
        tail = (self._ends[last - 1], self._values[last - 1])
        del self._starts[first:last], self._ends[first:last], self._values[first:last]
        if tail[0] > end:
            self._insert(first, end, *tail)
        if head[0] < start:
            self._insert(first, head[0], start, head[1])

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, _V]]:
        """Yield (start, end, value) of the parts within a range, ascending."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        for index in range(first, last):
            yield max(start, self._starts[index]), min(end, self._ends[index]), self._values[index]

    def nearest(self, address: int) -> _V | None:
        """Return the value of the range that is the nearest to an address; None without ranges."""
        at = bisect_right(self._starts, address)
        near = [(address - self._ends[each], each) for each in range(max(0, at - 1), at)]
        near += [(start - address, at) for start in self._starts[at : at + 1]]
        return self._values[min(near)[1]] if near else None

    def __iter__(self) -> Iterator[tuple[int, int, _V]]:
        yield from zip(self._starts, self._ends, self._values, strict=True)

    def _insert(self, at: int, start: int, end: int, value: _V) -> None:
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self._values.insert(at, value)


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges with overlapping ones merged, ascending, without empty ones."""
    whole: list[tuple[int, int]] = []
    for start, end in sorted(each for each in ranges if each[0] < each[1]):
        if whole and start < whole[-1][1]:
            whole[-1] = (whole[-1][0], max(whole[-1][1], end))
        else:
            whole.append((start, end))
    return whole
