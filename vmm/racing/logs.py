"""Dirty logs that are read while vCPUs write."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

BEFORE = (-2, -1)
"""The moments of what happened before the race."""


@dataclass(frozen=True, slots=True)
class Read:
    """One KVM_GET_DIRTY_LOG, which also cleared the log."""

    begin: int
    end: int
    pages: frozenset[int]


@dataclass(frozen=True, slots=True)
class PageWrite:
    """A guest's write to a page of the slot; one that is not certain may not have been made."""

    begin: int
    end: int
    certain: bool


@dataclass(slots=True)
class Logging:
    """A time in which a slot was logged: from a call on, to another one or beyond the race."""

    slot: int
    on: tuple[int, int] = (-4, -3)
    off: float = inf
    reads: list[Read] = field(default_factory=list)
    writes: dict[int, list[PageWrite]] = field(default_factory=lambda: defaultdict(list))

    def wrote(self, page: int, moments: tuple[int, int], certain: bool) -> None:
        """Note a write, if it may have been made in this time."""
        begin, end = moments
        if end > self.on[0] and begin < self.off:
            sure = certain and begin > self.on[1]
            self.writes[page].append(PageWrite(begin, end, sure))

    def invented(self) -> Iterator[tuple[Read, int]]:
        """Yield pages that a read named though nobody wrote them since the one before."""
        since = self.on[0]
        for read in self.reads:
            for page in sorted(read.pages):
                writes = self.writes.get(page, ())
                if not any(w.begin < read.end and w.end > since for w in writes):
                    yield read, page
            since = read.begin

    def lost(self) -> Iterator[tuple[Read, int, PageWrite]]:
        """Yield writes that the first read behind them does not name, nor any read beside them."""
        for page, writes in self.writes.items():
            for write in writes:
                first, named = self._after(page, write)
                missing = first is not None and not named and page not in first.pages
                if write.certain and missing and first is not None:
                    yield first, page, write

    def left(self) -> tuple[set[int], set[int]]:
        """Return the pages that must be dirty at the end, and those that may be."""
        dirty: set[int] = set()
        perhaps: set[int] = set()
        for page, writes in self.writes.items():
            for write in writes:
                first, named = self._after(page, write)
                if first is None:
                    (dirty if write.certain and not named else perhaps).add(page)
        return dirty, perhaps - dirty

    def _after(self, page: int, write: PageWrite) -> tuple[Read | None, bool]:
        """Return the first read that began after a write, and whether one beside it named it."""
        index = bisect_right(self.reads, write.end, key=lambda read: read.begin)
        named = False
        beside = index - 1
        while beside >= 0 and self.reads[beside].end > write.begin:
            named = named or page in self.reads[beside].pages
            beside -= 1
        return (self.reads[index] if index < len(self.reads) else None), named
