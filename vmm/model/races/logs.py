"""Dirty logs that are read and cleared while vCPUs write."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

BEFORE = (-2, -1)
"""The interval of everything that happened before the race."""


@dataclass(frozen=True, slots=True)
class Read:
    """One KVM_GET_DIRTY_LOG."""

    begin: int
    end: int
    pages: frozenset[int]


@dataclass(frozen=True, slots=True)
class Clear:
    """Pages that were cleared by KVM_CLEAR_DIRTY_LOG, or by a KVM_GET_DIRTY_LOG that clears.

    The latter is ``whole``: it clears the pages that it names, and no other page was dirty.
    """

    begin: int
    end: int
    pages: frozenset[int]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class PageWrite:
    """A guest's write to a page of the slot; if not certain, it may have gone elsewhere."""

    begin: int
    end: int
    certain: bool
    vcpu: int


@dataclass(slots=True)
class Logging:
    """A period in which a slot was logged: from one call to another, or beyond the race.

    From the moment ``tracked`` on, every write is noticed; ``anew`` are the intervals of calls
    after which every page is tracked as if for the first time.
    """

    slot: int
    on: tuple[int, int] = (-4, -3)
    off: tuple[float, float] = (inf, inf)
    tracked: float = -3
    anew: list[tuple[int, int]] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    clears: list[Clear] = field(default_factory=list)
    writes: dict[int, list[PageWrite]] = field(default_factory=lambda: defaultdict(list))

    def wrote(self, page: int, interval: tuple[int, int], certain: bool, vcpu: int = 0) -> None:
        """Note a write, if it may have been made in this period."""
        begin, end = interval
        if end > self.on[0] and begin < self.off[1]:
            sure = certain and begin > self.tracked and end < self.off[0]
            self.writes[page].append(PageWrite(begin, end, sure, vcpu))

    def holds(self, page: int) -> None:
        """Note a page that is dirty from the start without a write."""
        self.writes[page].append(PageWrite(*self.on, certain=True, vcpu=0))

    def read(self, interval: tuple[int, int], pages: frozenset[int], clears: bool) -> None:
        """Note which pages a KVM_GET_DIRTY_LOG named, and whether it cleared them."""
        self.reads.append(Read(*interval, pages))
        if clears:
            self.clears.append(Clear(*interval, pages, whole=True))

    def cleared(self, interval: tuple[int, int], pages: frozenset[int]) -> None:
        """Note that pages were cleared."""
        self.clears.append(Clear(*interval, pages))

    def invented(self) -> Iterator[tuple[Read, int]]:
        """Yield pages that a read named although nobody wrote them since they were cleared."""
        for read in self.reads:
            for page in sorted(read.pages):
                since = self._cleared_by(page, read.begin)
                writes = self.writes.get(page, ())
                if not any(w.begin < read.end and w.end > since for w in writes):
                    yield read, page

    def lost(self) -> Iterator[tuple[Read, int, PageWrite]]:
        """Yield writes that a later read does not name, although nothing cleared their page."""
        for page, writes in self._in_order():
            for read in self.reads:
                if page not in read.pages:
                    write = self._standing(page, writes, read.begin)
                    if write is not None:
                        yield read, page, write

    def left(self) -> tuple[set[int], set[int]]:
        """Return the pages that must be dirty at the end, and those that may be."""
        dirty: set[int] = set()
        perhaps: set[int] = set()
        for page, writes in self._in_order():
            if self._standing(page, writes, inf) is not None:
                dirty.add(page)
            elif any(write.end > self._cleared_by(page, inf) for write in self.writes[page]):
                perhaps.add(page)
        return dirty, perhaps

    def _in_order(self) -> Iterator[tuple[int, list[PageWrite]]]:
        """Yield each page with its certain writes, in the order of invocation."""
        for page, writes in self.writes.items():
            yield page, sorted((w for w in writes if w.certain), key=lambda write: write.begin)

    def _cleared_by(self, page: int, moment: float) -> int:
        """Return the moment after which a page must have been written to be dirty at ``moment``."""
        over = (
            clear.begin
            for clear in self.clears
            if clear.end < moment and (clear.whole or page in clear.pages)
        )
        return max(over, default=self.on[0])

    def _standing(self, page: int, writes: list[PageWrite], moment: float) -> PageWrite | None:
        """Return a write that was over before a moment, and that no clear can have removed.

        A clear takes effect at an unknown moment of its interval, and may drop writes until its
        response: the host reads their content only afterwards.
        """
        since = max(
            (c.end for c in self.clears if c.begin < moment and page in c.pages),
            default=self.on[0] - 1,
        )
        for write in writes[bisect_right(writes, since, key=lambda write: write.begin) :]:
            if write.begin >= moment:
                return None
            if write.end < moment:
                return write
        return None
