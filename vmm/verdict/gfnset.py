"""A set of gfns that takes no more room, or time, where its ranges are long."""

from bisect import bisect_left, bisect_right


class GfnSet:
    """A set of gfns, kept as ranges that do not touch, in ascending order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def overlaps(self, gfns: range) -> bool:
        """Whether any of these gfns is in the set."""
        at = bisect_right(self._ends, gfns.start)
        return bool(gfns) and at < len(self._starts) and self._starts[at] < gfns.stop

    def add(self, gfns: range) -> None:
        """Add gfns, some of which may be in the set."""
        if not gfns:
            return
        first = bisect_left(self._ends, gfns.start)
        after = bisect_right(self._starts, gfns.stop)
        start, end = gfns.start, gfns.stop
        if first < after:
            start, end = min(start, self._starts[first]), max(end, self._ends[after - 1])
        self._starts[first:after] = [start]
        self._ends[first:after] = [end]

    def take(self, gfns: range) -> list[range]:
        """Remove those of these gfns that are in the set, and return them."""
        first = bisect_right(self._ends, gfns.start)
        after = bisect_left(self._starts, gfns.stop)
        if not gfns or first >= after:
            return []
        starts, ends = self._starts[first:after], self._ends[first:after]
        outside = [
            kept
            for kept in (range(starts[0], gfns.start), range(gfns.stop, ends[-1]))
            if kept  # What of the outermost ranges is not to be removed.
        ]
        self._starts[first:after] = [kept.start for kept in outside]
        self._ends[first:after] = [kept.stop for kept in outside]
        starts[0], ends[-1] = max(starts[0], gfns.start), min(ends[-1], gfns.stop)
        return list(map(range, starts, ends))

    def missing(self, gfns: range) -> list[range]:
        """Return those of these gfns that are not in the set."""
        first = bisect_right(self._ends, gfns.start)
        after = bisect_left(self._starts, gfns.stop)
        starts = [gfns.start, *self._ends[first:after]]
        ends = [*self._starts[first:after], gfns.stop]
        return [range(start, end) for start, end in zip(starts, ends, strict=True) if start < end]
